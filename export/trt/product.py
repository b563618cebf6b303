"""The two products: how their Python modules are found, what is missing for them, and which GPUs they build for.

Only what both have in common and TensorRT 11 kept is used elsewhere; differences are answered here.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from shotstream.runtime.errors import UserError

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
PRODUCTS = (TENSORRT, RTX)

_TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT-RTX"}
_MODULES = {TENSORRT: ("tensorrt", "tensorrt_bindings"), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_MAJORS = {TENSORRT: (10, 11), RTX: (1,)}
_INSTALL = {
    TENSORRT: "pip install tensorrt",
    RTX: "pip install shotstream[rtx]",
}

_UNSUPPORTED_BY_RTX = {"sm_90": "Hopper", "sm_100": "data-centre Blackwell", "sm_103": "data-centre Blackwell"}
_OLDEST = {"bfloat16": 80, "float8": 89}
"""Oldest architecture whose tensor cores take a precision."""


@dataclass(frozen=True)
class Product:
    """A product that can be imported here."""

    name: str
    module: Any

    @property
    def title(self) -> str:
        """As its maker writes it."""
        return _TITLES[self.name]

    @property
    def version(self) -> str:
        """Of the package; plans are only good for the version that built them."""
        return str(self.module.__version__)

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(self.version.split(".")[0])

    @property
    def needs_gpu_to_build(self) -> bool:
        """TensorRT times kernels while it builds; TensorRT-RTX leaves the GPU's part to the first run."""
        return self.name == TENSORRT

    def network_flags(self) -> int:
        """Networks are strongly typed; from TensorRT 11 on, and in TensorRT-RTX, there are no others."""
        if self.name == TENSORRT and self.major < 11:
            return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return 0

    def architectures(self) -> tuple[str, ...]:
        """What `targets` of a build may name: sm_120 and so on; none where only the GPU at hand can be built for."""
        if self.name == TENSORRT:
            return ()
        members = self.module.ComputeCapability.__members__
        numbers = sorted(int(name[2:]) for name in members if name.startswith("SM"))
        return tuple(f"sm_{number}" for number in numbers)


def load_product(name: str) -> Product:
    """Import a product. UserError says what is missing: the package, its libraries, or a version that is known."""
    if name not in PRODUCTS:
        raise UserError(f"there is no engine product '{name}'; there is {', '.join(PRODUCTS)}")
    product = Product(name, _imported(name))
    if product.major not in _MAJORS[name]:
        known = " and ".join(f"{major}.x" for major in _MAJORS[name])
        raise UserError(f"{product.title} {product.version} is installed, and {known} are known; {_INSTALL[name]}")
    return product


def missing_to_build(name: str) -> list[str]:
    """Sentences, one for each thing that a build needs and this machine has not."""
    missing = []
    try:
        load_product(name)
    except UserError as error:
        missing.append(str(error))
    if name == TENSORRT and (driver := missing_driver()):
        missing.append(driver)
    return missing


def missing_driver() -> str:
    """Why CUDA cannot be used here, in a sentence; "" if it can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (
            "there is no NVIDIA driver on this machine (libcuda.so.1); TensorRT times its kernels on the GPU it is for"
        )
    if code := driver.cuInit(0):
        return f"the NVIDIA driver finds no usable GPU (cuInit returned {code})"
    return ""


def local_gpu(device: Any = None) -> str:
    """Architecture of a GPU of this machine, such as sm_90. UserError if torch cannot use it."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("torch finds no GPU that it can use; install a torch for CUDA, or a newer driver")
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def engine_targets(product: Product, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """What an engine's key says it was built for: what was wanted, or the GPU that TensorRT builds on."""
    return (local_gpu(),) if product.needs_gpu_to_build else wanted


def check_targets(product: Product, targets: tuple[str, ...], precision: str) -> None:
    """UserError for GPUs that the product does not build for, or that do not know the precision."""
    known = product.architectures()
    if targets and not known:
        raise UserError(f"{product.title} builds for the GPU of this machine only; leave out --gpu, and build there")
    for target in targets:
        if target not in known:
            raise UserError(unsupported(product, target))
        if int(target[3:]) < _OLDEST.get(precision, 0):
            raise UserError(f"{target} has no {precision}; choose another --precision, or sm_{_OLDEST[precision]} on")


def unsupported(product: Product, gpu: str) -> str:
    """That a GPU is none of the product's, and what to use instead."""
    kind = f" ({_UNSUPPORTED_BY_RTX[gpu]})" if gpu in _UNSUPPORTED_BY_RTX else ""
    return (
        f"{product.title} does not run on {gpu}{kind}; it knows {', '.join(product.architectures())}. "
        f"Use --target tensorrt there, or the engines graph and torch-segments, which need neither"
    )


def scratch_of(engine: Any) -> int:
    """Bytes an engine works in, at its largest sizes."""
    size = getattr(engine, "device_memory_size_v2", None)  # TensorRT 10.0 has the older name only
    return int(engine.device_memory_size if size is None else size)


def give_scratch(context: Any, address: int, nbytes: int) -> None:
    """Let a context work in this memory."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, nbytes)
    else:
        context.device_memory = address


def _imported(name: str) -> ModuleType:
    title = _TITLES[name]
    for module in _MODULES[name]:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise _without(title, f"the Python package '{error.name}'", name) from error
        except (ImportError, OSError, RuntimeError) as error:  # the package is there, its libraries are not
            raise _without(title, f"its libraries ({_line(error)})", name) from error
    raise _without(title, f"the Python package '{_MODULES[name][0]}'", name)


def _without(title: str, what: str, name: str) -> UserError:
    return UserError(f"{title} lacks {what}; run: {_INSTALL[name]}")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

"""One ONNX file to one plan, in a process of its own: a product that aborts, or runs out of memory, takes only that
process along, and the memory it used is known.

Networks are strongly typed: a plan's precision is that of its graph.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shotstream.export.engine_store.entry import Profile
from shotstream.export.trt.logger import joined, logger_of
from shotstream.export.trt.product import Product, load_product
from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import replace_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOrder:
    """What to build. profiles: for every input with free sizes. targets: GPU architectures; none: as the product does.

    timing_cache: file that spares TensorRT timing the same kernels again.
    """

    product: str
    onnx: str
    plan: str
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    timing_cache: str = ""


def build_apart(order: BuildOrder) -> dict[str, float]:
    """Build in a child process; `seconds` and `peak_mb` of it. UserError with the product's own words if it fails."""
    made = run_child("shotstream.export.trt.build", order, order)
    for line in made.pop("warnings"):
        log.info("%s: %s", Path(order.onnx).name, line)
    return made


def run_child(
    module: str, order: BuildOrder, request: Any, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a module as a program that is given `request` as json and ends with :func:`answer`; what it answered.

    environment: its variables; None: ours. UserError if the program dies, or answers with an error.
    """
    child = subprocess.run(
        [sys.executable, "-m", module],
        input=msgspec.json.encode(request),
        capture_output=True,
        check=False,
        env=environment,
    )
    name = Path(order.onnx).name
    if child.returncode < 0:
        raise UserError(
            f"building {name} was ended by signal {-child.returncode}; 9 mostly means that memory ran out, 6 that "
            f"{order.product} gave up: {_last_line(child.stderr)}"
        )
    with suppress(json.JSONDecodeError):
        said: dict[str, Any] = json.loads(child.stdout.splitlines()[-1] if child.stdout else "")
        if "error" in said:
            raise UserError(said["error"])
        return said
    raise UserError(f"building {name} failed: {_last_line(child.stderr)}")


def answer(order: BuildOrder, build: Callable[[], dict[str, Any]]) -> None:
    """In the child: build, and say what came of it, in how many seconds and MiB, as one line of json."""
    begun = time.perf_counter()
    try:
        said = build() | {"seconds": time.perf_counter() - begun, "peak_mb": _peak_mib()}
    except UserError as error:
        said = {"error": str(error)}
    except OSError as error:
        said = {"error": f"cannot write {order.plan}: {error.strerror}; free some space and run it again"}
    sys.stdout.write(json.dumps(said) + "\n")


def build_plan(product: Product, order: BuildOrder) -> list[str]:
    """Build in this process and write the plan; the product's warnings. UserError if it refuses."""
    trt = product.module
    logger = logger_of(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(product.network_flags())
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order.onnx):  # from the path, for the sake of weights in a file beside it
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise UserError(f"{product.title} cannot read {order.onnx}: {joined(errors or list(logger.said))}")
    config = builder.create_builder_config()
    _set_profile(builder, config, network, order.profiles)
    _set_targets(trt, config, order.targets)
    cache = _timing_cache(config, order)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"{product.title} {product.version} cannot build {order.onnx}: {joined(logger.said)}")
    Path(order.plan).write_bytes(memoryview(plan))
    if cache is not None:
        _save(cache, Path(order.timing_cache))
    return list(logger.said)


def _set_profile(builder: Any, config: Any, network: Any, profiles: Mapping[str, Profile]) -> None:
    names = [network.get_input(i).name for i in range(network.num_inputs)]
    if unknown := sorted(set(profiles) - set(names)):
        raise UserError(f"the graph has no input {', '.join(unknown)}; it has {', '.join(names)}")
    free = [name for i, name in enumerate(names) if -1 in tuple(network.get_input(i).shape)]
    if missing := [name for name in free if name not in profiles]:
        raise UserError(f"the graph's inputs {', '.join(missing)} have free sizes, and no range was given for them")
    if not free:
        return
    profile = builder.create_optimization_profile()
    for name in free:
        profile.set_shape(name, *profiles[name])
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"the ranges {dict(profiles)} do not fit the graph")


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    if targets:
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target[3:]}"), i)


def _timing_cache(config: Any, order: BuildOrder) -> Any:
    """One that was read from a file if it is any good, else a new one; None for a product without."""
    if not order.timing_cache:
        return None
    path = Path(order.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _save(cache: Any, path: Path) -> None:
    """It only spares time, so it is never a reason to fail."""
    try:
        replace_file(path, bytes(memoryview(cache.serialize())))
    except UserError as error:
        log.warning("%s", error)


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


def _peak_mib() -> float:
    """Of this process since it began; the system's usual figure counts its parent's memory too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _main() -> None:
    """The child process: an order on standard input."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildOrder)
    answer(order, lambda: {"warnings": build_plan(load_product(order.product), order)})


if __name__ == "__main__":
    _main()

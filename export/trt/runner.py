"""Segments as execution contexts of TensorRT or TensorRT-RTX, on the stream that torch is using.

Each segment has a context for every combination of sizes it meets, so that no shape changes while a CUDA graph is
captured or between its replays. Since segments run one after another, all contexts work in one scratch block, whose
size is fixed from the start. Outputs are torch's own memory: in a captured graph they are of the graph's pool.
One runner serves one thread and one stream at a time. It has never run on a GPU; tests run it on stand-ins.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.export.segments.cut import Signature
from shotstream.export.trt.logger import joined, logger_of
from shotstream.export.trt.product import Product, give_scratch, scratch_of
from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import replace_file

log = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes; of every address that a context is given."""

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Loaded:
    """An engine, and the dtypes of its inputs and outputs."""

    engine: Any
    dtypes: Mapping[str, torch.dtype]


class TrtRunner:
    """As `segments.cut.SegmentRunner`; inputs that a context cannot read in place are copied."""

    def __init__(
        self,
        product: Product,
        plans: Iterable[tuple[str, Callable[[], bytes]]],
        signatures: Mapping[str, Signature],
        device: torch.device,
        kernels: Path | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """plans: by segment, each read when its turn comes. kernels: file in which TensorRT-RTX keeps what it compiled.
        aliases: inputs that are written in place, by the name of the output.

        Raises UserError for a plan that this product and GPU do not take, or that is of another segment.
        """
        self.product, self.device = product, device
        self.signatures = signatures
        self._aliases = dict(aliases or {})
        self._logger = logger_of(product.module)
        self._runtime = product.module.Runtime(self._logger)
        self._engines = {name: self._loaded(name, plan()) for name, plan in plans}
        if lacking := sorted(set(signatures) - set(self._engines)):
            raise UserError(f"there are no engines of {', '.join(lacking)}")
        most = max(scratch_of(loaded.engine) for loaded in self._engines.values())
        self._scratch = torch.empty(max(most, ALIGNMENT), dtype=torch.uint8, device=device)
        self._kernels = _Kernels.of(product, [loaded.engine for loaded in self._engines.values()], kernels)
        self._contexts: dict[tuple[Any, ...], Any] = {}

    @property
    def scratch_bytes(self) -> int:
        """Of the block that all contexts share."""
        return self._scratch.numel()

    def __call__(self, name: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Queue the segment up on torch's current stream."""
        signature, dtypes = self.signatures[name], self._engines[name].dtypes
        # A graph may have an input that nothing in it reads, and then its engine may lack it.
        given = {
            port: self._readable(name, port, tensor, dtypes[port])
            for port, tensor in zip(signature.inputs, inputs, strict=True)
            if port in dtypes
        }
        shapes = tuple(tuple(tensor.shape) for tensor in given.values())
        context = self._contexts.get((name, shapes))
        if context is None:
            context = self._contexts[name, shapes] = self._context(name, given)
        outputs = [
            given[self._aliases[port]]
            if port in self._aliases
            else torch.empty(tuple(context.get_tensor_shape(port)), dtype=dtypes[port], device=self.device)
            for port in signature.outputs
        ]
        for port, tensor in (*given.items(), *zip(signature.outputs, outputs, strict=True)):
            if not context.set_tensor_address(port, tensor.data_ptr()):
                raise self._failed(name, f"take {port}")
        stream = self._stream()
        if _capturing() and hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
            raise UserError(
                f"{self.product.title} cannot be captured in {name}; give the engine the option capture=false"
            )
        if not context.execute_async_v3(stream):
            raise self._failed(name, "run")
        return outputs

    # -------------------------------------------------------------------------------- engines and contexts
    def _loaded(self, name: str, plan: bytes) -> _Loaded:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise UserError(
                f"{self.product.title} {self.product.version} does not take the engine of {name} on this GPU: "
                f"{joined(self._logger.said)}; build it here with: shotstream export engines"
            )
        output = self.product.module.TensorIOMode.OUTPUT
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        outputs = [port for port in names if engine.get_tensor_mode(port) == output]
        expected = self.signatures[name]
        strange = [port for port in names if port not in (*expected.inputs, *expected.outputs)]
        if strange or set(outputs) != set(expected.outputs):
            raise UserError(
                f"the engine of {name} is of something else: it has {', '.join(names)}, and not "
                f"{', '.join((*expected.inputs, *expected.outputs))}"
            )
        return _Loaded(engine, {port: _DTYPES[engine.get_tensor_dtype(port).name] for port in names})

    def _context(self, name: str, given: Mapping[str, Tensor]) -> Any:
        engine = self._engines[name].engine
        context = self._kernels.context(engine, self.product.module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._failed(name, "set up")
        give_scratch(context, self._scratch.data_ptr(), self.scratch_bytes)
        for port, tensor in given.items():
            if not context.set_input_shape(port, tuple(tensor.shape)):
                least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(port, 0))
                raise UserError(
                    f"the engine of {name} does not take {port} of {_sizes(tensor.shape)}; it was built for "
                    f"{_sizes(least)} to {_sizes(most)}"
                )
        return context

    def _readable(self, name: str, port: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor, or a copy that lies as contexts want it."""
        if tensor.dtype != dtype:
            raise UserError(f"the engine of {name} takes {port} as {dtype}, and it is {tensor.dtype}")
        if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
            return tensor
        if port in self._aliases.values():
            raise ValueError(f"{port} of {name} is written in place, and does not lie as contexts want it")
        return tensor.clone(memory_format=torch.contiguous_format)

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def _failed(self, name: str, what: str) -> UserError:
        return UserError(f"{self.product.title} could not {what} in {name}: {joined(self._logger.said)}")


class _Kernels:
    """What TensorRT-RTX compiled for this GPU, kept from one start to the next. Without: contexts as they are."""

    def __init__(self, configs: dict[int, Any]) -> None:
        self._configs = configs

    @classmethod
    def of(cls, product: Product, engines: Sequence[Any], path: Path | None) -> _Kernels:
        if path is None or not hasattr(product.module, "IRuntimeCache"):
            return cls({})
        configs = {id(engine): engine.create_runtime_config() for engine in engines}
        cache = next(iter(configs.values())).create_runtime_cache()
        if path.exists() and not cache.deserialize(path.read_bytes()):
            log.info("%s is of another GPU or driver; its kernels are compiled again", path)
        for config in configs.values():
            config.set_runtime_cache(cache)
        made = cls(configs)
        weakref.finalize(made, _keep, cache, path)
        return made

    def context(self, engine: Any, strategy: Any) -> Any:
        config = self._configs.get(id(engine))
        if config is None:
            return engine.create_execution_context(strategy)
        config.set_execution_context_allocation_strategy(strategy)
        return engine.create_execution_context(config)


def _keep(cache: Any, path: Path) -> None:
    """It only spares compiling, so it is never a reason to fail."""
    try:
        replace_file(path, bytes(memoryview(cache.serialize())))
    except UserError as error:
        log.warning("%s", error)


def _capturing() -> bool:
    """Whether the current stream's work becomes a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(str(size) for size in shape)

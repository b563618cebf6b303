"""A stand-in for TensorRT-RTX's Python module: that of TensorRT, and what only TensorRT-RTX has."""

from __future__ import annotations

import enum
from typing import Any

import tensorrt as base
from tensorrt import *  # noqa: F403
from tensorrt import ICudaEngine, IExecutionContext

__version__ = "1.7.1"

capturable = True
"""Whether contexts say that they can be captured."""


class ComputeCapability(enum.IntEnum):
    SM89 = 3
    SM120 = 4


class IRuntimeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return self.kernels

    def deserialize(self, blob: bytes) -> bool:
        self.kernels = blob if blob.startswith(b"kernels") else b""
        return bool(self.kernels)


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cache: IRuntimeCache | None = None
        self.strategy: Any = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class _Context(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return capturable


class _Engine(ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig) -> IExecutionContext:
        assert config.strategy == base.ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.cache is not None
        base.calls.append(("kernels", config.cache.kernels))
        config.cache.kernels += b"kernels "  # each new context compiles some
        return _Context(self)


class Runtime(base.Runtime):
    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        engine = super().deserialize_cuda_engine(plan)
        return None if engine is None else _Engine(plan)

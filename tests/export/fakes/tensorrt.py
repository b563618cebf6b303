"""A stand-in for TensorRT's Python module: the calls that the adapter makes, carried out by ONNX Runtime on a CPU.

A plan is the ONNX model itself behind a mark. Contexts read and write memory by address and refuse what the product
refuses: sizes out of range, addresses that were not given or are not aligned, memory to work in that is too small.
tests/export/test_trt_adapter.py holds the names used here against the real bindings that are installed.
"""

from __future__ import annotations

import ctypes
import enum
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "11.4.0.106"
MARK = b"FAKEPLAN"
SCRATCH = 4096
ALIGNMENT = 64  # of torch's memory on a CPU

calls: list[tuple[Any, ...]] = []
"""What contexts were asked to do, in order."""
failing: set[str] = set()
"""Inputs or outputs that make a context fail."""


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT64 = 3


_TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 16: DataType.BF16, 7: DataType.INT64}
_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class _Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    ERROR, WARNING = _Severity.ERROR, _Severity.WARNING

    def __init__(self) -> None: ...

    def log(self, severity: Any, message: str) -> None: ...


# ------------------------------------------------------------------------------------ building
class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> Any:
        return _Tensor(self.model.graph.input[index])


class _Tensor:
    def __init__(self, value: Any) -> None:
        self.name = value.name
        kind = value.type.tensor_type
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        self.dtype = _TYPES[kind.elem_type]


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self.network = network
        self.num_errors = 0

    def parse_from_file(self, model: str) -> bool:
        try:
            self.network.model = onnx.load(model)
        except Exception:
            self.num_errors = 1
            return False
        return True

    def get_error(self, index: int) -> Any:
        return _ParserError()


class _ParserError:
    def desc(self) -> str:
        return "this is no model"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+"


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        return not cache.data.startswith(b"foreign")


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        if len(network.model.graph.node) == 0:
            self.logger.log(ILogger.ERROR, "the network is empty")
            return None
        shapes = json.dumps(config.profiles[0].shapes if config.profiles else {}).encode()
        return MARK + len(shapes).to_bytes(4, "little") + shapes + network.model.SerializeToString()


# ------------------------------------------------------------------------------------ running
class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if not plan.startswith(MARK):
            self.logger.log(ILogger.ERROR, "the plan has another magic tag")
            return None
        return ICudaEngine(plan)


class ICudaEngine:
    def __init__(self, plan: bytes) -> None:
        at = len(MARK) + 4
        size = int.from_bytes(plan[len(MARK) : at], "little")
        self.profile = {name: [tuple(s) for s in shapes] for name, shapes in json.loads(plan[at : at + size]).items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan[at + size :], options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(plan[at + size :]).graph
        self.inputs = {value.name: _Tensor(value) for value in graph.input}
        self.outputs = {value.name: _Tensor(value) for value in graph.output}

    device_memory_size_v2 = SCRATCH

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return {**self.inputs, **self.outputs}[name].dtype

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return self.profile[name]

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.shapes = {name: tensor.shape for name, tensor in engine.inputs.items()}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        calls.append(("context", id(self), id(engine)))

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)
        calls.append(("scratch", id(self), memory, size))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profile.get(name, [self.engine.inputs[name].shape] * 3)
        calls.append(("shape", id(self), name, shape))
        if len(shape) != len(least) or any(not a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output: free sizes are all the number of frames here."""
        if name in self.shapes:
            return self.shapes[name]
        frames = next((self.shapes[i][0] for i in self.engine.inputs if not i.startswith("ctx")), -1)
        return tuple(frames if size == -1 else size for size in self.engine.outputs[name].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT or name in failing:
            return False
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self.engine
        calls.append(("run", id(self), stream_handle))
        assert self.scratch is not None, "a context without memory"
        assert self.scratch[1] >= engine.device_memory_size_v2, "too little memory"
        assert set(self.addresses) == {*engine.inputs, *engine.outputs}, "an address is missing"
        if "run" in failing:
            return False
        fed = {name: _at(self.addresses[name], self.shapes[name], tensor) for name, tensor in engine.inputs.items()}
        made = engine.session.run(list(engine.outputs), {name: array.copy() for name, array in fed.items()})
        for (name, tensor), array in zip(engine.outputs.items(), made, strict=True):
            assert self.get_tensor_shape(name) == array.shape
            _at(self.addresses[name], array.shape, tensor)[...] = array
        return True


def _at(address: int, shape: tuple[int, ...], tensor: _Tensor) -> np.ndarray:
    kind = np.dtype(_NUMPY[tensor.dtype])
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)

"""What is missing for a product is said exactly, and which GPUs it knows; the stand-in has real names only."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trt_files import FAKES, fake_tensorrt

from shotstream.export.trt import product as products
from shotstream.export.trt.product import (
    RTX,
    TENSORRT,
    Product,
    check_targets,
    give_scratch,
    load_product,
    missing_to_build,
    scratch_of,
)
from shotstream.runtime.errors import UserError

KNOWN = {"SM75": 0, "SM80": 1, "SM89": 2, "SM120": 3, "CURRENT": 4}
A_RTX = Product(RTX, SimpleNamespace(__version__="1.7.1", ComputeCapability=SimpleNamespace(__members__=KNOWN)))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_a_missing_package_a_missing_library_and_a_missing_driver_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "missing_driver", lambda: "there is no NVIDIA driver")
    monkeypatch.setitem(products._MODULES, TENSORRT, ("tensorrt_of_this_test",))
    package, driver = missing_to_build(TENSORRT)
    assert package == "TensorRT lacks the Python package 'tensorrt_of_this_test'; run: pip install tensorrt"
    assert driver == "there is no NVIDIA driver"

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tensorrt_of_this_test.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    library, _ = missing_to_build(TENSORRT)
    assert library.startswith("TensorRT lacks its libraries (libnvinfer.so.11: cannot open)")

    (tmp_path / "tensorrt_of_this_test.py").write_text("import a_part_of_it")
    part, _ = missing_to_build(TENSORRT)
    assert part.startswith("TensorRT lacks the Python package 'a_part_of_it'")


def test_a_version_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    product = fake_tensorrt(monkeypatch)
    monkeypatch.setattr(product.module, "__version__", "9.3.0")
    with pytest.raises(UserError, match=r"TensorRT 9\.3\.0 is installed, and 10\.x and 11\.x are known"):
        load_product(TENSORRT)
    with pytest.raises(UserError, match="there is no engine product 'openvino'; there is tensorrt, tensorrt-rtx"):
        load_product("openvino")


def test_a_machine_without_a_driver_is_told_so() -> None:
    assert products.missing_driver() == "" or "driver" in products.missing_driver()


@pytest.mark.parametrize(
    ("targets", "precision", "message"),
    [
        (
            ("sm_90",),
            "bfloat16",
            r"TensorRT-RTX does not run on sm_90 \(Hopper\); it knows sm_75, sm_80, sm_89, sm_120",
        ),
        (("sm_89", "hopper"), "bfloat16", "TensorRT-RTX does not run on hopper"),
        (("sm_75",), "bfloat16", "sm_75 has no bfloat16; choose another --precision, or sm_80 on"),
        (("sm_120", "sm_80"), "float8", "sm_80 has no float8; choose another --precision, or sm_89 on"),
    ],
)
def test_gpus_it_does_not_build_for_are_refused(targets: tuple[str, ...], precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_targets(A_RTX, targets, precision)


def test_gpus_it_builds_for_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    check_targets(A_RTX, (), "bfloat16")
    check_targets(A_RTX, ("sm_75",), "float16")
    check_targets(A_RTX, ("sm_89", "sm_120"), "float8")
    with pytest.raises(UserError, match="TensorRT builds for the GPU of this machine only; leave out --gpu"):
        check_targets(fake_tensorrt(monkeypatch), ("sm_90",), "bfloat16")


def test_older_names_of_scratch_memory_are_known() -> None:
    assert scratch_of(SimpleNamespace(device_memory_size=5)) == 5
    assert scratch_of(SimpleNamespace(device_memory_size=5, device_memory_size_v2=6)) == 6
    context = SimpleNamespace()
    give_scratch(context, 4096, 100)
    assert context.device_memory == 4096


USED = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "IBuilderConfig": ("add_optimization_profile", "create_timing_cache", "set_timing_cache"),
    "IOptimizationProfile": ("set_shape",),
    "INetworkDefinition": ("num_inputs", "get_input"),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_profile_shape",
        "device_memory_size_v2", "create_execution_context",
    ),
    "IExecutionContext": (
        "set_device_memory", "set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3",
    ),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("OUTPUT",),
    "DataType": ("FLOAT", "HALF", "BF16", "INT64"),
    "ILogger": ("ERROR", "WARNING", "log"),
}  # fmt: skip
ONLY_RTX = {
    "ComputeCapability": ("SM89", "SM120"),
    "IBuilderConfig": ("set_compute_capability", "num_compute_capabilities"),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeCache": ("serialize", "deserialize"),
    "IRuntimeConfig": ("create_runtime_cache", "set_runtime_cache", "set_execution_context_allocation_strategy"),
}


def test_the_names_we_use_are_those_of_the_installed_bindings() -> None:
    if missing_to_build(RTX):
        pytest.skip("TensorRT-RTX is not installed")
    module: Any = load_product(RTX).module
    for names in (USED, ONLY_RTX):
        for kind, members in names.items():
            for member in members:
                assert hasattr(getattr(module, kind), member), f"{kind}.{member}"


def test_the_stand_in_offers_what_we_use_and_nothing_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (FAKES / "tensorrt.py").exists()
    fake: Any = fake_tensorrt(monkeypatch).module
    real: Any = None if missing_to_build(RTX) else load_product(RTX).module
    for kind, members in USED.items():
        for member in members:
            if (kind, member) != ("OnnxParser", "num_errors"):  # an instance's there
                assert hasattr(getattr(fake, kind), member), f"{kind}.{member}"
        if real is not None:
            public = {name for name in vars(getattr(fake, kind)) if not name.startswith("_")}
            assert not [name for name in public if not hasattr(getattr(real, kind), name)]

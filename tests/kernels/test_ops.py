"""The operations `triton` and the engine on top of them: the interpreter in a process of its own, and the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shotstream.kernels.plugin import KernelsPlugin
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import DeviceNoise
from shotstream.runtime.plugins import Registry

HERE = Path(__file__).parent
CUDA = torch.device("cuda")


@pytest.mark.parametrize("file", ["interpreted_ops.py", "interpreted_graph.py"])
def test_kernels_in_the_place_of_torchs_operations(file: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def refusal(slot: str, name: str, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        Registry([KernelsPlugin()]).factory(slot, name)(*arguments)
    return str(caught.value)


def test_what_cannot_run_here_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for slot, name, arguments in (
        ("attention", "triton", ()), ("attention", "flash", ()), ("ops", "triton", (CUDA,)),
    ):  # fmt: skip
        said = refusal(slot, name, *arguments)
        assert "needs a CUDA device and torch sees none; choose another" in said
        assert f"'{name}'" in said
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs Triton; install shotstream[gpu]" in refusal("attention", "triton")
    assert "needs Triton; install shotstream[gpu]" in refusal("ops", "triton", CUDA)


def test_the_wrong_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "an old one")
    assert "needs a CUDA device, not cpu" in refusal("ops", "triton", torch.device("cpu"))
    assert "of capability 8.0 or newer and an old one has (7, 5)" in refusal("ops", "triton", CUDA)
    assert "capability 8.0 or newer" in refusal("attention", "flash")


@pytest.mark.parametrize(("capability", "eight_bit"), [((8, 6), False), ((9, 0), True)])
def test_eight_bits_only_where_the_hardware_knows_them(
    capability: tuple[int, int], eight_bit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    registry = Registry([KernelsPlugin()])
    assert registry.factory("attention", "triton")().eight_bit == eight_bit
    ops = registry.factory("ops", "triton")(CUDA)
    assert (ops.name, isinstance(ops, DeviceNoise), ops.eight_bit) == ("triton", True, eight_bit)

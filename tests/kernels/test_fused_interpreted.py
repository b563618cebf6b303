"""The small kernels on a CPU: everything in `interpreted_fused_*.py`, in a process where Triton runs its interpreter.

A process of its own, because Triton decides at its first import whether it interprets or compiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_small_kernels_agree_with_torch_and_with_the_model_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    files = sorted(map(str, HERE.glob("interpreted_fused_*.py")))
    assert len(files) == 6
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]

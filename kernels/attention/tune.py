"""``python -m shotstream.kernels.attention.tune``: try configurations on this GPU and write its tuning file.

Run offline, on the GPU that the file is for; sessions only read it. A configuration counts only if its result is as
near to float64 as torch's own in the same dtype, three times in a row with the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shotstream.kernels.attention import config as tuning
from shotstream.kernels.attention.bench import median_seconds, relative_error
from shotstream.kernels.attention.bench_calls import chunk_shape, exact_result, inputs
from shotstream.kernels.attention.config import Config
from shotstream.kernels.attention.scales import FP8, Scales, empty_values, quantise
from shotstream.kernels.attention.wrapper import cache_attention
from shotstream.kernels.sizes import EMBEDDED, WAN

SLACK = 1.5
"""How many times torch's error is accepted in 16 bits."""
FP8_ERROR = 0.08
"""The relative error that is accepted in float8."""
SHAPES = {sizes.config.head_dim: chunk_shape(sizes, 3) for sizes in (WAN, EMBEDDED)}
"""What is timed, by head width: the middle of a shot."""


def candidates(path: tuning.Path_, dtype: torch.dtype) -> Iterator[Config]:
    """Every configuration that is tried."""
    if dtype == torch.float32:
        return
    if path == "pointer":
        for block_k, warps, stages in itertools.product((32, 64, 128), (4, 8), (2, 3, 4)):
            yield Config("pointer", 128, block_k, warps, stages)
        return
    for specialise, block_k, warps, stages in itertools.product((True, False), (64, 128), (4, 8), (2, 3, 4)):
        config = Config("descriptor", 128, block_k, warps, stages, specialise)
        yield config
        yield replace(config, persistent=True)


def tune(head_dim: int, dtype: torch.dtype, path: tuning.Path_, said: list[str]) -> Config | None:
    """The quickest correct configuration on this GPU, None if none runs; what was tried is added to ``said``."""
    shape = SHAPES[head_dim]
    query = torch.bfloat16 if dtype == FP8 else dtype
    q, k, v = inputs(shape, "cuda", query, seed=1)
    exact = exact_result(q, k, v, shape.keys)
    k_n, v_n = k[:, : shape.keys], v[:, : shape.keys]
    theirs = scaled_dot_product_attention(q.transpose(1, 2), k_n.transpose(1, 2), v_n.transpose(1, 2))
    allowed = FP8_ERROR if dtype == FP8 else SLACK * relative_error(theirs.transpose(1, 2), exact)
    scales = None
    if dtype == FP8:
        k, k_scale = quantise(k)
        v, v_scale = quantise(v)
        if path == "descriptor":
            v = empty_values(1, shape.capacity, shape.heads, head_dim, "cuda").copy_(v)
        scales = Scales(k_scale, v_scale)
    length = torch.tensor([shape.keys], dtype=torch.int32, device="cuda")
    best: tuple[float, Config | None] = (float("inf"), None)
    for config in candidates(path, dtype):

        def call(chosen: Config = config) -> Tensor:
            return cache_attention(q, k, v, length, scales=scales, config=chosen)

        try:
            outs = [call() for _ in range(3)]
            error = relative_error(outs[0], exact)
            if not error <= allowed or not all(torch.equal(outs[0], out) for out in outs):
                said.append(f"{config}: wrong, error {error:.2e}, allowed {allowed:.2e}")
                continue
            seconds = median_seconds(call, "cuda", 10)
        except Exception as error:
            said.append(f"{config}: {(str(error).strip().splitlines() or ['failed'])[0][:100]}")
            continue
        said.append(f"{config}: {seconds * 1e3:.3f} ms, {shape.flops / seconds / 1e12:.0f} TFLOP/s")
        best = min(best, (seconds, config), key=lambda pair: pair[0])
    return best[1]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m shotstream.kernels.attention.tune", description=__doc__)
    parser.add_argument("--out", type=Path, help="the file to write; default sm_NN.json in this folder")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("tuning needs a CUDA device and torch sees none\n")
        return 2
    capability = torch.cuda.get_device_capability()
    arch = tuning.nearest_architecture(capability)
    if arch is None:
        sys.stderr.write(f"GPUs of capability {capability} are too old\n")
        return 2
    configs = dict(tuning.configs_of(arch))
    for name in configs:
        head_dim, dtype = name.split("/")[1:]
        said: list[str] = []
        chosen = tune(int(head_dim), getattr(torch, dtype), configs[name].path, said)
        configs[name] = chosen or configs[name]
        sys.stdout.write("\n".join([f"{name}: {configs[name]}", *(f"  {line}" for line in said)]) + "\n")
    note = f"Measured on {torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}."
    file = given.out or Path(f"sm_{capability[0]}{capability[1]}.json")
    file.write_text(tuning.dump(configs, note))
    sys.stdout.write(f"wrote {file}; put it into kernels/attention/tuning\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Time and error of cache attention on our shapes, beside torch's own backends. Needs torch and Triton only.

``python -m shotstream.kernels.attention.bench`` prints the table and writes json with ``--json``. Times are medians of
single calls between two events, after a warm-up, the L2 cache overwritten before each; the error is against float64
and stands beside the one of torch's mathematics in the same dtype.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from shotstream.kernels.attention.reference import reference_attention
from shotstream.kernels.attention.scales import FP8, Scales, empty_values, quantise
from shotstream.kernels.sizes import WAN, ModelSizes


@dataclass(frozen=True)
class Shape:
    """One call: a chunk's queries over the first ``keys`` of a buffer of ``capacity``."""

    name: str
    queries: int
    keys: int
    capacity: int
    heads: int
    head_dim: int

    @property
    def flops(self) -> int:
        """Two products, two operations per multiply-add; the softmax is not counted."""
        return 4 * self.queries * self.keys * self.heads * self.head_dim


def chunk_shape(sizes: ModelSizes, chunk: int) -> Shape:
    """A denoising step of a shot's chunk 0, 1, ...: its queries see the context, the chunks before and their own."""
    keys = sizes.context_tokens + (chunk + 1) * sizes.chunk_tokens
    heads, head_dim = sizes.config.heads, sizes.config.head_dim
    return Shape(f"chunk {chunk}", sizes.chunk_tokens, keys, sizes.capacity, heads, head_dim)


def shapes_of(sizes: ModelSizes) -> tuple[Shape, ...]:
    """The calls of one shot: its chunks until the local cache is full, and the context pass."""
    config, context = sizes.config, sizes.context_tokens
    chunks = config.local_frames // config.chunk_frames
    own = Shape("context", context, context, sizes.capacity, config.heads, config.head_dim)
    return (*(chunk_shape(sizes, chunk) for chunk in range(chunks)), own)


SHAPES = shapes_of(WAN)
"""What is measured if nothing else is asked for."""


@dataclass(frozen=True)
class Result:
    """One implementation on one shape."""

    shape: str
    name: str
    milliseconds: float
    tflops: float
    error: float
    """Root of the mean square difference to float64, relative to the root mean square of float64."""
    note: str = ""


def measure(
    shapes: Sequence[Shape] = SHAPES,
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    fp8: bool = True,
    repeats: int = 20,
) -> list[Result]:
    """Every implementation that runs on ``device``, on every shape; one that fails is listed with its reason."""
    results = []
    for number, shape in enumerate(shapes):
        q, k, v = inputs(shape, device, dtype, seed=number)
        exact = exact_result(q, k, v, shape.keys)
        for name, call in _implementations(q, k, v, shape, fp8=fp8).items():
            try:
                out = call()
                seconds = median_seconds(call, device, repeats)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
                results.append(Result(shape.name, name, float("nan"), float("nan"), float("nan"), reason))
                continue
            rate = shape.flops / seconds / 1e12
            results.append(Result(shape.name, name, seconds * 1e3, rate, relative_error(out, exact)))
        del q, k, v, exact
    return results


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of ``exact``, both ``[B, L, H, K]``."""
    difference = out.double() - exact.double()
    return float(difference.square().mean().sqrt() / exact.double().square().mean().sqrt())


def table(results: Sequence[Result]) -> str:
    """A Markdown table."""
    lines = ["| shape | implementation | ms | TFLOP/s | error to float64 |", "|---|---|---|---|---|"]
    for r in results:
        said = r.note or f"{r.error:.2e}"
        lines.append(f"| {r.shape} | {r.name} | {r.milliseconds:.3f} | {r.tflops:.0f} | {said} |")
    return "\n".join(lines)


def inputs(shape: Shape, device: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (shape.queries, shape.capacity, shape.capacity)
    made = [
        torch.randn((1, size, shape.heads, shape.head_dim), generator=generator, device=device).to(dtype)
        for size in sizes
    ]
    return made[0], made[1], made[2]


def exact_result(q: Tensor, k: Tensor, v: Tensor, keys: int) -> Tensor:
    """Float64, head by head: all heads at once are tens of gigabytes of scores."""
    heads = [
        reference_attention(q[:, :, h : h + 1], k[:, :, h : h + 1], v[:, :, h : h + 1], keys, dtype=torch.float64)
        for h in range(q.shape[2])
    ]
    return torch.cat(heads, dim=2).float()


def _implementations(q: Tensor, k: Tensor, v: Tensor, shape: Shape, *, fp8: bool) -> dict[str, Callable[[], Tensor]]:
    k_n, v_n = k[:, : shape.keys], v[:, : shape.keys]

    def torch_backend(backend: SDPBackend) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(q.transpose(1, 2), k_n.transpose(1, 2), v_n.transpose(1, 2))
            return out.transpose(1, 2)

        return call

    found: dict[str, Callable[[], Tensor]] = {}
    if q.is_cuda:
        from shotstream.kernels.attention.wrapper import cache_attention

        length = torch.tensor([shape.keys], dtype=torch.int32, device=q.device)
        found["triton"] = lambda: cache_attention(q, k, v, length)
        if fp8 and torch.cuda.get_device_capability(q.device) >= (8, 9):
            k8, k_scale = quantise(k)
            v8, v_scale = quantise(v)
            laid = empty_values(1, shape.capacity, shape.heads, shape.head_dim, q.device)
            laid.copy_(v8)
            scales = Scales(k_scale, v_scale)
            found[f"triton {str(FP8).removeprefix('torch.')}"] = lambda: cache_attention(
                q, k8, laid, length, scales=scales
            )
        found["torch cudnn"] = torch_backend(SDPBackend.CUDNN_ATTENTION)
        found["torch efficient"] = torch_backend(SDPBackend.EFFICIENT_ATTENTION)
    found["torch flash"] = torch_backend(SDPBackend.FLASH_ATTENTION)
    if not q.is_cuda:
        found["torch math"] = torch_backend(SDPBackend.MATH)
    return found


def median_seconds(call: Callable[[], Tensor], device: str, repeats: int) -> float:
    for _ in range(3):
        call()
    times = []
    if torch.device(device).type != "cuda":
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    flush = torch.empty(2**28, dtype=torch.int8, device=device)
    for _ in range(repeats):
        flush.zero_()
        begin_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin_event.record()
        call()
        end_event.record()
        end_event.synchronize()
        times.append(begin_event.elapsed_time(end_event) / 1e3)
    return statistics.median(times)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m shotstream.kernels.attention.bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("the benchmark needs a CUDA device and torch sees none\n")
        return 2
    results = measure(repeats=given.repeats)
    sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n{table(results)}\n")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

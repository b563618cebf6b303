"""The models' part of the GPU suite: one model, loaded once, played through every engine that is there.

Writes one ``bench-<model>-<engine>.json`` each, as `shotstream bench` does, and ``bench-<model>.txt``: the table.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.bench.measure import BENCH_STORY, measure
from shotstream.runtime.bench.report import BenchReport, write_json
from shotstream.runtime.bench.text import columns
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts, Registry
from shotstream.runtime.presets import DEFAULT_PLUGINS
from shotstream.runtime.runtime import Runtime

KERNELS = "shotstream.kernels.plugin:KernelsPlugin"
EXPORT = "shotstream.export.plugin:ExportPlugin"


@dataclass(frozen=True)
class Variant:
    """One way to run the model."""

    name: str
    engine: str
    attention: str = "sdpa"
    ops: str = "torch"
    fp8: str = "none"
    decoder: str = "taehv"
    shots: int = 2


VARIANTS = (
    Variant("eager", "eager"),
    Variant("graph", "graph"),
    Variant("graph-ops", "graph", ops="triton"),
    Variant("graph-triton", "graph", "triton", "triton", shots=20),
    Variant("graph-fp8-cache", "graph", "triton", "triton", "cache"),
    Variant("graph-fp8-linears", "graph", "triton", "triton", "linears"),
    Variant("graph-fp8", "graph", "triton", "triton", "all", shots=20),
    Variant("segments-triton", "torch-segments", "triton", "triton"),  # what the cut costs, without a foreign engine
    Variant("graph-wan-vae", "graph", "triton", "triton", decoder="wan-vae"),
)


@dataclass
class Loaded:
    """A plugin that hands out a model that is there already."""

    name: str = "loaded"
    parts: dict[str, ModelParts] = field(default_factory=dict)

    def build(self, registry: Registry) -> None:
        registry.register("model", "loaded", lambda request: self.parts["model"])


def load(model: str, device: str, decoder: str) -> ModelParts:
    """The model with random weights; the decoder is a choice of the real one only."""
    options = {"decoder": decoder} if model != "tiny" else {}
    weights = "random" if model != "tiny" else "default"
    runtime = Runtime(model, plugins=list(DEFAULT_PLUGINS), device=device, weights=weights, model_options=options)
    return runtime.parts


def play(runtime: Runtime) -> Tensor:
    """Latents of one first shot of three chunks: what variants are compared by."""
    made: list[Tensor] = []
    engine: Any = runtime.engine
    name = "finish" if hasattr(engine, "finish") else "denoise"
    real = getattr(engine, name)

    def noted(*arguments: Any) -> Tensor:
        made.append(real(*arguments))
        return made[-1]

    setattr(engine, name, noted)
    with runtime.open(BENCH_STORY.global_caption, seed=7) as session:
        session.begin_shot(BENCH_STORY.shots[0].caption, 3)
        for _ in session.chunks():
            pass
    setattr(engine, name, real)
    return torch.cat([z.double().cpu() for z in made], dim=1)


def bench(variant: Variant, loaded: Loaded, device: str, shots: int | None, chunks: int) -> tuple[BenchReport, Tensor]:
    """One variant: its report and its latents."""
    with Runtime(
        "loaded",
        plugins=[*DEFAULT_PLUGINS, KERNELS, EXPORT, loaded],
        device=device,
        engine=variant.engine,
        attention=variant.attention,
        ops=variant.ops,
        engine_options={"fp8": variant.fp8} if variant.engine == "graph" else {},
    ) as runtime:
        runtime.warm_up()
        latents = play(runtime)
        history = importlib.util.find_spec("msgspec") is not None
        report = measure(runtime, shots=shots or variant.shots, chunks=chunks, history=history)
        return report, latents


def row(name: str, report: BenchReport, error: float) -> list[str]:
    """One line of the table."""
    positions = report.summary.positions
    first, last = positions[0], positions[-1]
    frames = sum(sample.frames for sample in report.samples)
    seconds = sum(sample.took_s for sample in report.samples)
    by_shot = {s.shot: 0.0 for s in report.samples}
    for sample in report.samples:
        by_shot[sample.shot] += sample.took_s if sample.chunk else 0.0
    late = f"{by_shot[max(by_shot)] / by_shot[1]:.3f}" if len(by_shot) > 2 and by_shot[1] else ""
    return [
        name,
        f"{frames / seconds:.1f}",
        f"{first.time.p50_ms:.0f}",
        f"{last.time.p50_ms:.0f}",
        f"{max(p.time.max_ms for p in positions):.0f}",
        f"{error:.1e}",
        late,
        f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if report.setting.device == "cuda" else "",
    ]


HEAD = ["variant", "fps", "first ms", "last chunk ms", "worst ms", "error", "shot 20/2", "GB"]


def main(arguments: list[str] | None = None) -> int:
    """Run every variant that this machine can; the exit code is 1 if none could or one broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wan-1.3b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shots", type=int, help="of every variant; default: each its own")
    parser.add_argument("--chunks", type=int, default=7)
    parser.add_argument("--variant", default="", help="only variants with this in their name")
    given = parser.parse_args(arguments)
    rows, broken, reference = [HEAD], 0, None
    parts: dict[str, ModelParts] = {}
    for variant in (each for each in VARIANTS if given.variant in each.name):
        begin = time.monotonic()
        try:
            decoder = "tiny-vae" if given.model == "tiny" else variant.decoder
            if given.model == "tiny" and variant.decoder != "taehv":
                continue
            if decoder not in parts:
                parts[decoder] = _with_decoder(given.model, given.device, decoder, parts)
            loaded = Loaded(parts={"model": parts[decoder]})
            report, latents = bench(variant, loaded, given.device, given.shots, given.chunks)
        except UserError as error:
            rows.append([variant.name, f"not here: {error}"])
            continue
        except Exception as error:  # one variant that breaks must not cost the others their figures
            broken += 1
            rows.append([variant.name, f"broke: {type(error).__name__}: {str(error).splitlines()[0][:150]}"])
            continue
        finally:
            gc.collect()
            sys.stdout.write(f"{variant.name}: {time.monotonic() - begin:.1f} s\n")
        reference = latents if reference is None else reference
        rows.append(row(variant.name, report, float((latents - reference).norm() / reference.norm())))
        write_json(report, given.out / f"bench-{given.model}-{variant.name}.json")
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        (given.out / f"bench-{given.model}.txt").write_text("\n".join(_table(rows)) + "\n")
    sys.stdout.write("\n".join(_table(rows)) + "\n")
    return 1 if broken or reference is None else 0


def _with_decoder(model: str, device: str, decoder: str, parts: dict[str, ModelParts]) -> ModelParts:
    """Load the model, or only a further decoder to one that is there."""
    if not parts:
        return load(model, device, decoder)
    from shotstream.runtime.plugins import ModelRequest

    first = next(iter(parts.values()))
    dtype = next(first.transformer.parameters()).dtype
    request = ModelRequest(device=torch.device(device), dtype=dtype, weights="random")
    made = Registry(list(DEFAULT_PLUGINS)).factory("decoder", decoder)(request)
    return replace(first, decoder=made)


def _table(rows: list[list[str]]) -> list[str]:
    whole = [each for each in rows if len(each) == len(HEAD)]
    notes = [": ".join(each) for each in rows if len(each) != len(HEAD)]
    return [*columns(whole), *notes, "error: latents of a first shot against the first variant's, relative"]


if __name__ == "__main__":
    sys.exit(main())

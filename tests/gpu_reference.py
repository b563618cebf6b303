"""The public reference's own loop beside our engines, in one process: the same weights, noise and context frames.

``git clone https://github.com/KlingAIResearch/ShotStream`` gets the reference, and `gpu_reference_loop` imports it from
that folder. Weights are random; nothing is downloaded. Timed are the context pass, the denoising steps and the clean
passes of a shot. **Text encoder and decoding are in no figure**, of neither side. Ours embeds captions in the context
pass, as the reference does; it skips the clean pass after a shot's last chunk, which nothing reads, and as noise takes
what the reference drew. Latents of both sides are compared: ``--toy`` does that in float32 on a small model and any
machine, and is the check; in bfloat16 rounding hides all but gross mistakes.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from gpu_reference_loop import CHUNKS, FILES, Clock, Lap, Setting, Shot, play_reference
from torch import Tensor

from shotstream.runtime.bench.machine import machine_facts, read_gpu
from shotstream.runtime.bench.text import columns
from shotstream.runtime.config import WAN_1_3B, DiTConfig
from shotstream.runtime.engine import ShotContext
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import check_dit
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import EngineRequest, ModelParts, Registry
from shotstream.runtime.presets import DEFAULT_PLUGINS
from shotstream.runtime.runtime import checked_device
from shotstream.runtime.wan import WanSizes

KERNELS = "shotstream.kernels.plugin:KernelsPlugin"
TOY = DiTConfig(dim=96, heads=3, ffn_dim=192, layers=2, freq_dim=64, text_len=24, text_dim=32)
TOY_LATENT = (8, 12)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of latents in the same number format, relative, root mean square."""


@dataclass(frozen=True)
class Way:
    """One way to run our engine."""

    name: str
    engine: str
    kernels: str = "torch"
    fp8: str = "none"


WAYS = (
    Way("eager", "eager"),
    Way("graph", "graph"),
    Way("graph-triton", "graph", "triton"),
    Way("graph-triton-fp8", "graph", "triton", "all"),
)


@dataclass(frozen=True)
class Result:
    """Medians over the shots that count, in milliseconds by chunk; a shot's whole time in seconds.

    A chunk lasts from its first step to the end of its last pass; engines like graph run its clean pass with the next
    chunk's first step. differs: from the reference's latents, relative root mean square, all shots.
    """

    name: str
    attention: str
    shot_s: float
    fps_without_decoding: float
    context_ms: float
    chunk_ms: list[float]
    denoise_ms: list[float]
    clean_ms: list[float]
    peak_gb: float | None
    differs: float | None = None


# ------------------------------------------------------------------------------------------------ ours
def our_model(weights: dict[str, Tensor], setting: Setting) -> Transformer:
    """Our transformer on the reference's weights, which it shares."""
    check_dit(weights, setting.config, "the reference's model")
    with torch.device("meta"):
        model = Transformer(setting.config)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def play_ours(way: Way, model: Transformer, shots: Sequence[Shot], setting: Setting) -> Result:
    """The same shots by an engine; UserError if it cannot run here."""
    registry = Registry([*DEFAULT_PLUGINS, KERNELS])
    nothing, device, clock = cast(Any, None), setting.device, Clock(setting.device)
    latent = (setting.config.channels, *setting.latent)
    fast = way.kernels == "triton"
    request = EngineRequest(
        ModelParts("reference", setting.config, model, nothing, nothing, "", latent, (0, 0)),
        device,
        setting.dtype,
        attention=registry.factory("attention", "triton")() if fast else None,
        ops=registry.factory("ops", "triton")(device) if fast else None,
        options={"fp8": way.fp8} if way.engine == "graph" else {},
    )
    _reset_peak(device)
    engine = registry.factory("engine", way.engine)(request)
    state = engine.new_state()
    engine.prepare(state)
    timed, made = [], []
    for shot in shots:
        assert shot.context_BFCHW is not None
        begin = clock.now()
        captions = [engine.embed_caption(text[None]) for text in shot.text_NLE]
        target = shot.flags[-1] + 1
        index = [0 if len(captions) == 1 else flag for flag in (*shot.flags, target)]
        context = ShotContext(shot.context_BFCHW[0], shot.flags, captions, index[:-1])
        engine.begin_shot(state, context, captions[index[-1]])
        laps = [Lap("context", -1, begin, clock.now())]
        renoise = _drawn(shot)
        for chunk, noise_BFCHW in enumerate(shot.noise):
            start = chunk * setting.config.chunk_frames
            began = clock.now()
            z_BFCHW = engine.denoise(state, start, noise_BFCHW, renoise)
            laps.append(Lap("denoise", chunk, began, clock.now()))
            if chunk + 1 < setting.chunks:
                engine.clean(state, start, z_BFCHW)
                laps.append(Lap("clean", chunk, laps[-1].end, clock.now()))
            made.append(z_BFCHW)
        timed.append((begin, laps, clock.now()))
    found = result(way.name, f"{way.kernels} attention and operations, fp8 {way.fp8}", timed, setting)
    theirs = torch.cat([z for shot in shots for z in shot.latents]).double()
    return replace(found, differs=float((torch.cat(made).double() - theirs).norm() / theirs.norm()))


def _drawn(shot: Shot) -> Callable[[int], Tensor]:
    """The fresh noise of a shot's steps, one after the other."""
    draws = iter(shot.renoise)
    return lambda _step: next(draws).view_as(shot.noise[0])


# ------------------------------------------------------------------------------------------------ figures
def result(name: str, attention: str, timed: Sequence[tuple[Any, list[Lap], Any]], setting: Setting) -> Result:
    """Medians over all shots but the first, or of the only one."""
    clock, peak = Clock(setting.device), None
    if clock.cuda:
        torch.cuda.synchronize(setting.device)
        peak = round(torch.cuda.max_memory_allocated(setting.device) / 1e9, 2)
    counted = timed[1:] or timed

    def middle(figure: Callable[[list[Lap]], float]) -> float:
        return round(statistics.median(figure(laps) for _, laps, _ in counted), 3)

    def part(name: str, chunk: int) -> float:
        return middle(
            lambda laps: sum(clock.ms(lap.begin, lap.end) for lap in laps if (lap.part, lap.chunk) == (name, chunk))
        )

    def whole(chunk: int) -> float:
        return middle(lambda laps: clock.ms(*_ends([lap for lap in laps if lap.chunk == chunk])))

    chunks = range(setting.chunks)
    shot_s = statistics.median(clock.ms(begin, end) for begin, _, end in counted) / 1000
    frames = 4 * setting.chunks * setting.config.chunk_frames - 3
    return Result(
        name=name,
        attention=attention,
        shot_s=round(shot_s, 4),
        fps_without_decoding=round(frames / shot_s, 2),
        context_ms=part("context", -1),
        chunk_ms=[whole(chunk) for chunk in chunks],
        denoise_ms=[part("denoise", chunk) for chunk in chunks],
        clean_ms=[part("clean", chunk) for chunk in chunks],
        peak_gb=peak,
    )


def _ends(laps: Sequence[Lap]) -> tuple[Any, Any]:
    return laps[0].begin, laps[-1].end


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def table(results: Sequence[Result], refused: Sequence[str]) -> list[str]:
    """For people. The reference comes first."""
    head = ["loop", "fps", "times", "shot s", "context ms", "first ms", "last ms", "denoise ms", "clean ms", "GB"]
    rows = [[*head, "latents differ"]]
    for each in results:
        rows.append(
            [
                each.name,
                f"{each.fps_without_decoding:.1f}",
                f"{results[0].shot_s / each.shot_s:.2f}",
                f"{each.shot_s:.3f}",
                *(f"{ms:.1f}" for ms in (each.context_ms, each.chunk_ms[0], each.chunk_ms[-1])),
                *(f"{statistics.mean(ms):.1f}" for ms in (each.denoise_ms, each.clean_ms)),
                "" if each.peak_gb is None else f"{each.peak_gb:.1f}",
                "" if each.differs is None else f"{each.differs:.1e}",
            ]
        )
    notes = [
        f"the reference attends with {results[0].attention}",
        "denoise, clean: mean of a chunk; graph's clean passes are part of the next chunk's first step, so of denoise",
        "text encoder and decoding are in no figure; times: of the reference's speed",
    ]
    return [*columns(rows), *notes, *refused]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 for what the caller can put right; 1 if an engine broke, or if latents are further apart than their
    number format allows.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="folder of the reference's checkout")
    parser.add_argument("--out", type=Path, help="json file; the table goes beside it as .txt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chunks", type=int, default=CHUNKS, choices=range(1, CHUNKS + 1), help="of every shot")
    parser.add_argument("--shots", type=int, default=2, help="the first one only warms up, if there are more")
    parser.add_argument("--layers", type=int, help="of the transformer; default: all")
    parser.add_argument("--toy", action="store_true", help="a small model in float32, for correctness only")
    given = parser.parse_args(arguments)
    try:
        device = checked_device(given.device)
        if given.shots < 1 or (given.layers is not None and given.layers < 1):
            raise UserError("--shots and --layers are at least 1")
        config, latent = (TOY, TOY_LATENT) if given.toy else (WAN_1_3B, WanSizes().latent_size)
        dtype = torch.float32 if given.toy else torch.bfloat16
        config = replace(config, layers=given.layers or config.layers)
        setting = Setting(config, latent, device, dtype, given.chunks, given.shots)
        torch.manual_seed(0)
        _reset_peak(device)
        shots, weights, attention = play_reference(given.reference, setting)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    results = [result("reference", attention, [(shot.begin, shot.laps, shot.end) for shot in shots], setting)]
    model, refused, broken = our_model(weights, setting), [], []
    for way in WAYS:
        try:
            results.append(play_ours(way, model, shots, setting))
        except UserError as error:
            refused.append(f"{way.name}: not here: {error}")
        except Exception as error:  # one way that breaks must not cost the others their figures
            broken.append(f"{way.name}: broke: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
    text = "\n".join(table(results, [*refused, *broken])) + "\n"
    sys.stdout.write(text)
    if given.out:
        version = hashlib.sha256(b"".join((given.reference / name).read_bytes() for name in FILES)).hexdigest()
        played = {"chunks": given.chunks, "shots": given.shots, "latent": latent, "dtype": str(dtype)}
        report = {
            "machine": asdict(machine_facts(device, read_gpu(device), None)),
            "reference_sha256": version,
            "setting": {**played, "config": asdict(config)},
            "results": [asdict(each) for each in results],
            "refused": [*refused, *broken],
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n")
        given.out.with_suffix(".txt").write_text(text)
    exact = [each for each in results if each.differs is not None and "fp8 all" not in each.attention]
    far = [each.name for each in exact if not cast(float, each.differs) <= TOLERANCE[dtype]]
    if far:
        sys.stderr.write(f"latents of {', '.join(far)} differ from the reference's by more than {TOLERANCE[dtype]:g}\n")
    return 1 if far or broken else 0


if __name__ == "__main__":
    sys.exit(main())

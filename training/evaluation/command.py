"""The command `evaluate`: scores a model of the story world, a run's stages, or finished films of any model.

What is measured, and how, is in `evaluation.evaluate` and `evaluation.video_axes`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shotstream.runtime.cli.engine_options import EngineOption
from shotstream.runtime.cli.play import Decoder, Device, Engine, Model, ModelChoice, Threads, Weights
from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shotstream.runtime.runtime import Runtime
    from shotstream.training.evaluation.cuts import CutFinder
    from shotstream.training.evaluation.evaluate import Parts, Progress
    from shotstream.training.evaluation.goals import Goal
    from shotstream.training.evaluation.scores import Report
    from shotstream.training.evaluation.sources import Frames
    from shotstream.training.evaluation.stage_table import RunChoice
    from shotstream.training.world import Story


def mount(app: typer.Typer) -> None:
    """Add `evaluate`."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Model = "tiny",
    stories: Annotated[int, typer.Option("--stories", min=2, max=10_000, help="Half of them held out.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, max=9, help="Another seed: other stories.")] = 0,
    chunks: Annotated[int, typer.Option("--chunks", min=1, max=20, help="Chunks of each shot.")] = 3,
    paraphrase: Annotated[
        bool | None, typer.Option("--paraphrase/--no-paraphrase", help="Free wording too; default: not with --run.")
    ] = None,
    drift: Annotated[
        bool | None, typer.Option("--drift/--no-drift", help="Ten-shot stories too; default: not with --run.")
    ] = None,
    codec: Annotated[bool, typer.Option("--codec/--no-codec", help="The codec's ceiling and PSNR too.")] = True,
    run: Annotated[Path | None, typer.Option("--run", help="Compare the stages of this training run instead.")] = None,
    stages: Annotated[
        str | None,
        typer.Option("--stages", help="With --run: some of its stages, such as teacher,ode; default: all there."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="With --run: draw one story through all stages into this PNG.")
    ] = None,
    sheet_story: Annotated[int, typer.Option("--sheet-story", min=0, help="Which story --sheet draws.")] = 0,
    teacher_steps: Annotated[int, typer.Option("--teacher-steps", min=1, max=1000, help="Its sampler's steps.")] = 50,
    teacher_guidance: Annotated[float, typer.Option("--teacher-guidance", min=0, help="1 is none.")] = 3.0,
    video: Annotated[
        Path | None, typer.Option("--video", help="Measure films instead: an mp4 with its json beside it, or a folder.")
    ] = None,
    features: Annotated[
        str | None, typer.Option("--features", help="With --video: what compares subjects, backgrounds: dino,clip")
    ] = None,
    features_weights: Annotated[
        Path | None, typer.Option("--features-weights", help="Folder of that model, or with one such folder for each.")
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option("--cuts", help="What finds cuts for the axes; default: oracle, pyscenedetect for films."),
    ] = None,
    device: Device = "cpu",
    weights: Weights = "default",
    engine: Engine = "eager",
    engine_option: EngineOption = None,
    decoder: Decoder = None,
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure a model against the goals and along the paper's axes, beside true renders and its own codec."""
    import torch
    from rich.console import Console

    from shotstream.runtime.config import TINY
    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.evaluation.evaluate import Parts
    from shotstream.training.evaluation.stage_table import RunChoice, TeacherSettings

    if run is None and (stages is not None or sheet is not None):
        raise UserError("--stages and --sheet compare the stages of a training run; give its folder with --run")
    if run is not None and (engine_option or decoder is not None):
        raise UserError("--engine-option and --decoder are for a model, not for the stages of a --run")
    if video is not None and run is not None:
        raise UserError("--video measures films and --run a training run; give one of them")
    if video is None and (features is not None or features_weights is not None):
        raise UserError("--features and --features-weights compare the films of --video")
    if sheet is not None and sheet_story >= stories:
        raise UserError(f"--sheet-story counts from 0: of {stories} stories the last is {stories - 1}")
    for file in (json_file, sheet):
        if file is not None:
            ensure_writable(file.parent)
    whole = run is None
    parts = Parts(whole if paraphrase is None else paraphrase, whole if drift is None else drift, codec)
    console = Console(stderr=True)
    with console.status("loading ...") as status:

        def tell(done: int, of: int) -> None:
            status.update(f"story {done} of {of} ...")

        if threads is not None:
            torch.set_num_threads(threads)
        find = _cut_finder(cuts or ("oracle" if video is None else "pyscenedetect"), device)
        if video is not None:
            names = [name.strip() for name in features.split(",")] if features else []
            plain = _of_films(video, names, features_weights, find, device, seed, tell)
        elif run is None:
            options = engine_option or ()
            runtime = ModelChoice(model, device, weights, engine, None, threads, decoder, options).load()
            plain = _of_model(runtime, stories, seed, chunks, parts, tell, find)
        else:
            settings = TeacherSettings(teacher_steps, teacher_guidance, chunks * TINY.chunk_frames, seed=seed)
            wanted = [] if stages is None else [name.strip() for name in stages.split(",")]
            choice = RunChoice(run, wanted, device, engine, chunks, settings)
            plain = _of_run(choice, stories, seed, parts, tell, find, sheet, sheet_story)
    if json_file is not None:
        json_file.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    for file in (sheet, json_file):
        if file is not None:
            typer.echo(str(file))


def _of_model(runtime: Runtime, stories: int, seed: int, chunks: int, parts: Parts, tell: Progress, find: CutFinder
              ) -> dict[str, object]:  # fmt: skip
    """Evaluate one model; print its goals, the axes, then every metric. All figures as plain values."""
    from shotstream.training.evaluation.evaluate import evaluate_model
    from shotstream.training.evaluation.goals import goals_of

    with runtime:
        report = evaluate_model(runtime, stories, seed, chunks=chunks, parts=parts, progress=tell, cuts=find)
    return _printed(report, goals_of(report), [])


def _of_run(choice: RunChoice, stories: int, seed: int, parts: Parts, tell: Progress, find: CutFinder,
            sheet: Path | None, sheet_story: int) -> dict[str, object]:  # fmt: skip
    """Evaluate a run's stages; print their table, the last one's goals, the axes, then every metric."""
    from shotstream.training.evaluation.evaluate import evaluation_stories
    from shotstream.training.evaluation.goals import gain_lines, goals_of
    from shotstream.training.evaluation.stage_sheet import write_stage_sheet
    from shotstream.training.evaluation.stage_table import TEACHER, evaluate_run

    found = choice.found()
    shown = evaluation_stories(stories, seed)[sheet_story if sheet is not None else 0]
    kept: dict[str, list[Frames]] = {}

    def keep(source: str, story: Story, shots: list[Frames]) -> None:
        if sheet is not None and story == shown and source in ("renders", *found):
            kept[source] = shots

    report = evaluate_run(choice, stories, seed, parts=parts, progress=tell, observer=keep, cuts=find)
    student = found[-1]
    goals = goals_of(report, student, teacher=TEACHER if TEACHER in found and student != TEACHER else None)
    plain = _printed(report, goals, [*gain_lines(report, found), "", f"goals, {student}"])
    if sheet is not None:
        captions = [shown.shot_caption(k) for k in range(len(shown.shots))]
        write_stage_sheet(shown.global_caption, captions, kept, sheet)
    return plain


def _of_films(path: Path, names: Sequence[str], folder: Path | None, find: CutFinder, device: str, seed: int,
              tell: Progress) -> dict[str, object]:  # fmt: skip
    """Measure finished films; print their axes."""
    from shotstream.runtime.runtime import assemble_registry, checked_device
    from shotstream.training.evaluation.axes import axes_lines
    from shotstream.training.evaluation.video import find_films
    from shotstream.training.evaluation.video_axes import extractors_of, video_axes

    films, registry = find_films(path), assemble_registry()
    made = [(name, registry.factory("features", name)(folder, checked_device(device))) for name in names]
    axes = video_axes(path.name, films, extractors_of(made), find, seed, tell)
    for line in axes_lines([axes]):
        typer.echo(line)
    return {"axes": [asdict(axes)]}


def _cut_finder(name: str, device: str) -> CutFinder:
    from shotstream.runtime.runtime import assemble_registry, checked_device

    find: CutFinder = assemble_registry().factory("cuts", name)(checked_device(device))
    return find


def _printed(report: Report, goals: Sequence[Goal], above: Sequence[str]) -> dict[str, object]:
    """Print a report, and give it as plain values."""
    from shotstream.training.evaluation.axes import axes_lines
    from shotstream.training.evaluation.goals import goal_lines, goals_as_dict

    for line in [*above, *goal_lines(goals), "", *axes_lines(report.axes), "", *report.lines()]:
        typer.echo(line)
    return report.as_dict() | {"goals": goals_as_dict(goals)}

"""The command `evaluate`: scores a model of the story world. What is measured, and how, is in `evaluation.evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shotstream.runtime.cli.engine_options import EngineOption
from shotstream.runtime.cli.play import Decoder, Device, Engine, Model, ModelChoice, Threads, Weights
from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shotstream.runtime.runtime import Runtime
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
        str | None, typer.Option("--stages", help="With --run: some of teacher,ode,intra,inter; default: all there.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="With --run: draw one story through all stages into this PNG.")
    ] = None,
    sheet_story: Annotated[int, typer.Option("--sheet-story", min=0, help="Which story --sheet draws.")] = 0,
    teacher_steps: Annotated[int, typer.Option("--teacher-steps", min=1, max=1000, help="Its sampler's steps.")] = 50,
    teacher_guidance: Annotated[float, typer.Option("--teacher-guidance", min=0, help="1 is none.")] = 3.0,
    device: Device = "cpu",
    weights: Weights = "default",
    engine: Engine = "eager",
    engine_option: EngineOption = None,
    decoder: Decoder = None,
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure a model against the goals, beside the ceilings: true renders, and its own codec."""
    import torch
    from rich.console import Console

    from shotstream.runtime.config import TINY
    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.evaluation.evaluate import Parts
    from shotstream.training.evaluation.goals import goals_as_dict
    from shotstream.training.evaluation.stage_table import RunChoice, TeacherSettings

    if run is None and (stages is not None or sheet is not None):
        raise UserError("--stages and --sheet compare the stages of a training run; give its folder with --run")
    if run is not None and (engine_option or decoder is not None):
        raise UserError("--engine-option and --decoder are for a model, not for the stages of a --run")
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

        if run is None:
            options = engine_option or ()
            runtime = ModelChoice(model, device, weights, engine, None, threads, decoder, options).load()
            report, goals = _of_model(runtime, stories, seed, chunks, parts, tell)
        else:
            if threads is not None:
                torch.set_num_threads(threads)
            settings = TeacherSettings(teacher_steps, teacher_guidance, chunks * TINY.chunk_frames, seed=seed)
            wanted = [] if stages is None else [name.strip() for name in stages.split(",")]
            choice = RunChoice(run, wanted, device, engine, chunks, settings)
            report, goals = _of_run(choice, stories, seed, parts, tell, sheet, sheet_story)
    if json_file is not None:
        plain = report.as_dict() | {"goals": goals_as_dict(goals)}
        json_file.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    for file in (sheet, json_file):
        if file is not None:
            typer.echo(str(file))


def _of_model(runtime: Runtime, stories: int, seed: int, chunks: int, parts: Parts, tell: Progress
              ) -> tuple[Report, list[Goal]]:  # fmt: skip
    """Evaluate one model and print its goals, then every metric."""
    from shotstream.training.evaluation.evaluate import evaluate_model
    from shotstream.training.evaluation.goals import goals_of

    with runtime:
        report = evaluate_model(runtime, stories, seed, chunks=chunks, parts=parts, progress=tell)
    goals = goals_of(report)
    _print(report, goals, [])
    return report, goals


def _of_run(choice: RunChoice, stories: int, seed: int, parts: Parts, tell: Progress, sheet: Path | None,
            sheet_story: int) -> tuple[Report, list[Goal]]:  # fmt: skip
    """Evaluate a run's stages; print their table, the last one's goals, then every metric."""
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

    report = evaluate_run(choice, stories, seed, parts=parts, progress=tell, observer=keep)
    student = found[-1]
    goals = goals_of(report, student, teacher=TEACHER if TEACHER in found and student != TEACHER else None)
    _print(report, goals, [*gain_lines(report, found), "", f"goals, {student}"])
    if sheet is not None:
        captions = [shown.shot_caption(k) for k in range(len(shown.shots))]
        write_stage_sheet(shown.global_caption, captions, kept, sheet)
    return report, goals


def _print(report: Report, goals: Sequence[Goal], above: Sequence[str]) -> None:
    from shotstream.training.evaluation.axes import axes_lines
    from shotstream.training.evaluation.goals import goal_lines

    for line in [*above, *goal_lines(goals), "", *axes_lines(report.axes), "", *report.lines()]:
        typer.echo(line)

"""The commands `play` and `demo`: a story in, a film out. How a film is made is in `shotstream.runtime.film`."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shotstream.runtime.cli.engine_options import EngineFallback, EngineOption, parsed_options, say_on

if TYPE_CHECKING:
    from rich.console import Console

    from shotstream.runtime.cli.app import Settings
    from shotstream.runtime.cli.progress import FilmProgress
    from shotstream.runtime.film import Film
    from shotstream.runtime.runtime import Runtime
    from shotstream.runtime.storyline import Choice, Option, StorySource

Model = Annotated[str, typer.Option("--model", help="The model to play on; `shotstream plugins` lists them.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for story.mp4, contact_sheet.png and story.json.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides all noise: same seed, same captions, same film.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Live = Annotated[
    bool, typer.Option("--live", help="Watch it: in a window, or drawn in the terminal without a display.")
]
Chunks = Annotated[
    int | None, typer.Option("--chunks", min=1, max=100, help="Length of every shot, over the story's own.")
]
Weights = Annotated[str, typer.Option("--weights", help="default, random (no files needed), or a folder.")]
Engine = Annotated[
    str, typer.Option("--engine", help="What executes the steps; `shotstream doctor` says which work here.")
]
Attention = Annotated[
    str | None, typer.Option("--attention", help="The attention backend, or auto; default: auto on a GPU.")
]
Decoder = Annotated[
    str | None, typer.Option("--decoder", help="What turns latents into pictures, instead of the model's own.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads; default: torch decides.")]
Scale = Annotated[int, typer.Option("--scale", min=1, max=8, help="Enlarge the picture in story.mp4 this many times.")]
Choose = Annotated[
    list[str] | None,
    typer.Option(
        "--choose",
        metavar="NAME",
        help="The option to take when the story comes to a choice; repeat it for further choices.",
    ),
]


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelChoice:
    """Which runtime to make: the options that `play`, `demo` and `bench` share."""

    model: str
    device: str = "cpu"
    weights: str = "default"
    engine: str = "eager"
    attention: str | None = None
    threads: int | None = None
    decoder: str | None = None
    engine_options: Sequence[str] = ()
    """NAME=VALUE each."""
    engine_fallback: str | None = None

    def load(self, say: Callable[[str], None] = log.warning) -> Runtime:
        """Load it; UserError says what is missing. say: as `Runtime`."""
        import torch

        from shotstream.runtime.runtime import Runtime

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Runtime(
            self.model,
            device=self.device,
            weights=self.weights,
            engine=self.engine,
            engine_options=parsed_options(self.engine_options),
            engine_fallback=self.engine_fallback,
            attention=self.attention,
            decoder=self.decoder,
            say=say,
        )


@dataclass(frozen=True)
class FilmChoice:
    """What to make of the story, and where to put it."""

    out: Path
    seed: int = 0
    chunks: int | None = None
    live: bool = False
    scale: int = 1
    options: Sequence[str] = ()
    """Names given with --choose."""


def mount(app: typer.Typer) -> None:
    """Add `play` and `demo`."""
    app.command("play")(play)
    app.command("demo")(demo)


def play(
    ctx: typer.Context,
    story: Annotated[
        str,
        typer.Argument(
            metavar="STORY",
            help="A story file (yaml or plain text), or - for lines typed or piped in while the film is made.",
        ),
    ],
    model: Model = "tiny",
    out: Out = Path("out"),
    seed: Seed = 0,
    device: Device = "cpu",
    live: Live = False,
    chunks: Chunks = None,
    weights: Weights = "default",
    engine: Engine = "eager",
    engine_option: EngineOption = None,
    engine_fallback: EngineFallback = None,
    attention: Attention = None,
    decoder: Decoder = None,
    threads: Threads = None,
    scale: Scale = 1,
    choose: Choose = None,
) -> None:
    """Play a story: shots in, an MP4, a contact sheet and a record out."""
    from shotstream.runtime.story import LiveStory, load_story

    source: StorySource = LiveStory(sys.stdin.buffer) if story == "-" else load_story(Path(story))
    _play(
        ctx.obj,
        source,
        ModelChoice(model, device, weights, engine, attention, threads, decoder, engine_option or (), engine_fallback),
        FilmChoice(out, seed, chunks, live, scale, choose or ()),
    )


DEMO_SEED = 3
"""The film that the README shows."""


def demo(
    ctx: typer.Context,
    out: Out = Path("out/demo"),
    seed: Seed = DEMO_SEED,
    device: Device = "cpu",
    live: Live = False,
    chunks: Chunks = None,
    weights: Weights = "default",
    engine: Annotated[
        str | None, typer.Option("--engine", help="What executes the steps; default: the fastest that is as good.")
    ] = None,
    engine_option: EngineOption = None,
    engine_fallback: EngineFallback = None,
    decoder: Decoder = None,
    threads: Threads = None,
    scale: Scale = 2,
    choose: Choose = None,
) -> None:
    """Play the built-in story on the embedded model."""
    from shotstream.runtime.story import load_story

    if engine is None and not engine_option and decoder is None and _eight_bits(device, weights):
        engine, engine_option, decoder = "onnx", ["precision=int8"], "tiny-vae-onnx-int8"

    with resources.as_file(resources.files("shotstream.runtime") / "stories" / "demo.yaml") as path:
        source = load_story(path)
    _play(
        ctx.obj,
        source,
        ModelChoice(
            "tiny",
            device,
            weights,
            engine or "eager",
            threads=threads,
            decoder=decoder,
            engine_options=engine_option or (),
            engine_fallback=engine_fallback,
        ),
        FilmChoice(out, seed, chunks, live, scale, choose or ()),
    )


def _eight_bits(device: str, weights: str) -> bool:
    """Whether the embedded model can be played in eight-bit integers: faster, and no worse to the oracle.

    Figures are in the export room's README. Its graphs come with the package, for a CPU and for its own weights.
    """
    return (device, weights) == ("cpu", "default") and importlib.util.find_spec("onnxruntime") is not None


def _play(settings: Settings, source: StorySource, model: ModelChoice, choice: FilmChoice) -> None:
    from rich.console import Console

    from shotstream.runtime.cli.choices import named_options
    from shotstream.runtime.sinks.base import ensure_writable

    console = Console(stderr=True)
    picks: list[Option | None] = [*named_options(source, choice.options)]
    ensure_writable(choice.out)
    typed = source.total_shots is None and sys.stdin.isatty()
    sinks = _sinks(choice, console)
    with console.status(f"loading {model.model} ...") as status:
        runtime = model.load(say_on(console, status))
        runtime.warm_up()
    with runtime:
        from shotstream.runtime.cli.progress import FilmProgress
        from shotstream.runtime.film import Film, FilmPlan, make_film

        made = [runtime.registry.factory("sink", name)(target, options) for name, target, options in sinks]
        film = Film()
        drawn_in_terminal = any(name == "terminal" for name, _, _ in sinks) and sys.stdout.isatty()
        try:
            with FilmProgress(console, film, live=not (drawn_in_terminal or typed), typed=typed) as progress:
                telling = _telling(source, picks, progress, ask_first=drawn_in_terminal)
                plan = FilmPlan(telling, choice.seed, choice.chunks, made)
                make_film(runtime, plan, film, progress, settings.interrupts.shield)
        finally:
            settings.interrupts.farewell = f"stopped after {film.frames} frames in {film.shots} shots" + (
                f"; they are in {choice.out}" if film.frames else ""
            )
            _sum_up(console, film)


def _telling(
    source: StorySource, picks: list[Option | None], progress: FilmProgress, *, ask_first: bool
) -> StorySource:
    """The story with its choices: those in `picks` are made, the others are asked for if there is someone to ask.

    ask_first: ask now, because later the terminal is drawn in."""
    from shotstream.runtime.cli.choices import ask, someone_to_ask
    from shotstream.runtime.storyline import Story, Telling

    if not isinstance(source, Story):
        return source
    if not someone_to_ask():
        return Telling(source, picks)

    def ask_aside(choice: Choice) -> Option:
        with progress.aside():
            return ask(choice)

    if ask_first:
        picks = [*picks, *(ask_aside(choice) for choice in source.choices[len(picks) :])]
    return Telling(source, picks, ask_aside)


def _sinks(choice: FilmChoice, console: Console) -> list[tuple[str, Path, dict[str, object]]]:
    """Names, targets and options of the sinks asked for."""
    found: list[tuple[str, Path, dict[str, object]]] = [
        ("mp4", choice.out / "story.mp4", {"scale": choice.scale}),
        ("contact-sheet", choice.out / "contact_sheet.png", {}),
        ("story-json", choice.out / "story.json", {}),
    ]
    if choice.live:
        from shotstream.runtime.sinks.window import why_no_window

        reason = why_no_window()
        if reason is None:
            found.append(("window", choice.out, {}))
        else:
            console.print(
                f"no preview window ({reason}); drawing in the terminal instead", markup=False, highlight=False
            )
            found.append(("terminal", choice.out, {}))
    return found


def _sum_up(console: Console, film: Film) -> None:
    """The last lines: what was made, how fast, and where it is (paths alone on standard output)."""
    if film.complete:
        first = film.first_frame_seconds or 0.0
        console.print(
            f"made {film.shots} shots, {film.frames} frames in {film.seconds:.1f} s: "
            f"{film.frames_per_second:.1f} fps, first frame after {first:.2f} s",
            highlight=False,
            soft_wrap=True,
        )
    for path in film.files:
        typer.echo(str(path))

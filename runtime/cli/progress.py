"""The progress display of a film: shot, chunk, frames per second, time to the first frame. On standard error.

In a terminal it is a live line; elsewhere one line per shot, so that logs stay readable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shotstream.runtime.film import Film, Made
from shotstream.runtime.storyline import Scene, Taken


class FilmProgress:
    """Observes a film (see `shotstream.runtime.film.Observer`) and shows how it goes; a context manager."""

    def __init__(self, console: Console, film: Film, *, live: bool, typed: bool) -> None:
        """live: draw a moving line, in a terminal that nothing else draws in. typed: a person types the captions."""
        self._console = console
        self._film = film
        self._typed = typed
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shot_frames = 0
        self._shot_seconds = 0.0
        self._first = 0.0
        self._chunks = 0
        self._of = ""
        if live and console.is_terminal:
            self._progress = self._lines()

    def _lines(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("chunk {task.completed:.0f}/{task.total:.0f}  {task.fields[speed]}"),
            console=self._console,
        )

    def __enter__(self) -> FilmProgress:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal alone meanwhile, for a question; what was shown stays, further shots go below."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress = self._lines()
            self._progress.start()

    def waiting(self, shot: int) -> None:
        """Ask for the next caption if a person types them."""
        if self._typed:
            what = "the next shot, or end with Ctrl-D" if shot else "the global caption, then the first shot"
            self._console.print(f"[dim]type {what}:[/dim]")

    def chosen(self, taken: Taken) -> None:
        """Say which option was taken, and which there were."""
        others = ", ".join(name for name in taken.options if name != taken.option)
        self._say(f"{taken.question} {taken.option}: {taken.label} (other options: {others})")

    def scene_begins(self, scene: Scene) -> None:
        """Say what the next shots are about."""
        self._say(f"new scene: {scene.global_caption}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def shot_begins(self, shot: int, caption: str, chunks: int, total_shots: int | None) -> None:
        """Start this shot's line."""
        self._shot_frames, self._shot_seconds, self._chunks = 0, 0.0, chunks
        self._of = f"shot {shot + 1}" + (f"/{total_shots}" if total_shots is not None else "")
        if self._progress is not None:
            self._say(f"{self._of}: {caption}")
            self._task = self._progress.add_task(self._of, total=chunks, speed="first frames on their way ...")

    def chunk_made(self, made: Made) -> None:
        """Count a chunk; at a shot's end, sum it up."""
        self._shot_frames += len(made.chunk.frames)
        self._shot_seconds += made.seconds
        if made.first_frame_seconds is not None:
            self._first = made.first_frame_seconds
        speed = f"{self._shot_frames / self._shot_seconds:.1f} fps, first frame after {self._first:.2f} s"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=made.chunk.chunk + 1, speed=speed)
        elif made.chunk.last:
            self._say(f"{self._of}: {self._chunks} chunks, {self._shot_frames} frames, {speed}: {made.chunk.caption}")

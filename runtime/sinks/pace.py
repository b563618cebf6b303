"""Shows frames at their own speed from a thread, whatever the speed they arrive at. It knows no screen: it calls a
function.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]  # one frame, RGB [H, W, 3]

_MAX_BEHIND_SECONDS = 2.0


class Pacer:
    """Calls `show` for each picture at `frames_per_second`, in a thread of its own.

    The film is never held up: when pictures arrive faster than they can be shown, the oldest beyond two seconds are
    skipped. An exception from `show` ends the display and leaves the film alone."""

    def __init__(self, frames_per_second: int, show: Callable[[Picture], None]) -> None:
        self._interval = 1.0 / frames_per_second
        self._limit = max(1, int(_MAX_BEHIND_SECONDS * frames_per_second))
        self._show = show
        self._queue: queue.Queue[Picture | None] = queue.Queue()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)
        self._thread.start()

    def put(self, picture_HWC: Picture) -> None:
        """Queue one picture; it is copied, so the caller may reuse its memory."""
        if self.error is None:
            self._queue.put(picture_HWC.copy())

    def finish(self, wait_seconds: float) -> None:
        """Show what is queued, at most for `wait_seconds`, then stop."""
        self._queue.put(None)
        self._thread.join(wait_seconds)

    def _run(self) -> None:
        due = time.monotonic()
        while (picture_HWC := self._queue.get()) is not None:
            if self._queue.qsize() > self._limit:
                continue
            due = max(due + self._interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                self._show(picture_HWC)
            except Exception as error:
                self.error = error
                return

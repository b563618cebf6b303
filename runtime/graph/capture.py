"""Capturing work as CUDA graphs: the first call of a piece runs it plainly, the second captures it, all later replay.

The plain run is what compiles kernels and lets libraries set themselves up; it is also a valid run. On a CPU every
call is plain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Recorder:
    """Graphs of one session by key. They share a memory pool, since they never run at the same time."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self._enabled = enabled and device.type == "cuda"
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None

    @property
    def captured(self) -> int:
        """How many graphs there are."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, key: Hashable, body: Callable[[], None]) -> None:
        """Run `body`, or the graph that was made of it. It reads and writes by address only, and never waits."""
        if not self._enabled:
            body()
            return
        if key not in self._graphs:
            body()
            self._graphs[key] = None
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._capture(body)
        graph.replay()

    def _capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Sessions of other threads may go on allocating while this one captures.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            body()
        return graph

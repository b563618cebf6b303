"""How much a training step computes, from the model's sizes: matrix products and attention, multiply-adds twice.

A step is a list of passes through the transformer (:class:`Pass`); from the same list the memory of activations is
estimated. Not counted: codec, text encoder, norms, optimizer, and what checkpointing computes again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shotstream.runtime.config import DiTConfig


@dataclass(frozen=True)
class Work:
    """Of one step, all processes together: ``tokens`` of its samples (context and target) and operations."""

    tokens: int
    flop: float


@dataclass(frozen=True)
class Pass:
    """One sample's forward pass: ``tokens`` queries over ``keys`` keys, of which they see ``visible`` pairs together;
    how often it is made (expected), and whether it is differentiated.
    """

    tokens: int
    keys: int
    visible: int
    times: float = 1.0
    trained: bool = False


@dataclass(frozen=True)
class Geometry:
    """A sample: ``context`` and ``frames`` latent frames of ``per_frame`` tokens."""

    config: DiTConfig
    per_frame: int
    context: int
    frames: int

    @property
    def tokens(self) -> int:
        """Context and target."""
        return (self.context + self.frames) * self.per_frame

    def everything(self, *, times: float = 1.0, trained: bool = False) -> Pass:
        """Context and target in one pass, everything sees everything (teacher, scores)."""
        return Pass(self.tokens, self.tokens, self.tokens**2, times, trained)

    def ode(self, clean_history: bool) -> list[Pass]:
        """The regression's: blocks see context and the blocks before them, or the clean copies of these."""
        if clean_history:
            return [self.history(), self.behind()]
        pairs = (self.context**2 + self._seen(0)) * self.per_frame**2
        return [Pass(self.tokens, self.tokens, pairs, trained=True)]

    def history(self) -> Pass:
        """Context and all blocks but the last one, without noise."""
        tokens = self.tokens - self._chunk * self.per_frame
        return Pass(tokens, tokens, (self.context**2 + self._seen(1)) * self.per_frame**2, trained=True)

    def behind(self, *, times: float = 1.0, trained: bool = True) -> Pass:
        """All blocks, each behind its part of the history."""
        tokens = self.frames * self.per_frame
        keys = self.tokens - self._chunk * self.per_frame + tokens
        return Pass(tokens, keys, self._seen(0) * self.per_frame**2, times, trained)

    @property
    def _chunk(self) -> int:
        return min(self.config.chunk_frames, self.frames)

    def _seen(self, without: int) -> int:
        """Pairs of frames: every block's, but for the last ones, with context, the blocks before it and itself."""
        starts = range(0, self.frames - without * self._chunk, self._chunk)
        return sum(self._chunk * (self.context + start + self._chunk) for start in starts)

    def rollout(self, *, trained: bool) -> list[Pass]:
        """Context pass; per chunk the steps before the exit (as many as expected), the exit, and the clean pass."""
        before = (len(self.config.nominal_steps) - 1) / 2
        context, chunk = self.context * self.per_frame, self.config.chunk_frames * self.per_frame
        passes = [Pass(context, context, context**2)]
        for end in range(chunk, self.frames * self.per_frame + 1, chunk):
            keys, last = context + end, end == self.frames * self.per_frame
            passes.append(Pass(chunk, keys, chunk * keys, before + (0 if last else 1)))
            passes.append(Pass(chunk, keys, chunk * keys, 1, trained))
        return passes

    def generator(self) -> list[Pass]:
        """Roll-out, the critic's score, and the teacher's with and without the caption."""
        return [*self.rollout(trained=True), self.everything(times=3)]

    def critic(self) -> list[Pass]:
        """Roll-out and the critic's own pass."""
        return [*self.rollout(trained=False), self.everything(trained=True)]


def pass_flop(config: DiTConfig, one: Pass, trained_share: float = 1.0) -> float:
    """Operations of a pass, and of its gradient if it has one. ``trained_share``: of the weights in blocks."""
    c, dim = config, config.dim
    linear = c.layers * one.tokens * 2 * (6 * dim * dim + 2 * dim * c.ffn_dim)
    linear += one.tokens * 4 * dim * c.channels * c.patch[1] * c.patch[2]
    attention = c.layers * 4 * dim * (one.visible + one.tokens * c.text_len)
    if one.trained:
        return linear * (2 + trained_share) + 3 * attention
    return linear + attention


def caption_flop(config: DiTConfig, trained_share: float = 0.0) -> float:
    """Operations of one caption's embedding with its keys and values, and twice as many for its gradient."""
    c = config
    rows = 2 * c.text_len * (c.text_dim * c.dim + c.dim**2 + c.layers * 2 * c.dim**2)
    return rows * (1 + 2 * trained_share)


def step_work(
    sample: Geometry, passes: Iterable[Pass], batch: int, *, captions: float = 1, trained_share: float = 1.0
) -> Work:
    """A step of ``batch`` samples with ``captions`` captions each."""
    flop = 0.0
    for one in passes:
        flop += one.times * pass_flop(sample.config, one, trained_share)
    flop += captions * caption_flop(sample.config, trained_share)
    return Work(batch * sample.tokens, batch * flop)

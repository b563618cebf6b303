"""Full captions as the engine reads them: each is encoded once and kept as long as a shot or its context reads it.

It knows no shots: what a full caption is says `storyline.full_caption`, and which are still in use the session.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from shotstream.runtime.engine import Engine
from shotstream.runtime.errors import CaptionTooLong
from shotstream.runtime.plugins import ModelParts
from shotstream.runtime.timing import Stopwatch


class EmbeddedCaptions:
    """The text keys and values of one session. On the real model each caption takes 94 MB."""

    def __init__(self, parts: ModelParts, engine: Engine, watch: Stopwatch) -> None:
        self._text, self._limit = parts.text, parts.config.text_len
        self._engine = engine
        self._watch = watch
        self._embedded: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._embedded)

    def read(self, full: str) -> Any:
        """What cross-attention reads for this caption; CaptionTooLong if the model could not read it to its end."""
        if full in self._embedded:
            return self._embedded[full]
        count = self._text.tokens(full)
        if count > self._limit:
            raise CaptionTooLong(
                f"the caption needs {count} tokens together with the global caption, but this model reads at most "
                f"{self._limit}; shorten one of them"
            )
        with torch.inference_mode(), self._watch.lap("text"):
            # One caption at a time: the result then never depends on which others are encoded with it.
            self._embedded[full] = self._engine.embed_caption(self._text.encode([full]))
        return self._embedded[full]

    def keep(self, in_use: Collection[str]) -> None:
        """Forget all others."""
        self._embedded = {full: text_kv for full, text_kv in self._embedded.items() if full in in_use}

    def share_with(self, twin: EmbeddedCaptions) -> None:
        """Spare a session of the same runtime the encoding; what is shared is never written to."""
        twin._embedded.update(self._embedded)

"""The embedded text encoder: words and hashed letter groups into a small transformer. No vocabulary file, no download.

An unknown word is no blind spot: it shares letter groups with the words it resembles. Trained by itself
(``shotstream.training.stages.text``), frozen afterwards.
"""

from __future__ import annotations

import html
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

_TOKEN = re.compile(r"[a-z0-9]+|[.:]")
_GROUPS = 12  # letter groups kept per word


@dataclass(frozen=True)
class TinyTextConfig:
    """Sizes of the encoder; ``length`` rows per caption, ``dim`` columns, two hash tables of ``buckets`` rows.

    ``reach`` words on either side are mixed into every word before the first layer: who is red stands next to "red".
    """

    length: int = 48
    dim: int = 192
    heads: int = 3
    layers: int = 3
    buckets: int = 2048
    reach: int = 2

    def to_json(self) -> str:
        """Compact json, as stored in the metadata of our safetensors files."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TinyTextConfig:
        """Inverse of :meth:`to_json`; files older than ``reach`` have none."""
        return cls(**{"reach": 0} | json.loads(text))


def words(caption: str) -> list[str]:
    """Lower-case words, full stops and colons of a caption; everything else only separates."""
    return _TOKEN.findall(html.unescape(caption).lower().replace("-", ""))


def _bucket(text: str, buckets: int) -> int:
    return 1 + zlib.crc32(text.encode()) % (buckets - 1)  # row 0 means nothing


def letter_groups(word: str) -> list[str]:
    """Groups of three and four letters of ``<word>``, at most a dozen."""
    marked = f"<{word}>"
    groups = [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)]
    return groups[:_GROUPS]


class TinyTextEncoder(nn.Module):
    """Captions to ``[N, length, dim]`` rows; rows past a caption's end are zero, as the transformer expects."""

    def __init__(self, config: TinyTextConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or TinyTextConfig()
        self.word = nn.Embedding(c.buckets, c.dim, padding_idx=0)
        self.group = nn.Embedding(c.buckets, c.dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(c.length, c.dim) * 0.02)
        self.mix = nn.Conv1d(c.dim, c.dim, 2 * c.reach + 1, padding=c.reach) if c.reach else None
        layer = nn.TransformerEncoderLayer(
            c.dim, c.heads, 2 * c.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(c.dim)
        self._ids: dict[str, np.ndarray] = {}

    def tokens(self, caption: str) -> int:
        """How many of the ``length`` rows the caption needs; more than ``length`` is cut at the end."""
        return len(words(caption))

    def _word_ids(self, word: str) -> np.ndarray:
        """The word's row, then its twelve letter-group rows."""
        known = self._ids.get(word)
        if known is None:
            buckets = self.config.buckets
            groups = [_bucket(g, buckets) for g in letter_groups(word)]
            known = np.array([_bucket(word, buckets), *groups, *[0] * (_GROUPS - len(groups))])
            if len(self._ids) < 10_000:
                self._ids[word] = known
        return known

    def ids(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word rows ``[N, length]`` and letter-group rows ``[N, length, 12]``, zero where there is none."""
        c = self.config
        rows = np.zeros((len(captions), c.length, 1 + _GROUPS), dtype=np.int64)
        for n, caption in enumerate(captions):
            for i, word in enumerate(words(caption)[: c.length]):
                rows[n, i] = self._word_ids(word)
        ids = torch.from_numpy(rows)
        return ids[..., 0], ids[..., 1:]

    def forward(self, word_NL: Tensor, group_NLG: Tensor) -> Tensor:
        """Rows ``[N, length, dim]`` of hashed captions."""
        count = (group_NLG > 0).sum(-1, keepdim=True).clamp_min(1)
        x = self.word(word_NL) + self.group(group_NLG).sum(2) / count
        if self.mix is not None:
            x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.position
        empty = word_NL == 0
        # A caption without any word must still have a key to attend to.
        hidden = empty.clone()
        hidden[:, 0] = False
        x = self.norm(self.layers(x, src_key_padding_mask=hidden))
        return x * (~empty)[..., None].to(x.dtype)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Encode plain strings; float32 on the encoder's device."""
        device = self.position.device
        word, group = self.ids(captions)
        return self(word.to(device), group.to(device)).float()

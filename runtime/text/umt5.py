"""The real model's text encoder: umT5-XXL through transformers, with the reference's cleaning and zeroed padding.

Transformers provides the layers, ``tokenizers`` the vocabulary; cleaning, length rule, zeroing and a small cache of
embeddings are here. Captions are encoded one by one at their own length: masked positions take no part in attention,
so this equals the reference's 512-row batch on every valid row and costs a tenth of it for a usual caption.
Source: reference ``wan/modules/t5.py`` and ``wan/modules/tokenizers.py``.

Unlike the reference, a caption that does not fit is refused by default: cutting takes the end, which is the shot part.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.checkpoint_files import open_weights
from shotstream.runtime.model.key_maps import named, wan_t5_to_transformers
from shotstream.runtime.model.state_dicts import check_shapes, placed
from shotstream.runtime.optional import require

log = logging.getLogger(__name__)

PARAMETERS = 5_680_910_336
TEXT_LEN = 512
_CACHED_CAPTIONS = 64
_TIED = "encoder.embed_tokens.weight"

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class UMT5Sizes:
    """Sizes of the encoder; the defaults are umT5-XXL's."""

    vocab: int = 256_384
    dim: int = 4096
    heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10_240
    layers: int = 24
    buckets: int = 32
    max_distance: int = 128


def clean_caption(text: str) -> str:
    """The reference's cleaning: mojibake mended (ftfy), HTML unescaped twice, runs of white space made one space."""
    ftfy = require("ftfy", "the umT5 text encoder")
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


class UMT5Encoder:
    """Captions to ``[N, text_len, dim]`` with zero rows behind each caption's tokens.

    ``model`` is a transformers ``UMT5EncoderModel``, ``tokenize`` gives token ids with the end token. ``on_overflow``
    says what happens to a caption of more than ``text_len`` tokens: ``error`` refuses it, ``truncate`` keeps the
    first ``text_len - 1`` and the end token, as the reference does, and logs what was lost.
    """

    def __init__(self, model: Any, tokenize: Tokenize, text_len: int = TEXT_LEN, on_overflow: str = "error") -> None:
        if on_overflow not in {"error", "truncate"}:
            raise UserError(f"on_overflow is 'error' or 'truncate', not '{on_overflow}'")
        self.model = model
        self.text_len = text_len
        self.text_dim: int = model.config.d_model
        self._tokenize = tokenize
        self._on_overflow = on_overflow
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def tokens(self, caption: str) -> int:
        """How many rows the caption needs, uncut; sessions refuse more than ``text_len``."""
        return len(self._tokenize(clean_caption(caption)))

    def token_ids(self, caption: str) -> list[int]:
        """The caption's token ids, cleaned, with the end token, at most ``text_len``."""
        ids = self._tokenize(clean_caption(caption))
        if len(ids) <= self.text_len:
            return ids
        lost = len(ids) - self.text_len
        if self._on_overflow == "error":
            raise UserError(
                f"a caption of {len(ids)} tokens is {lost} too long for the model's {self.text_len}: "
                f"shorten '{caption[:40]}...' (its end, the shot's own text, would be cut)"
            )
        log.warning("caption cut: %d of its %d tokens are lost at the end: %s...", lost, len(ids), caption[:40])
        return [*ids[: self.text_len - 1], ids[-1]]

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Embeddings ``[N, text_len, text_dim]`` in the weights' dtype; captions do not influence one another."""
        device, dtype = self.model.device, self.model.dtype
        rows = torch.zeros(len(captions), self.text_len, self.text_dim, device=device, dtype=dtype)
        for i, caption in enumerate(captions):
            valid = self._rows(caption)
            rows[i, : len(valid)] = valid
        return rows

    def _rows(self, caption: str) -> Tensor:
        """The caption's valid rows ``[tokens, text_dim]``, from the cache if it was met lately."""
        if caption in self._cache:
            self._cache.move_to_end(caption)
            return self._cache[caption]
        ids = torch.tensor([self.token_ids(caption)], device=self.model.device)
        rows = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        self._cache[caption] = rows
        if len(self._cache) > _CACHED_CAPTIONS:
            self._cache.popitem(last=False)
        return rows


def load_tokenizer(folder: Path | str) -> Tokenize:
    """A tokenizer from a local folder (``tokenizer.json``, else ``spiece.model``); the network is never asked."""
    folder = Path(folder)
    fast = folder / "tokenizer.json"
    if fast.is_file():
        tokenizers = require("tokenizers", "the umT5 tokenizer")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(fast))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{fast} is not a readable tokenizer ({str(error)[:120]}); fetch it again") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return lambda text: list(tokenizer.encode(text).ids)
    if not (folder / "spiece.model").is_file():
        raise UserError(f"{folder} holds no tokenizer (tokenizer.json or spiece.model)")
    transformers = require("transformers", "the umT5 tokenizer")
    require("sentencepiece", "a tokenizer without tokenizer.json")
    slow = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return lambda text: list(slow(text)["input_ids"])


def _build(sizes: UMT5Sizes, device: torch.device | str) -> Any:
    transformers = require("transformers", "the umT5 text encoder")
    config = transformers.UMT5Config(
        vocab_size=sizes.vocab,
        d_model=sizes.dim,
        d_kv=sizes.head_dim,
        d_ff=sizes.ffn_dim,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        relative_attention_num_buckets=sizes.buckets,
        relative_attention_max_distance=sizes.max_distance,
        feed_forward_proj="gated-gelu",
    )
    with torch.device(device):
        return transformers.UMT5EncoderModel(config).eval().requires_grad_(False)


def sizes_of(sd: Mapping[str, Tensor], where: str = "the state dict") -> UMT5Sizes:
    """Sizes read off a state dict with transformers' keys; the number of layers is that of the keys."""
    first = "encoder.block.0.layer."
    needed = ["shared.weight", f"{first}0.SelfAttention.q.weight", f"{first}1.DenseReluDense.wi_0.weight"]
    needed.append(f"{first}0.SelfAttention.relative_attention_bias.weight")
    missing = [key for key in needed if key not in sd]
    if missing:
        raise UserError(f"{where} holds no umT5 encoder: missing {named(missing)}")
    vocab, dim = sd["shared.weight"].shape
    buckets, heads = sd[needed[3]].shape
    layers = 1 + max(int(key.split(".")[2]) for key in sd if key.startswith("encoder.block."))
    return UMT5Sizes(
        vocab=vocab,
        dim=dim,
        heads=heads,
        head_dim=sd[needed[1]].shape[0] // heads,
        ffn_dim=sd[needed[2]].shape[0],
        layers=layers,
        buckets=buckets,
    )


def umt5_model_from(
    sd: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    where: str = "the state dict",
) -> Any:
    """A transformers ``UMT5EncoderModel`` from a state dict in Wan's or transformers' layout (checked by name)."""
    if "token_embedding.weight" in sd:
        sd = wan_t5_to_transformers(sd)
    elif "shared.weight" in sd:
        sd = {**sd, _TIED: sd["shared.weight"]}
    sizes = sizes_of(sd, where)
    model = _build(sizes, "meta")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    # A full umT5 file also has the decoder's half: it is not needed here.
    sd = {key: value for key, value in sd.items() if not key.startswith(("decoder.", "lm_head."))}
    shapes.setdefault(_TIED, shapes["shared.weight"])
    check_shapes(sd, shapes, where, f"an umT5 encoder of width {sizes.dim} with {sizes.layers} layers")
    model.load_state_dict(placed(sd, device, dtype), assign=True)
    return model


def load_umt5(
    path: Path | str,
    tokenizer: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    on_overflow: str = "error",
) -> UMT5Encoder:
    """Load the original ``.pth`` (bf16) or a transformers folder; ``dtype`` None keeps the file's own.

    On the CPU in the file's dtype the weights stay memory-mapped: 11.4 GB are read when first used, not at load.
    """
    file = open_weights(path)
    model = umt5_model_from(file.content, device, dtype, str(file.path))
    settings = file.path.parent / "config.json"
    if settings.is_file() and file.kind == "safetensors":
        _check_settings(settings)
    return UMT5Encoder(model, load_tokenizer(tokenizer), on_overflow=on_overflow)


def _check_settings(path: Path) -> None:
    """A transformers folder must be of the kind we build: its config is not otherwise trusted."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not json ({error})") from error
    kind, act = values.get("model_type", "umt5"), values.get("feed_forward_proj", "gated-gelu")
    if (kind, act) != ("umt5", "gated-gelu"):
        raise UserError(f"{path} describes a '{kind}' with '{act}', not an umT5 with gated-gelu")

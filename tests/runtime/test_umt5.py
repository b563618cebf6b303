"""The real model's text encoder at a tiny size, with a tokenizer made here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.key_maps import transformers_t5_to_wan
from shotstream.runtime.text.umt5 import (
    PARAMETERS,
    UMT5Encoder,
    UMT5Sizes,
    _build,
    clean_caption,
    load_tokenizer,
    load_umt5,
    umt5_model_from,
)

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
SIZES = UMT5Sizes(vocab=64, dim=32, heads=4, head_dim=8, ffn_dim=48, layers=3)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram tokenizer of letters and a few words, with umT5's special tokens and end-token rule."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁fox", -1.0), ("▁shot", -1.5)]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789:.<>&"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(8)  # what a stored tokenizer may ask for must not reach our captions
    folder = tmp_path_factory.mktemp("umt5")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> UMT5Encoder:
    torch.manual_seed(0)
    return UMT5Encoder(_build(SIZES, "cpu"), load_tokenizer(tokenizer_folder), text_len=40)


def test_captions_are_mended_unescaped_twice_and_their_white_space_collapsed() -> None:
    assert clean_caption("  The fox &amp;amp; the\n\tcrow sayâ€¦ ") == "The fox & the crow say…"


def test_rows_behind_a_caption_are_zero_and_all_rows_are_kept(encoder: UMT5Encoder) -> None:
    rows = encoder.encode(["fox", "fox shot0: fox"])
    lengths = [len(encoder.token_ids(c)) for c in ("fox", "fox shot0: fox")]
    assert rows.shape == (2, 40, 32)
    for row, length in zip(rows, lengths, strict=True):
        assert row[:length].abs().amin(1).max() > 0
        assert torch.equal(row[length:], torch.zeros(40 - length, 32))


def test_encoding_at_its_own_length_equals_the_masked_batch_of_the_reference(encoder: UMT5Encoder) -> None:
    captions = ["fox", "a fox and a crow."]
    ids = torch.zeros(2, 40, dtype=torch.long)
    for i, caption in enumerate(captions):
        tokens = encoder.token_ids(caption)
        ids[i, : len(tokens)] = torch.tensor(tokens)
    mask = (ids != 0).long()
    with torch.no_grad():
        batch = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    assert torch.allclose(encoder.encode(captions), batch, atol=1e-5)


def test_a_caption_gives_the_same_rows_whatever_stands_beside_it(encoder: UMT5Encoder) -> None:
    encoder._cache.clear()
    alone = encoder.encode(["fox"])[0]
    encoder._cache.clear()
    assert torch.equal(encoder.encode(["a crow.", "fox"])[1], alone)


def test_a_caption_that_does_not_fit_is_refused_and_says_by_how_much(encoder: UMT5Encoder) -> None:
    with pytest.raises(UserError, match="a caption of 61 tokens is 21 too long for the model's 40"):
        encoder.encode([" ".join(["fox"] * 60)])


def test_truncation_on_request_keeps_the_end_token_and_reports_the_loss(
    tokenizer_folder: Path, encoder: UMT5Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    cutting = UMT5Encoder(encoder.model, load_tokenizer(tokenizer_folder), text_len=40, on_overflow="truncate")
    ids = cutting.token_ids(" ".join(["fox"] * 60))
    assert (len(ids), ids[-1]) == (40, 1)
    assert "21 of its 61 tokens are lost" in caplog.text


def test_the_original_file_and_a_transformers_folder_load_to_the_same_encoder(
    tokenizer_folder: Path, encoder: UMT5Encoder, tmp_path: Path
) -> None:
    sd = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    torch.save(transformers_t5_to_wan(sd), tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    (tmp_path / "hub").mkdir()
    sd.pop("encoder.embed_tokens.weight", None)
    save_file(sd, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "umt5", "feed_forward_proj": "gated-gelu"}')
    expected = encoder.encode(["fox"])[:, :5]
    for path in (tmp_path / "models_t5_umt5-xxl-enc-bf16.pth", tmp_path / "hub"):
        assert torch.allclose(load_umt5(path, tokenizer_folder).encode(["fox"])[:, :5], expected, atol=1e-6)


def test_bf16_files_stay_bf16_and_tied_weights_stay_one_tensor(encoder: UMT5Encoder) -> None:
    model = umt5_model_from(encoder.model.state_dict(), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.shared.weight.data_ptr() == model.encoder.embed_tokens.weight.data_ptr()


def test_a_missing_layer_and_a_missing_tokenizer_are_named(encoder: UMT5Encoder, tmp_path: Path) -> None:
    sd = dict(encoder.model.state_dict())
    del sd["encoder.block.1.layer.1.layer_norm.weight"]
    with pytest.raises(UserError, match=r"missing encoder\.block\.1\.layer\.1\.layer_norm\.weight"):
        umt5_model_from(sd)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)


def test_the_default_sizes_are_those_of_umt5_xxl() -> None:
    model = _build(UMT5Sizes(), "meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS

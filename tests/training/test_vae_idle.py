"""Units of the codec that never fire are left out, and nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_vae_stage import RECIPE, sliding_box, train

from shotstream.runtime.decoders.tiny_vae import MemoryBlock, TinyVAE, TinyVAEConfig
from shotstream.runtime.errors import UserError
from shotstream.training.data.clips import to_pixels
from shotstream.training.stages.vae import grown
from shotstream.training.stages.vae_idle import without_idle_units

CONFIG = TinyVAEConfig(
    latent_channels=4, encoder_channels=(16, 8, 8, 16), decoder_channels=(16, 8, 16), decoder_blocks=(2, 1, 3)
)
CLIPS = [sliding_box(seed, 9, 32, 64) for seed in range(3)]


def codec(idle: dict[str, int]) -> TinyVAE:
    """Random weights; of these blocks the last so many units cannot fire."""
    torch.manual_seed(0)
    vae = TinyVAE(CONFIG)
    for name, block in vae.named_modules():
        if isinstance(block, MemoryBlock):
            assert block.mix.bias is not None
            assert block.split.bias is not None
            torch.nn.init.normal_(block.mix.bias)
            torch.nn.init.constant_(block.split.bias, 5.0)
            if name in idle:
                block.split.bias.data[len(block.split.bias) // 2 - idle[name] : len(block.split.bias) // 2] = -1e3
    return vae.eval()


IDLE = {"encoder.block_b": 8, "encoder.block_d": 5, "decoder.blocks_a.0": 16, "decoder.blocks_a.1": 8,
        "decoder.blocks_c.1": 16}  # fmt: skip


@torch.no_grad()
def test_a_codec_without_its_idle_units_is_smaller_and_does_the_same(tmp_path: Path) -> None:
    vae = codec(IDLE)
    small = without_idle_units(vae, CLIPS, 1.0)
    assert small.config.decoder_blocks == (1, 1, 2)
    assert small.config.hidden == (16, 0, 16, 16, 8, 8, 16, 16), "five of sixteen are kept for company"
    small.save(tmp_path / "vae.safetensors")
    video = to_pixels(np.stack(CLIPS))
    for made in (small, TinyVAE.load(tmp_path / "vae.safetensors"), without_idle_units(small, CLIPS, 1.0)):
        assert made.config == small.config
        torch.testing.assert_close(made.encode(video), vae.encode(video))
        z = vae.encode(video)
        torch.testing.assert_close(made.decode(z), vae.decode(z))
        stream = made.new_stream(3)
        parts = [made.decode_chunk(z[:, :1], stream), made.decode_chunk(z[:, 1:], stream)]
        torch.testing.assert_close(torch.cat(parts, 1), vae.decode(z))
    wrong = without_idle_units(vae, CLIPS, -1e4)  # as if nothing fired
    assert not torch.allclose(wrong.decode(z), vae.decode(z), atol=1e-3)


def test_units_near_firing_are_kept() -> None:
    assert without_idle_units(codec(IDLE), CLIPS, 1e5).config.hidden == (16, 8, 16, 16, 16, 16, 8, 16, 16, 16)


@torch.no_grad()
def test_a_codec_without_idle_units_can_get_more_blocks() -> None:
    small = without_idle_units(codec(IDLE), CLIPS, 1.0)
    larger = grown(small, dataclasses.replace(CONFIG, decoder_blocks=(2, 2, 2)))
    assert larger.config.hidden == (16, 0, 16, 16, 8, 16, 8, 8, 16, 16)
    z = torch.randn(1, 3, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(larger.decode(z), small.decode(z))


def test_the_stage_leaves_idle_units_out_where_its_recipe_says_so(tmp_path: Path) -> None:
    whole = TinyVAE.load(train(tmp_path / "whole"))
    sure = TinyVAE.load(train(tmp_path / "sure", dataclasses.replace(RECIPE, idle_margin=1e3)))
    assert not whole.config.hidden
    assert sure.config.hidden == (4, 4, 8, 8, 8, 6, 4), "nothing is as far from firing"
    z = torch.randn(1, 2, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sure.decode(z), whole.decode(z))


@pytest.mark.parametrize("hidden", [(1,), (8, 8, 8, 8, 8, 8, 8, 8, 8, -1), (8, 8, 8, 8, 8, 8, 8, 8, 8, 0)], ids=str)
def test_hidden_units_that_do_not_fit_are_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="10 memory blocks"):
        dataclasses.replace(CONFIG, hidden=hidden)

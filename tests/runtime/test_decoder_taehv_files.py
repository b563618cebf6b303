"""TAEHV's files and its place in the runtime: what is loaded from where, what is refused, and a film decoded by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shotstream.runtime.cli import run
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.taehv import Taehv, TaehvConfig, load_taehv, random_taehv
from shotstream.runtime.decoders.wan_vae import WanVAEConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.fetch import read_manifest
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import CorePlugin
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.wan import WanPlugin, WanSizes, memory_plan

SMALL = TaehvConfig(latent_channels=16, encoder_width=6, decoder_widths=(10, 8, 7, 6))
SIZES = WanSizes(
    config=DiTConfig(dim=32, heads=2, ffn_dim=64, layers=2, text_len=24, text_dim=32),
    vae=WanVAEConfig(base_dim=8),
    taehv=SMALL,
    latent_size=(4, 6),
    vae_parameters=924_491,
    text_parameters=30_000,
)
StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def codec() -> Taehv:
    return random_taehv(SMALL, seed=5)


def request(weights: str | Path, **options: object) -> ModelRequest:
    return ModelRequest(torch.device("cpu"), torch.float32, weights, options=options)


# ---------------------------------------------------------------------------------------------------- files


def test_both_published_kinds_of_file_load_to_the_same_codec(codec: Taehv, tmp_path: Path) -> None:
    half = {key: value.half().contiguous() for key, value in codec.state_dict().items()}
    torch.save(half, tmp_path / "taew2_1.pth")
    save_file(half, tmp_path / "taew2_1.safetensors")
    z = torch.randn(1, 2, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    one, two = (load_taehv(tmp_path / name) for name in ("taew2_1.pth", "taew2_1.safetensors"))
    assert (one.dtype, one.config) == (torch.float32, SMALL)
    assert torch.equal(one.decode(z), two.decode(z))
    assert torch.allclose(one.decode(z), codec.decode(z), atol=1e-3)
    assert load_taehv(tmp_path / "taew2_1.pth", dtype=torch.bfloat16).dtype == torch.bfloat16


def _without(sd: StateDict) -> None:
    del sd["decoder.9.conv.2.bias"]


def _with_more(sd: StateDict) -> None:
    sd["decoder.3.skip.weight"] = torch.zeros(1)


def _of_another_shape(sd: StateDict) -> None:
    sd["decoder.13.conv.weight"] = sd["decoder.13.conv.weight"][:8]


def _of_patched_pixels(sd: StateDict) -> None:
    """As the files for Wan2.2 and Hunyuan Video 1.5, which work on blocks of 2 x 2 pixels."""
    sd["encoder.0.weight"] = sd["encoder.0.weight"].repeat(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without, r"missing decoder\.9\.conv\.2\.bias"),
        (_with_more, r"unexpected decoder\.3\.skip\.weight"),
        (_of_another_shape, r"wrong shape decoder\.13\.conv\.weight is \(8, 8, 1, 1\), not \(16, 8, 1, 1\)"),
        (_of_patched_pixels, r"wrong shape encoder\.0\.weight is \(6, 12, 3, 3\), not \(6, 3, 3, 3\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_key(
    codec: Taehv, tmp_path: Path, damage: Callable[[StateDict], None], says: str
) -> None:
    sd = dict(codec.state_dict())
    damage(sd)
    torch.save(sd, tmp_path / "taew2_1.pth")
    with pytest.raises(UserError, match=rf"taew2_1\.pth does not fit a TAEHV for latents of 16 channels: {says}"):
        load_taehv(tmp_path / "taew2_1.pth")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for number, content in enumerate(({"layer.weight": torch.zeros(2)}, {"step": 3}, {"a": {"b": torch.zeros(1)}})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match="holds no TAEHV weights"):
            load_taehv(tmp_path / f"{number}.pth")


# ---------------------------------------------------------------------------------------------------- places


def test_the_manifest_pins_the_file_that_the_loader_looks_for(
    codec: Taehv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plugin = WanPlugin(SIZES)
    with pytest.raises(UserError, match=r"no weights of 'taehv' at .*/taehv; run: shotstream fetch taehv$"):
        plugin.load_taehv(request("default"))
    (file,) = read_manifest("taehv")
    assert len(file.revision) == 40
    assert len(file.sha256 or "") == 64
    path = tmp_path / ".cache/shotstream/taehv" / file.target
    path.parent.mkdir(parents=True)
    with pytest.raises(UserError, match=r"lacks taew2_1\.safetensors \(taehv\); run: shotstream fetch taehv --to"):
        plugin.load_taehv(request("default"))
    save_file({key: value.contiguous() for key, value in codec.state_dict().items()}, path)
    for where in (request("default"), request(path.parent), request("default", taehv=path)):
        assert plugin.load_taehv(where).config == SMALL


def test_a_preset_told_to_decode_with_taehv_does_not_load_the_wan_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = WanPlugin(SIZES)
    monkeypatch.setattr(plugin, "load_decoder", lambda request: pytest.fail("the Wan VAE was loaded"))
    assert isinstance(plugin.load(request("random", decoder="taehv")).decoder, Taehv)
    with pytest.raises(UserError, match="has no decoder 'jpeg'; it has wan-vae, taehv"):
        plugin.load(request("random", decoder="jpeg"))


def test_the_memory_plan_knows_the_decoder() -> None:
    full, small = (memory_plan(WanSizes(), decoder=name).items for name in ("wan-vae", "taehv"))
    assert small["video codec"] == 2 * 11_315_539
    assert small["decoder stream"] == 2 * 3 * 60 * 104 * (256 + 4 * 128 + 16 * 64)
    assert "decoder stream" not in full
    assert small["decoder stream"] * 20 < full["decoder stream (estimated)"]
    same = set(full) & set(small) - {"video codec", "working space (estimated)"}
    assert all(full[item] == small[item] for item in same)


# ---------------------------------------------------------------------------------------------------- a film


def film(**options: object) -> tuple[torch.Tensor, str]:
    """Two chunks of two shots, as bytes, and the identity of the weights."""
    with Runtime("wan-1.3b", weights="random", plugins=[CorePlugin(), WanPlugin(SIZES)], **options) as made:
        chunks = []
        with made.open("A fox. ", seed=5) as session:
            for caption in ("It runs.", "It sleeps."):
                session.cut(caption, chunks=2)
                chunks += [torch.as_tensor(chunk.frames) for chunk in session.chunks()]
        assert [len(chunk) for chunk in chunks] == [9, 12, 9, 12]
        return torch.cat(chunks), made.parts.weights_hash


def test_a_story_plays_with_taehv_and_its_frames_are_remembered_through_it() -> None:
    pytest.importorskip("diffusers")
    (own, own_hash), (exchanged, _), (chosen, chosen_hash) = (
        film(),
        film(decoder="taehv"),
        film(model_options={"decoder": "taehv"}),
    )
    assert exchanged.shape == own.shape == (42, 32, 48, 3)
    assert torch.equal(exchanged, chosen)
    assert not torch.equal(exchanged, own)
    assert own_hash != chosen_hash


def test_a_model_with_other_latents_is_refused_when_it_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    says = "the decoder 'taehv' does not fit this model: it reads latents of 16 channels, and the model makes 32"
    with pytest.raises(UserError, match=says):
        Runtime("tiny", weights="random", decoder="taehv")
    story = tmp_path / "story.txt"
    story.write_text("A story about a red cat.\nIt waves.\n")
    arguments = ("play", str(story), "--weights", "random", "--decoder", "taehv", "--out", str(tmp_path / "out"))
    assert run(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())

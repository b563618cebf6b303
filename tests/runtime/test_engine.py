"""The eager engine and the embedded preset: caches allocated once, weights checked when they are read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shotstream.runtime.config import TINY
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.engine import EagerEngine, ShotContext
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import sdpa
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.noise import NoiseSource
from shotstream.runtime.presets import DEFAULT_PLUGINS, load_transformer
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.text.tiny import TinyTextEncoder


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """Files of the `tiny` preset with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    TinyVAE().save(folder / "vae.safetensors")
    transformer, text = Transformer(TINY), TinyTextEncoder()
    save_file(transformer.state_dict(), folder / "dit.safetensors", {"config": TINY.to_json()})
    save_file(text.state_dict(), folder / "text.safetensors", {"config": text.config.to_json()})
    return folder


def shot_of(runtime, state, caption="a fox", chunks=2):
    """Latents of one first shot, straight from the engine."""
    engine, parts = runtime.engine, runtime.parts
    kv = engine.embed_caption(parts.text.encode([caption]))
    zeros = torch.zeros(6, *parts.latent_shape)
    engine.begin_shot(state, ShotContext(zeros, [0] * 6, [kv], [0] * 6), kv)
    noise, made = NoiseSource(1, runtime.device, runtime.dtype), []
    for chunk in range(chunks):

        def draw(step, chunk=chunk):
            return noise.draw(0, chunk, step, (1, 3, *parts.latent_shape))

        made.append(engine.denoise(state, 3 * chunk, draw(0), lambda i, draw=draw: draw(i + 1)))
        engine.clean(state, 3 * chunk, made[-1])
    return torch.cat(made, 1)


@torch.inference_mode()
def test_a_state_is_reused_from_shot_to_shot_without_a_trace(small_runtime):
    runtime = small_runtime(engine="eager")
    used, fresh = runtime.engine.new_state(), runtime.engine.new_state()
    pointers = [k.data_ptr() for k in used.cache.k]
    shot_of(runtime, used, "another shot before", chunks=7)
    assert torch.equal(shot_of(runtime, used), shot_of(runtime, fresh))
    assert [k.data_ptr() for k in used.cache.k] == pointers


@torch.inference_mode()
def test_caches_hold_27_frames_per_layer(small_runtime):
    runtime = small_runtime(engine="eager")
    config = runtime.parts.config
    tokens = 27 * 2 * 3
    assert runtime.engine.new_state().nbytes == 2 * config.layers * tokens * config.dim * 4


def test_an_attention_backend_is_used_when_asked_for(small_runtime):
    calls = []

    def counting(q, k, v, mask=None):
        calls.append(q.shape)
        return sdpa(q, k, v, mask)

    class Backend:
        name = "backend"

        def build(self, registry):
            registry.register("attention", "counting", lambda: counting)

    plain, runtime = small_runtime(engine="eager"), small_runtime(Backend(), engine="eager", attention="counting")
    with torch.inference_mode():
        ours, theirs = (shot_of(r, r.engine.new_state()) for r in (plain, runtime))
    assert torch.equal(ours, theirs)
    assert calls


def test_the_engine_runs_any_configuration(small_runtime):
    options = {"dim": 48, "heads": 1, "layers": 3, "chunk_frames": 3, "local_frames": 9, "shift": 8.0}
    runtime = small_runtime(engine="eager", model_options=options)
    assert isinstance(runtime.engine, EagerEngine)
    session = runtime.open()
    session.begin_shot("a fox", 5)
    assert sum(len(c.frames) for c in session.chunks()) == 9 + 4 * 12


# ------------------------------------------------------------------------------------ the preset `tiny`
def test_tiny_plays_from_a_folder_of_weights(tiny_weights):
    with Runtime("tiny", weights=tiny_weights) as runtime:
        assert runtime.parts.frame_size == (160, 256)
        session = runtime.open("A field. ", seed=1)
        session.begin_shot("a hero walks")
        chunk = session.next_chunk()
    assert chunk.frames.shape == (9, 160, 256, 3)
    assert not chunk.last


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hashes = [Runtime("tiny", weights="random", weights_seed=s).parts.weights_hash for s in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("part", ["dit", "vae", "text"])
def test_a_missing_weights_file_is_named(tiny_weights, tmp_path, part):
    for name in {"dit", "vae", "text"} - {part}:
        (tmp_path / f"{name}.safetensors").symlink_to(tiny_weights / f"{name}.safetensors")
    with pytest.raises(UserError, match=f"{part}.safetensors is missing"):
        Runtime("tiny", weights=tmp_path)


def test_missing_unknown_and_misshaped_tensors_are_named(tmp_path):
    config = dataclasses.replace(TINY, dim=48, heads=2, ffn_dim=32, layers=1)
    good = Transformer(config).state_dict()
    path = tmp_path / "dit.safetensors"
    for change, reason in (
        ({"head.modulation": None}, "missing head.modulation"),
        ({"extra.weight": torch.zeros(1)}, "unknown extra.weight"),
        ({"head.modulation": torch.zeros(1, 2, 7)}, r"head.modulation is \(1, 2, 7\), not \(1, 2, 48\)"),
    ):
        tensors = {key: value for key, value in {**good, **change}.items() if value is not None}
        save_file(tensors, path, {"config": config.to_json()})
        with pytest.raises(UserError, match=reason):
            load_transformer(path)
    save_file(good, path)
    with pytest.raises(UserError, match="carries no configuration"):
        load_transformer(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_transformer(path)


# ------------------------------------------------------------------------------------ on a GPU
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_make_the_same_first_shot_from_the_same_seed():
    films = []
    for device in ("cpu", "cuda"):
        with Runtime("tiny", weights="random", device=device, dtype=torch.float32) as runtime:
            session = runtime.open("A field. ", seed=1)
            session.begin_shot("a hero walks", 2)
            films.append(np.concatenate([c.frames for c in session.chunks()]).astype(int))
    assert np.abs(films[0] - films[1]).mean() < 0.5


def test_a_warm_up_changes_nothing_that_is_made_afterwards() -> None:
    def film(warm: bool) -> list[bytes]:
        with Runtime("tiny", weights="random", plugins=DEFAULT_PLUGINS) as runtime:
            if warm:
                runtime.warm_up()
            with runtime.open("A story about a red cat.", seed=3) as session:
                session.cut("Wide shot: the red cat waves.", chunks=1)
                return [chunk.frames.tobytes() for chunk in session.chunks()]

    assert film(warm=True) == film(warm=False)

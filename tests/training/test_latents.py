"""Shards of latents: what they hold, and how they are made."""

from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.training.data import latents
from shotstream.training.data.latents import LatentPlan, LatentStories, make_latents
from shotstream.training.pipeline import Pipeline
from shotstream.training.recipe import Recipe
from shotstream.training.world import render_shot, sample_story

PLANS = {
    "clips": LatentPlan(stories=2, shots=2, frames=9),
    "singles": LatentPlan(stories=2, shots=2, frames=9, clips=False, positions=(0, 6)),
}


@pytest.fixture(scope="module")
def vae() -> TinyVAE:
    torch.manual_seed(0)
    return TinyVAE()


@pytest.mark.parametrize("kind", PLANS)
def test_shards_hold_what_the_codec_makes_of_the_shots(kind: str, vae: TinyVAE, tmp_path: Path) -> None:
    plan = PLANS[kind]
    make_latents(vae, plan, tmp_path)
    stories = LatentStories(tmp_path, plan)
    assert len(stories) == 2
    for story, shot in ((0, 1), (1, 0)):
        pixels = render_shot(sample_story(stories.seeds[story], 2), shot, range(9), height=80, width=128)
        video = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            singles = vae.encode_base(video[plan.single_frames][:, None])[:, 0].float()
            clip = vae.encode_base(video[None])[0].float()
        for position, single in enumerate(singles):
            torch.testing.assert_close(stories.single(story, shot, position), single, atol=0.02, rtol=0.02)
        if plan.clips:
            torch.testing.assert_close(stories.clip(story, shot, len(clip)), clip, atol=0.02, rtol=0.02)


def test_missing_shards_are_made_two_at_a_time_and_others_stay(
    vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[_CountingPool] = []

    def counting(*arguments: Any) -> _CountingPool:
        pools.append(_CountingPool(get_context("spawn").Pool(*arguments)))
        return pools[-1]

    monkeypatch.setattr(latents, "STORIES_PER_SHARD", 1)
    monkeypatch.setattr(latents, "get_context", lambda kind: SimpleNamespace(Pool=counting))
    plan = LatentPlan(stories=4, shots=2, frames=5)
    make_latents(vae, plan, tmp_path)
    first = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    assert list(first) == [f"shard_{i:05d}.safetensors" for i in range(4)]
    assert (pools[0].asked, pools[0].most) == (4, 2)
    for lost in (0, 3):
        (tmp_path / f"shard_{lost:05d}.safetensors").unlink()
    make_latents(vae, plan, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert (pools[1].asked, pools[1].most) == (2, 2), "what was there is not made again"


def test_slices_by_the_clock_end_with_a_shard_and_say_how_far_they_came(
    vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "STORIES_PER_SHARD", 1)
    plan = LatentPlan(stories=3, shots=2, frames=5)
    told: list[tuple[int, int]] = []
    slices = [
        make_latents(vae, plan, tmp_path, deadline=0.0, progress=lambda done, total: told.append((done, total)))
        for _ in range(4)
    ]
    assert slices == [False, False, True, True]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_run_makes_its_latents_in_slices(vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "STORIES_PER_SHARD", 1)
    (tmp_path / "vae").mkdir()
    vae.save(tmp_path / "vae" / "vae.safetensors")
    held_out, stories = (LatentPlan(stories=n, shots=2, frames=5, first_seed=100 * n) for n in (1, 2))
    recipe = Recipe(name="small", held_out=held_out, latents=stories, images=None, render_workers=1)
    told: list[tuple[str, int, int]] = []
    run = Pipeline(recipe, tmp_path, minutes=0.0, progress=lambda *shown: told.append(shown[:3]))
    assert [run.latents(), run.latents()] == [False, True]
    assert told == [("held_out", 1, 1), ("latents", 1, 2), ("latents", 2, 2)]


@pytest.mark.parametrize("wrong", [{"stories": 0}, {"shots": 1}, {"frames": 0}], ids=str)
def test_a_plan_of_nothing_to_remember_is_refused(wrong: dict[str, int]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"two shots or more .*{name}: {value}"):
        LatentPlan(**({"stories": 2} | wrong))


class _CountingPool:
    """A pool that counts the shards it was asked for, and how many of them were under way at once."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.asked, self.taken, self.most = pool, 0, 0, 0

    def __enter__(self) -> "_CountingPool":
        return self

    def __exit__(self, *arguments: object) -> None:
        self.pool.terminate()

    def starmap_async(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        result = self.pool.starmap_async(*arguments, **options)
        self.asked += 1
        self.most = max(self.most, self.asked - self.taken)
        return SimpleNamespace(get=lambda: self._take(result))

    def _take(self, result: AsyncResult) -> object:
        self.taken += 1
        return result.get()

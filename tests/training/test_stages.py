"""The training stages as a whole, at a size that takes seconds: they run in order, resume exactly and leave
playable weights.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.text.tiny import TinyTextConfig
from shotstream.training.data.latents import LatentPlan, LatentStories
from shotstream.training.distributed.flops import Work
from shotstream.training.pipeline import Pipeline
from shotstream.training.recipe import Recipe, build, explain, load_recipe
from shotstream.training.stages.continuation import ContinuationRecipe
from shotstream.training.stages.coupled import CoupledRecipe
from shotstream.training.stages.dmd import DmdRecipe
from shotstream.training.stages.ode import OdeRecipe
from shotstream.training.stages.pairs import sampler_sigmas
from shotstream.training.stages.perceptual import PerceptualRecipe
from shotstream.training.stages.teacher import Phase, TeacherRecipe, TeacherStage
from shotstream.training.stages.text import TextRecipe
from shotstream.training.stages.trainer import LoopConfig, lr_factor, run_stage
from shotstream.training.stages.vae import VAERecipe
from shotstream.training.weights import load_dit_weights, save_weights, weights_of

MODEL = DiTConfig(dim=32, heads=2, ffn_dim=64, layers=2, channels=32, text_len=48, text_dim=32, shift=3.0)
TEXT = TinyTextConfig(dim=32, heads=2, layers=1, buckets=64)
TEACHER = TeacherRecipe(
    model=MODEL,
    phases=(Phase(2, 4, 1, 0), Phase(2, 2, 1, 2), Phase(2, 2, 3, 6)),
    warmup=1,
    precision="float32",
    parts_layer=0,
)
COUPLED = CoupledRecipe(
    phases=(Phase(2, 2, 1, 2), Phase(2, 2, 3, 6), Phase(2, 1, 6, 6)), frames=6, warmup=1, precision="float32",
    perceptual=1.0,
)  # fmt: skip
CONTINUATION = ContinuationRecipe(steps=2, batch=1, frames=6, lr=1e-2, warmup=1, ema=0.5, precision="float32")
RECIPE = Recipe(
    name="miniature",
    text=TextRecipe(encoder=TEXT, steps=2, batch=4),
    latents=LatentPlan(stories=2, shots=3, frames=21),
    images=LatentPlan(stories=1, shots=3, frames=9, first_seed=500, clips=False, positions=(0, 6)),
    held_out=LatentPlan(stories=1, shots=3, frames=9, first_seed=10_000),
    teacher=TEACHER,
    ode=OdeRecipe(pairs=2, frames=3, substeps=1, pair_batch=2, steps=2, batch=2, precision="float32"),
    intra=DmdRecipe(steps=3, batch=2, frames=3, ratio=2, precision="float32"),
    continuation=CONTINUATION,
    perceptual=PerceptualRecipe(steps=2, batch=2, width=12, warmup=1),
    coupled=COUPLED,
    inter=DmdRecipe(steps=1, batch=1, frames=3, shots=2, ratio=2, lora_rank=2, precision="float32"),
    render_workers=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a codec of random weights and the latents of two stories."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    vae = TinyVAE()
    (out / "vae").mkdir()
    vae.save(out / "vae" / "vae.safetensors")
    assert Pipeline(RECIPE, out).text()
    assert Pipeline(RECIPE, out).latents()
    return out


def teacher(run: Path, recipe: TeacherRecipe = TEACHER) -> TeacherStage:
    pipeline = Pipeline(RECIPE, run)
    images = LatentStories(run / "images", RECIPE.images)
    return TeacherStage(recipe, [pipeline._data(), images], pipeline._held_out(), pipeline._text(), pipeline._codec())


def test_stories_tell_where_the_camera_moves(run: Path) -> None:
    stories = LatentStories(run / "latents", RECIPE.latents)
    stories.seeds = list(range(20))
    told = {(s, k): stories.camera_moves(s, k) for s in range(len(stories)) for k in range(stories.shots(s))}
    words = ("camera", "pan", "zoom", "push")
    for (story, shot), moves in told.items():
        assert moves == any(word in stories.captions(story, [shot], None)[0] for word in words)
    assert 5 <= sum(told.values()) <= 25, "of 60 shots"


def test_a_killed_teacher_goes_on_to_exactly_the_same_weights(run: Path, tmp_path: Path) -> None:
    loop = LoopConfig(steps=6, warmup=1, save_every=2, log_every=2, sheet_every=100)
    whole, broken = teacher(run), teacher(run)
    for step in range(6):
        whole.step(step, lr_factor(step, loop))
    run_stage(_Stopping(broken, after=4), loop, tmp_path, minutes=0.0)
    resumed = teacher(run)
    run_stage(_Silent(resumed), loop, tmp_path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_teacher_starts_from_the_weights_of_another_one(run: Path, tmp_path: Path) -> None:
    first = teacher(run)
    first.step(0, 1.0)
    save_weights(first.model, first.model.config.to_json(), tmp_path / "dit.safetensors")
    second = teacher(run, replace(TEACHER, init=str(tmp_path / "dit.safetensors")))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_all_stages_run_in_order_and_leave_weights_that_the_runtime_plays(run: Path) -> None:
    pipeline = Pipeline(RECIPE, run)
    for stage in ("teacher", "ode", "intra", "inter", "continuation", "perceptual", "coupled", "export"):
        assert pipeline.run(stage), stage
    assert {p.name for p in (run / "weights").glob("*.safetensors")} == {
        "dit.safetensors",
        "text.safetensors",
        "vae.safetensors",
    }
    for stage in ("teacher", "ode", "intra", "inter", "continuation", "coupled"):
        assert list((run / stage).glob("sheet_*.png")), stage
        assert (run / stage / "log.jsonl").read_text().count("\n") >= 1
        assert (run / stage / "curves.png").stat().st_size > 1000
    offsets = [
        load_dit_weights(run / s / "dit.safetensors", s).config.noise_offset for s in ("continuation", "coupled")
    ]
    assert offsets == [0.0, 0.5]
    assert load_dit_weights(run / "weights" / "dit.safetensors", "export").config.noise_offset == 0.5


def test_a_run_goes_on_with_the_shipped_weights_and_with_exported_ones(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = replace(RECIPE, start="default", coupled=replace(COUPLED, phases=(Phase(1, 1, 3, 6),)))
    assert recipe.stages == ("latents", "continuation", "perceptual", "coupled", "export")
    for part in ("latents", "images", "held_out"):
        (tmp_path / part).symlink_to(run / part)
    for stage in ("perceptual", "coupled"):
        assert Pipeline(replace(recipe, continuation=None), tmp_path).run(stage)
    before, after = (load_file(tmp_path / stage / "dit.safetensors") for stage in ("inter", "coupled"))
    assert before.keys() == after.keys()
    assert next(iter(before.values())).dtype == torch.float16, "the shipped file itself"
    assert Pipeline(recipe, tmp_path).run("export")
    further = replace(recipe, start=str(tmp_path / "weights"))
    assert Pipeline(further, tmp_path).run("export")
    said = [r.getMessage() for r in caplog.records if r.name == "shotstream.training.weights"]
    assert f"{tmp_path} goes on with its own inter/dit.safetensors, which is not that of {further.start}" in said
    assert Pipeline(further, tmp_path / "further").run("export")
    for part in ("dit", "text", "vae"):
        old, new = (load_file(out / "weights" / f"{part}.safetensors") for out in (tmp_path, tmp_path / "further"))
        assert all(torch.equal(old[name], new[name]) for name in old), part


def test_a_codec_may_go_on_learning_before_the_rest_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def trained(recipe: VAERecipe, folder: Path) -> None:
        started.append(recipe.start)
        assert not recipe.frozen_encoder
        assert not (folder / "vae.safetensors").exists()
        folder.mkdir()
        (folder / "vae.safetensors").write_bytes(b"a codec")

    monkeypatch.setattr("shotstream.training.pipeline.run_vae_stage", trained)
    recipe = replace(RECIPE, start="default", vae=VAERecipe(start="default"))
    assert recipe.stages[:2] == ("vae", "latents")
    assert Pipeline(recipe, tmp_path).run("vae")
    assert Pipeline(recipe, tmp_path).run("vae"), "it is there"
    assert started == [str(weights_of("default", "vae"))]
    assert (tmp_path / "inter" / "dit.safetensors").exists()
    with pytest.raises(UserError, match="there is no folder of weights at nowhere"):
        Pipeline(replace(recipe, vae=VAERecipe(start="nowhere")), tmp_path / "other").run("vae")


def test_a_start_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder of weights at nowhere"):
        Pipeline(replace(RECIPE, start="nowhere"), tmp_path).run("latents")
    with pytest.raises(UserError, match="recipe miniature has no stage teacher; its stages are latents, continuation"):
        Pipeline(replace(RECIPE, start="default"), tmp_path).run("teacher")
    with pytest.raises(UserError, match=r"give the teacher its first weights: teacher: \{init: FILE\}"):
        Recipe(name="films", source="videos", start="default")


def test_what_continuation_keeps_lies_between_the_student_before_and_after(run: Path, tmp_path: Path) -> None:
    for part in ("vae", "text", "latents", "images", "held_out"):
        (tmp_path / part).symlink_to(run / part)
    student = teacher(run).model
    (tmp_path / "inter").mkdir()
    save_weights(student, student.config.to_json(), tmp_path / "inter" / "dit.safetensors")
    kept = {}
    for blend in (1e-6, 0.5, 1.0):
        recipe = replace(RECIPE, continuation=replace(CONTINUATION, blend=blend))
        assert Pipeline(recipe, tmp_path).run("continuation")
        kept[blend] = load_file(tmp_path / "continuation" / "dit.safetensors")
        shutil.rmtree(tmp_path / "continuation")
    for name, before in load_file(tmp_path / "inter" / "dit.safetensors").items():
        assert torch.allclose(kept[1e-6][name], before, atol=1e-5), name
        assert torch.allclose(kept[0.5][name], (before + kept[1.0][name]) / 2, atol=1e-6), name
    head = "head.head.weight"
    assert not torch.allclose(kept[1e-6][head], kept[1.0][head], atol=1e-4)


def test_context_noise_and_the_motion_loss_reach_their_stages(run: Path, tmp_path: Path) -> None:
    for part in ("vae", "text", "latents", "images", "held_out"):
        (tmp_path / part).symlink_to(run / part)
    recipe = replace(RECIPE, context_noise=300.0, teacher=replace(TEACHER, motion_weight=4.0))
    pipeline = Pipeline(recipe, tmp_path)
    for stage in ("teacher", "ode", "intra", "export"):
        assert pipeline.run(stage), stage
    assert "motion_6+3" in (tmp_path / "teacher" / "log.jsonl").read_text()
    assert load_dit_weights(tmp_path / "weights" / "dit.safetensors", "export").config.context_noise == 300.0


def test_a_figure_that_is_not_finite_ends_the_stage_and_keeps_the_checkpoint(run: Path, tmp_path: Path) -> None:
    stage = _Silent(teacher(run))
    loop = LoopConfig(steps=4, save_every=1, log_every=1, sheet_every=100)
    stage.poison_at = 2
    with pytest.raises(UserError, match="not finite at step 3"):
        run_stage(stage, loop, tmp_path)
    assert [p.name for p in tmp_path.glob("checkpoint*")] == ["checkpoint-000002"]


def test_the_pair_sampler_passes_through_the_students_noise_levels() -> None:
    from shotstream.runtime.model.schedule import NoiseSchedule

    schedule = NoiseSchedule(3.0)
    sigmas = sampler_sigmas(schedule, (1000, 740, 500, 260), 3)
    assert len(sigmas) == 13
    torch.testing.assert_close(sigmas[[0, 3, 6, 9]] * 1000, schedule.warp((1000, 740, 500, 260)))
    assert sigmas[-1] == 0


def test_missing_stages_are_named() -> None:
    with pytest.raises(UserError, match="there is no stage 'teach'"):
        Pipeline(RECIPE, Path("nowhere")).run("teach")
    with pytest.raises(UserError, match="run 'shotstream train vae' first"):
        Pipeline(RECIPE, Path("nowhere")).run("latents")
    with pytest.raises(UserError, match="run 'shotstream train latents' first"):
        LatentStories(Path("nowhere"), RECIPE.latents)


def test_shipped_recipes_load_and_explain_themselves_in_full() -> None:
    recipe = load_recipe("tiny")
    assert "weight_decay" in explain(recipe)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "x", "teacher": {"lrr": 1}}, "teacher has the unknown key 'lrr'"),
        ({"name": "x", "ode": {"pairs": "many"}}, "ode: pairs must be int, got 'many'"),
        ({"name": "x", "teacher": {"phases": [{"steps": 1}]}}, "incomplete"),
        ({}, "incomplete"),
        ([], "must be a mapping"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_place_named(values: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(Recipe, values, "recipe")


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="tiny"):
        load_recipe("huge")


def test_the_learning_rate_rises_stays_and_falls() -> None:
    loop = LoopConfig(steps=100, warmup=10, decay=0.5)
    assert lr_factor(0, loop) == pytest.approx(0.1)
    assert lr_factor(30, loop) == 1.0
    assert lr_factor(75, loop) == pytest.approx(0.5)
    assert lr_factor(99, replace(loop, decay=0.1)) == pytest.approx(0.1)


class _Silent:
    """A stage without sheets; optionally poisons one step's figure."""

    def __init__(self, stage: TeacherStage) -> None:
        self.stage, self.name = stage, stage.name
        self.poison_at = -1

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        figures = self.stage.step(index, lr_factor)
        return {"loss": float("nan")} if index == self.poison_at else figures

    def work(self, index: int) -> Work | None:
        return self.stage.work(index)

    def state_dict(self) -> dict[str, object]:
        return self.stage.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.stage.load_state_dict(state)

    def sample_sheet(self, path: Path) -> None:
        pass


class _Stopping(_Silent):
    """A stage whose slice of time ends: the loop saves after its first step and returns."""

    def __init__(self, stage: TeacherStage, after: int) -> None:
        super().__init__(stage)
        self.after = after

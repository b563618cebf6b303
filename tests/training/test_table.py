"""The table in miniature: what each method remembers, what its attention sees, what training costs, and whole rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from shotstream.runtime.cli.app import make_app
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import matmul_softmax
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextConfig
from shotstream.training.data.latents import LatentPlan
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.rollout import RolloutSettings, self_forcing_rollout
from shotstream.training.pipeline import Pipeline
from shotstream.training.recipe import Recipe
from shotstream.training.stages.ode import OdeRecipe
from shotstream.training.stages.teacher import Phase, TeacherRecipe
from shotstream.training.stages.text import TextRecipe
from shotstream.training.table.bidirectional import Sampler, together
from shotstream.training.table.budget import SAMPLES, Budget
from shotstream.training.table.command import mount
from shotstream.training.table.methods import METHODS, OURS
from shotstream.training.table.past import OwnPast, everything, forgotten, sampled, window
from shotstream.training.table.report import table_lines, write_plot
from shotstream.training.table.rolling import RoutedAttention, rolling_rollout
from shotstream.training.table.rows import TableSettings, finished, load_parts, make_row, time_row
from shotstream.training.table.students import Student, StudentPlan
from shotstream.training.table.train import TrainSettings, train

MODEL = DiTConfig(
    dim=32, heads=2, ffn_dim=64, layers=2, channels=32, text_len=48, text_dim=32, shift=3.0, context_noise=300.0
)
RECIPE = Recipe(
    name="miniature",
    text=TextRecipe(encoder=TinyTextConfig(dim=32, heads=2, layers=1, buckets=64), steps=2, batch=4),
    latents=LatentPlan(stories=2, shots=3, frames=21),
    held_out=LatentPlan(stories=1, shots=2, frames=9, first_seed=10_000),
    teacher=TeacherRecipe(model=MODEL, phases=(Phase(1, 2, 1, 0),), warmup=1, parts_layer=0),
    ode=OdeRecipe(pairs=4, frames=6, substeps=1, pair_batch=2, steps=1, batch=2),
    context_noise=300.0,
    render_workers=1,
)
SETTINGS = TableSettings(TrainSettings(tflop=0.005, batch=2, frames=6), Sampler(steps=2), stories=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its stage `ode`, every stage a step or two long."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    (out / "vae").mkdir()
    TinyVAE().save(out / "vae" / "vae.safetensors")
    pipeline = Pipeline(RECIPE, out)
    for stage in ("text", "latents", "teacher", "ode"):
        assert pipeline.run(stage), stage
    return out


class NumberedPast:
    """A past whose latents say where they come from: shot * 100 + frame; clips count latents."""

    shot_frames = 33

    def single(self, shot: int, frame: int) -> Tensor:
        return torch.full((1, 1, 1, 1), 100.0 * shot + frame)

    def clip(self, shot: int) -> Tensor:
        return (1000.0 * (shot + 1) + torch.arange(9.0)).view(1, 9, 1, 1, 1)


def numbers(context: Tensor) -> list[int]:
    return context.flatten().int().tolist()


def test_what_each_method_remembers() -> None:
    past = NumberedPast()
    ours = sampled()(past, 2)
    assert (numbers(ours.context_BFCHW), ours.flags, ours.captions, ours.flag) == (
        [0, 16, 32, 100, 116, 132], (0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1), 2,
    )  # fmt: skip
    paper = sampled(remainder="last")(past, 4)
    assert paper.flags == (0, 1, 2, 3, 3, 3)
    assert sampled()(past, 4).flags == (0, 1, 2, 2, 3, 3)
    recached = window()(past, 2)
    assert (numbers(recached.context_BFCHW), recached.flags, recached.captions, recached.flag) == (
        [1000, 1001, 1002, 2006, 2007, 2008], (0,) * 6, (2,) * 6, 0,
    )  # fmt: skip
    whole = everything(past, 2)
    assert numbers(whole.context_BFCHW) == [*range(1000, 1009), *range(2000, 2009)]
    assert whole.flags == (0,) * 9 + (1,) * 9
    nothing = forgotten(past, 3)
    assert numbers(nothing.context_BFCHW) == [0] * 6
    assert (nothing.flags, nothing.captions, nothing.flag) == ((0,) * 6, (3,) * 6, 1)


def test_own_shots_are_remembered_as_they_were_decoded() -> None:
    torch.manual_seed(0)
    vae = TinyVAE()
    past = OwnPast(vae, 9)
    video = past.add(torch.randn(2, 3, 32, 10, 16))
    assert video.shape[:3] == (2, 9, 3)
    torch.testing.assert_close(past.single(0, 4), vae.encode_frames(video[:, 4]).float())
    assert past.clip(0).shape == (2, 3, 32, 10, 16)


def heads(frames: int, seed: int) -> Tensor:
    return torch.randn(1, frames * 4, 2, 8, generator=torch.Generator().manual_seed(seed))


def test_routed_attention_sees_its_nearest_history_and_all_else() -> None:
    routed = RoutedAttention(tokens=4, top=2)
    q, k, v = heads(1, 1), heads(6, 2), heads(6, 3)
    routed.history = 5
    seen_by = []
    for frame in range(6):
        changed = v.clone()
        changed[:, 4 * frame : 4 * frame + 4] += 1
        moved = (routed(q, k, changed, None) - routed(q, k, v, None)).abs().amax(dim=(0, 1, 3)) > 1e-6
        seen_by.append(moved.tolist())
    near = torch.einsum("qhk,fhk->hf", q[0].mean(0, keepdim=True), k[0].unflatten(0, (6, 4)).mean(1))
    for head in range(2):
        wanted = {*near[head, :5].topk(2).indices.tolist(), 5}
        assert {f for f in range(6) if seen_by[f][head]} == wanted
    routed.history = 2  # no more than it may see: plain attention
    torch.testing.assert_close(routed(q, k, v, None), matmul_softmax(q, k, v))
    routed.history = 5
    torch.testing.assert_close(routed(q, k, v), matmul_softmax(q, k, v))  # cross-attention


def small() -> tuple[Transformer, NoiseSchedule, Conditioning]:
    torch.manual_seed(1)
    model = Transformer(DiTConfig(dim=32, heads=2, ffn_dim=48, layers=2, channels=4, text_len=5, text_dim=12))
    torch.nn.init.normal_(model.head.head.weight, std=0.2)
    given = Conditioning(
        torch.randn(1, 6, 4, 4, 4), torch.randn(1, 5, 12), torch.tensor([[0] * 6 + [1] * 9]), None
    )  # fmt: skip
    return model, NoiseSchedule(3.0), given


def test_a_rolling_window_of_one_chunk_is_the_plain_roll_out() -> None:
    model, schedule, given = small()
    steps = schedule.warp((1000, 500))
    for exit_step in (0, 1):
        plain, rolled = (
            how(model, schedule, steps, given, 3, exit_step, TorchDraws(torch.Generator().manual_seed(3)))
            for how in (self_forcing_rollout, rolling_rollout)
        )
        torch.testing.assert_close(rolled, plain)
    assert rolled.requires_grad


def test_in_a_rolling_window_earlier_chunks_see_later_ones() -> None:
    model, schedule, given = small()
    steps = schedule.warp((1000, 500))

    def first_chunk(rollout: object, last_noise: float) -> Tensor:
        class Bent(TorchDraws):
            def shot_noise(self, shape: tuple[int, ...]) -> Tensor:
                noise = super().shot_noise(shape)
                noise[:, 3:] += last_noise
                return noise

        draws = Bent(torch.Generator().manual_seed(3))
        return rollout(model, schedule, steps, given, 9, 1, draws, with_gradient=False)[:, :3]  # type: ignore[operator]

    assert torch.equal(first_chunk(self_forcing_rollout, 0.0), first_chunk(self_forcing_rollout, 1.0))
    assert not torch.allclose(first_chunk(rolling_rollout, 0.0), first_chunk(rolling_rollout, 1.0))


def test_without_the_local_cache_chunks_do_not_see_one_another() -> None:
    model, schedule, given = small()
    steps = schedule.warp((1000, 500))
    for local, same in ((True, False), (False, True)):
        settings = RolloutSettings(local_cache=local)
        last = []
        for bend in (0.0, 1.0):

            class Bent(TorchDraws):
                amount = bend

                def shot_noise(self, shape: tuple[int, ...]) -> Tensor:
                    noise = torch.ones(shape)
                    noise[:, :3] += self.amount
                    return noise

                def renoise(self, shape: tuple[int, ...], chunk: int, step: int) -> Tensor:
                    return torch.ones(shape)

                def clean_noise(self, shape: tuple[int, ...], chunk: int) -> Tensor:
                    return torch.ones(shape)

            made = self_forcing_rollout(
                model, schedule, steps, given, 6, 1, Bent(), with_gradient=False, settings=settings
            )
            last.append(made[:, 3:])
        assert torch.equal(*last) is same


def test_work_of_one_kind_is_counted_a_few_times_and_charged_always() -> None:
    budget, a = Budget(1e-6), torch.randn(10, 10)
    for _ in range(SAMPLES + 5):
        with budget.charge("product"):
            a @ a
    assert budget.spent == pytest.approx(2000 * (SAMPLES + 5))
    assert budget.share == pytest.approx(2000 * (SAMPLES + 5) / 1e6)


def test_a_whole_story_gives_every_frame_its_shot_and_its_caption(run: Path) -> None:
    text = load_parts(run, RECIPE, "cpu").text
    given = together([["a", "b"], ["c", "d"]], 2, text, torch.zeros(2, 4, 32, 10, 16))
    assert given.flags_BF is not None
    assert given.caption_index_BF is not None
    assert given.flags_BF.tolist() == [[0, 0, 1, 1]] * 2
    assert given.caption_index_BF.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in (OURS, "all-at-once", "sparse")]


@pytest.mark.parametrize("name", [OURS, "all-at-once", "sparse", *SLOW])
def test_rows_train_within_their_budget_and_play(run: Path, name: str, tmp_path: Path) -> None:
    said: list[str] = []
    make_row(name, load_parts(run, RECIPE, "cpu"), SETTINGS, tmp_path, said.append)
    result = finished(tmp_path, [name], SETTINGS)[name]
    assert 0.005 <= result["cost"]["tflop"] < 0.2
    assert result["speed"]["fps"] > 0
    assert result["speed"]["wait_s"] > 0
    assert len(result["report"]["axes"]) == 1
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert any("story 2 of 2" in line for line in said)
    lines = table_lines({name: result})
    assert METHODS[name].title in lines[-1]
    write_plot({name: result}, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_training_is_the_same_twice_and_changes_the_weights(run: Path) -> None:
    parts = load_parts(run, RECIPE, "cpu")
    first, second = (train(METHODS[OURS], parts, SETTINGS.train, lambda share, figures: None)[0] for _ in range(2))
    begun = parts.model("ode")
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), begun.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name == "blocks.0.self_attn.q.weight":
            assert not torch.equal(a, c)


def test_a_plan_changes_the_models_configuration(run: Path) -> None:
    parts = load_parts(run, RECIPE, "cpu")
    student = Student(StudentPlan(jump=0.0, steps=(1000, 500)), parts.model("ode"), parts.text)
    assert (student.model.config.jump, student.model.config.nominal_steps) == (0.0, (1000, 500))
    assert student.model.config.context_noise == 300.0
    assert len(student.steps) == 2


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "ours.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(UserError, match="made under other settings"):
        finished(tmp_path, ["ours"], SETTINGS)


def test_the_command_names_what_is_wrong(run: Path, tmp_path: Path) -> None:
    app = make_app()
    mount(app)

    def said(*words: str) -> str:
        result = CliRunner().invoke(app, ["table", *words])
        return result.output + str(result.exception)

    assert "single-scene" in said("--list")
    assert "there is no row 'owls'" in said("owls", "--out", str(tmp_path))
    assert "holds no weights of teacher" in said("ours", "--run", str(tmp_path), "--out", str(tmp_path / "t"))
    assert "no finished row yet" in said("--report", "--out", str(tmp_path / "t"))


def test_a_row_that_was_killed_behind_its_training_is_only_played(run: Path, tmp_path: Path) -> None:
    parts = load_parts(run, RECIPE, "cpu")
    said: list[str] = []
    make_row("all-at-once", parts, SETTINGS, tmp_path, said.append)
    first = json.loads((tmp_path / "all-at-once.json").read_text())
    (tmp_path / "all-at-once.json").unlink()
    assert any("TFLOP" in line for line in said)
    said.clear()
    make_row("all-at-once", parts, SETTINGS, tmp_path, said.append)
    time_row("all-at-once", parts, SETTINGS, tmp_path, said.append)
    assert not any("TFLOP" in line for line in said)
    again = json.loads((tmp_path / "all-at-once.json").read_text())
    assert again["pooled"] == first["pooled"]
    assert again["speed"] != first["speed"]

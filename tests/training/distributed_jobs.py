"""What several processes do in tests, and how they are started: quickly, from a server that has torch loaded already.

Jobs get the team and the test's folder and return plain values or tensors, which the test receives by rank.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.parity.report import LOSS, compare
from shotstream.runtime.parity.vectors import VectorFile
from shotstream.training.data.teacher_data import Phase
from shotstream.training.distributed import checkpoint
from shotstream.training.distributed.launch import ALONE, Team, team_of
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.sharding import copy_whole, place, place_part, whole
from shotstream.training.method import objectives
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.parity_cases import RecordedDraws
from shotstream.training.method.rollout import RolloutSettings
from shotstream.training.stages.continuation import ContinuationRecipe, ContinuationStage
from shotstream.training.stages.coupled import CoupledRecipe, CoupledStage
from shotstream.training.stages.dmd import DmdRecipe, InterStage, IntraStage
from shotstream.training.stages.ode import OdeRecipe, OdeStage
from shotstream.training.stages.optim import build_optimizer
from shotstream.training.stages.pairs import Pairs
from shotstream.training.stages.teacher import RANDOM, TeacherRecipe, TeacherStage
from shotstream.training.stages.trainer import LoopConfig, run_stage
from shotstream.training.world.parts import PARTS

Job = Callable[..., Any]

CONFIG = DiTConfig(dim=32, heads=2, ffn_dim=48, layers=2, channels=4, text_len=5, text_dim=12, freq_dim=32, shift=3.0)
FULL = {"precision": "float32"}
# AdamW divides a gradient by its own size, and so enlarges the rounding of one that is next to none: with this seed
# there is none as small.
TEACHER = TeacherRecipe(
    model=CONFIG, phases=(Phase(4, 4, 1, 2), Phase(4, 4, 3, 6)), parts_layer=0, motion_weight=1.0, warmup=1, seed=7,
    init=RANDOM, optimizer="adamw", **FULL,
)  # fmt: skip
ODE = OdeRecipe(steps=8, batch=4, frames=6, text_drop=0.5, optimizer="adamw", **FULL)
DMD = DmdRecipe(steps=8, batch=4, frames=6, shots=2, ratio=2, **FULL)
COUPLED = CoupledRecipe(phases=(Phase(2, 4, 1, 2), Phase(2, 4, 3, 6), Phase(2, 4, 6, 6)), optimizer="adamw", **FULL)
CONTINUATION = ContinuationRecipe(batch=4, frames=6, kept_steps=2, precision="float32")


def _seeded(shape: tuple[int, ...], *seed: int) -> Tensor:
    number = sum(s * 1009**i for i, s in enumerate(seed)) % (1 << 62)
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


class Stories:
    """Eight stories of two to four shots, all noise."""

    def __len__(self) -> int:
        return 8

    def shots(self, story: int) -> int:
        return 2 + story % 3

    def latents(self, story: int, shot: int) -> int:
        return 6

    def camera_moves(self, story: int, shot: int) -> bool:
        return shot % 2 == 1

    def singles(self, story: int, shot: int) -> int:
        return 3

    def clip(self, story: int, shot: int, frames: int) -> Tensor:
        return _seeded((frames, 4, 4, 4), 1, story, shot)

    def clip_parts(self, story: int, shot: int, frames: int) -> Tensor:
        return (_seeded((frames, 4, 4, len(PARTS)), 2, story, shot).abs() * 50).clamp(max=255).to(torch.uint8)

    def single(self, story: int, shot: int, position: int) -> Tensor:
        return _seeded((4, 4, 4), 3, story, shot, position)

    def single_parts(self, story: int, shot: int, position: int) -> Tensor:
        return (_seeded((4, 4, len(PARTS)), 4, story, shot, position).abs() * 50).clamp(max=255).to(torch.uint8)

    def context(self, story: int, shot: int, budget: int = 6) -> tuple[Tensor, list[int]]:
        return _seeded((budget, 4, 4, 4), 5, story, shot), [i * shot // budget for i in range(budget)]

    def captions(self, story: int, shots: Sequence[int], wording: int | None) -> list[str]:
        return [f"{story} {shot}" for shot in shots]

    def choices(self, story: int, shot: int, shown: int, seed: int) -> Tensor:
        return _seeded((7,), 6, story, shot, shown, seed)


class Text:
    """An embedding for every text."""

    def encode(self, captions: list[str]) -> Tensor:
        return torch.stack([_seeded((5, 12), *map(ord, caption)) for caption in captions])


class Codec:
    """Latents as pixels: four frames a latent, 8 pixels a side, and the mean back."""

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        video = z_BFCHW[:, :, :3].repeat_interleave(4, 1)[:, 3:].tanh()
        return video.repeat_interleave(8, -1).repeat_interleave(8, -2)

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        small = frames_NCHW[..., ::8, ::8]
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)


def network(seed: int) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(CONFIG)


def write_pairs(folder: Path) -> None:
    """Eight trajectories of noise, one in two behind history."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [[0] * 6 + [1] * 6, [0, 0, 0, 1, 1, 1] + [2] * 6]
    rows = [[0] * 12, [0, 0, 0, 1, 1, 1] + [2] * 6]
    tensors = {
        "states": _seeded((8, 5, 6, 4, 4, 4), 6).half(), "context": _seeded((8, 6, 4, 4, 4), 7).half(),
        "flags": torch.tensor(flags * 4), "rows": torch.tensor(rows * 4),
    }  # fmt: skip
    captions = {f"captions_{i}": "\n".join(f"{i} {k}" for k in range(1 if i % 2 == 0 else 3)) for i in range(8)}
    save_file(tensors, folder / "pairs_00000.safetensors", metadata=captions)


def make_stage(name: str, folder: Path, team: Team, **changes: Any) -> Any:
    """A stage by name; `changes` are fields of its recipe."""
    if name == "teacher":
        return TeacherStage(replace(TEACHER, **changes), [Stories()], Stories(), Text(), Codec(), team=team)
    if name == "ode":
        return OdeStage(replace(ODE, **changes), network(1), Text(), Pairs(folder), Stories(), Codec(), team)
    if name == "continuation":
        recipe = replace(CONTINUATION, **changes)
        return ContinuationStage(recipe, network(1), network(2), Text(), Stories(), Stories(), Codec(), team)
    if name == "coupled":
        recipe = replace(COUPLED, **changes)
        return CoupledStage(recipe, network(1), Text(), [Stories()], Stories(), Codec(), team)
    kind = IntraStage if name == "intra" else InterStage
    changes = ({"lora_rank": 3} if name == "inter" else {}) | changes
    networks = [network(1), network(2), network(3)]
    return kind(replace(DMD, **changes), *networks, Text(), Stories(), Stories(), Codec(), team)


def steps_of(stage: Any, numbers: Sequence[int]) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    """Figures of those steps, and before every update the whole gradient by parameter."""
    taken: list[dict[str, Tensor]] = []

    def watch(optimizer: Any, modules: dict[str, Any]) -> None:
        step = optimizer.step

        def watched() -> None:
            named = [(f"{m}.{k}", p) for m, module in modules.items() for k, p in module.named_parameters()]
            taken.append({name: whole(p.grad).clone() for name, p in named if p.grad is not None})
            step()

        optimizer.step = watched

    if hasattr(stage, "fake"):
        watch(stage.optimizer, {"generator": stage.generator})
        watch(stage.critic_optimizer, {"fake": stage.fake})
    else:
        watch(stage.optimizer, {"dit": stage.model} | ({"parts": stage.parts} if hasattr(stage, "parts") else {}))
    return [stage.step(number, 1.0) for number in numbers], taken


def run_steps(team: Team, folder: Path, jobs: Sequence[tuple[str, Sequence[int], dict[str, Any]]]) -> list[Any]:
    """Several stages' steps, one stage after the other."""
    return [steps_of(make_stage(name, folder, team, **changes), numbers) for name, numbers, changes in jobs]


def reference_teacher(team: Team, folder: Path, vectors: Path) -> list[str]:
    """Faults of the sharded teacher loss and its gradients against the reference's."""
    file = VectorFile.load(vectors)
    name = "train_teacher_A"
    case = file.cases[name]
    model = place(file.model(case["weights"], context_frames=case["cond"].shape[1]), team, Scale("float32"))
    flags = case["flags"][None].long()
    given = Conditioning(case["cond"], case["prompt_embeds"], flags, flags if len(case["prompt_embeds"]) > 1 else None)
    loss = objectives.teacher_loss(model, file.schedule(), case["latent"], given, RecordedDraws(case))
    loss.backward()
    ours = {key: whole(p.grad) for key, p in model.named_parameters() if p.grad is not None}
    rows = [compare(name, key, ours[key.removeprefix("model.")], g) for key, g in case["grads"].items()]
    rows.append(compare(name, "loss", loss.detach(), case["loss"].reshape(()), LOSS))
    return [f"{row.quantity}: {row.status}" for row in rows if row.status != "passed"]


def distillation(
    team: Team, folder: Path, switches: dict[str, Any], scale: Scale, critic: bool = False
) -> tuple[float, dict[str, Tensor], list[str]]:
    """Loss, whole gradient and dtypes of one sample's generator or critic loss, the same sample in every process."""
    generator, fake, real = (place(network(seed), team, scale) for seed in (1, 2, 3))
    real.requires_grad_(False)
    routing = route_frames([0, 0, 0, 1, 1, 1], 9, 2, 3)
    given = Conditioning.batch(_seeded((1, 6, 4, 4, 4), 8), [_seeded((3, 5, 12), 9)], [routing])
    settings = objectives.DmdSettings(rollout=RolloutSettings(**switches))
    draws = TorchDraws(torch.Generator().manual_seed(13))  # leaves the roll-out at its third step
    schedule = NoiseSchedule(3.0)
    steps = schedule.warp(CONFIG.nominal_steps)
    with scale.autocast(team.device):
        if critic:
            result = objectives.dmd_critic_loss(generator, fake, schedule, steps, given, 9, draws, settings=settings)
        else:
            negative = torch.zeros(1, 5, 12)
            result = objectives.dmd_generator_loss(
                generator, real, fake, schedule, steps, given, negative, 9, draws, settings=settings
            )
    result.loss.backward()
    named = list((fake if critic else generator).named_parameters())
    gradients = {key: whole(p.grad).clone() for key, p in named if p.grad is not None}
    return result.loss.item(), gradients, sorted({str(p.dtype) for _, p in named} | {str(result.x0_BFCHW.dtype)})


def optimize(team: Team, folder: Path) -> dict[str, Tensor]:
    """Three Muon and AdamW updates from given gradients; layers whose rows do not split evenly among them."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 5), nn.Conv2d(3, 4, 2))
    place_part(model, team, Scale("float32"))
    optimizer = build_optimizer(model.named_parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        for number, p in enumerate(model.parameters()):
            p.grad = torch.zeros_like(p)
            copy_whole(p.grad, _seeded(tuple(p.shape), 10, step, number))
        optimizer.step()
    return {name: whole(p).clone() for name, p in model.named_parameters()}


class Watched:
    """A stage whose figures are kept unrounded, and that may do something before a step."""

    def __init__(self, stage: Any, before: Callable[[int], None] | None = None) -> None:
        self.stage, self.before = stage, before
        self.figures: dict[int, dict[str, float]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        if self.before is not None:
            self.before(index)
        self.figures[index] = self.stage.step(index, lr_factor)
        return self.figures[index]


def train(
    team: Team, folder: Path, out: Path, name: str, steps: int | None = None, changes: dict[str, Any] | None = None,
    fault: str = "",
) -> tuple[dict[int, dict[str, float]], dict[str, Tensor]]:  # fmt: skip
    """Go on with a stage of 8 steps, saved every 2; figures by step, and all trained tensors afterwards.

    Faults of the last process: "killed" before step 5, "killed saving" and "disk full" at the second save, "refused"
    with a sentence before step 5, "nan" in step 5.
    """
    stage = Watched(make_stage(name, folder, team, **(changes or {})))
    if fault and team.rank == team.size - 1:
        stage.before = lambda index: _break(fault, index)
    if fault == "nan":
        stage.before = lambda index: _poison(stage.stage) if index == 5 else None
    loop = LoopConfig(8, warmup=2, decay=0.5, save_every=2, log_every=1, sheet_every=100)
    run_stage(stage, loop, out, team=team, steps=steps)
    tensors: dict[str, Tensor] = {}
    checkpoint._split(stage.state_dict(), "", tensors)
    return stage.figures, {key: whole(value).clone() for key, value in tensors.items()}


def _break(fault: str, index: int) -> None:
    if index == 3 and fault == "killed saving":
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
    if index == 3 and fault == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    if index == 5 and fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if index == 5 and fault == "refused":
        raise UserError("this process cannot read its videos")


@torch.no_grad()
def _poison(stage: Any) -> None:
    next(iter(stage.model.parameters())).fill_(float("nan"))


def distillations(team: Team, folder: Path, cases: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [distillation(team, folder, *case) for case in cases]


def alone(job: Job, folder: Path, *arguments: Any) -> Any:
    """The job in this process."""
    return job(ALONE, folder, *arguments)


def together(size: int, job: Job, folder: Path, *arguments: Any) -> list[Any]:
    """The job in `size` processes; their results by rank. RuntimeError if one of them fails.

    A segmentation fault is none of ours, who compile nothing: seen once in thousands of runs and not explained. The
    job then runs once more, from the folder as it was, and a warning has the stacks.
    """
    with tempfile.TemporaryDirectory() as kept:
        before = shutil.copytree(folder, Path(kept) / "before")
        codes, results = outcome(size, job, folder, *arguments)
        if -signal.SIGSEGV in codes:
            stacks = "\n".join(path.read_text() for path in sorted(folder.glob("fault-*.txt")))
            warnings.warn(f"a process fell with a segmentation fault, {codes}; once more.\n{stacks}", stacklevel=2)
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            codes, results = outcome(size, job, folder, *arguments)
    if any(codes):
        raise RuntimeError(f"processes ended with {codes}: {results}")
    return results


def outcome(size: int, job: Job, folder: Path, *arguments: Any) -> tuple[list[int | None], list[Any]]:
    """Exit codes and results by rank; the result of a process that failed is what it said, None if it was quiet.

    One process is a plain one. As torchrun does, this ends the others a moment after one has failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed_jobs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [folder / f"result-{rank}.pt" for rank in range(size)]
    for path in places:
        path.unlink(missing_ok=True)
    processes = [
        context.Process(target=_member, args=(rank, size, port, str(path), job, folder, arguments))
        for rank, path in enumerate(places)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 240
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
        if any(p.exitcode for p in processes):
            deadline = min(deadline, time.monotonic() + 20)
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    results = [torch.load(path, weights_only=False) if path.exists() else None for path in places]
    return [process.exitcode for process in processes], results


def _member(rank: int, size: int, port: int, path: str, job: Job, folder: Path, arguments: tuple[Any, ...]) -> None:
    if size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    torch.set_num_threads(1)
    faulthandler.enable(Path(path).with_name(f"fault-{rank}.txt").open("w"))
    try:
        with team_of("cpu") as team:
            torch.save(job(team, folder, *arguments), path)
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        torch.save(f"{type(error).__name__}: {error}", path)
        raise

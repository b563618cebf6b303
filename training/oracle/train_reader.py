"""Trains the learned reader on renders and on damaged renders, so that a codec's smear is no surprise to it.

Runs on one CPU core. The held-out pairs are shown here on purpose: the oracle must be able to see what the models
under test have never seen. Reader stories and evaluation stories come from disjoint seeds. The shipped weights were
made by

    OMP_NUM_THREADS=1 python -m shotstream.training.oracle.train_reader OUT --minutes 16

from nothing; the file's metadata hold the number of steps, the seed and what was measured afterwards. Time is counted
in processor minutes, so a busy machine makes the same number of steps, later.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shotstream.training.world import Story, render_shot, sample_held_out_story, sample_story
from shotstream.training.world.story import ACTIONS, SPECIES

from .check import agreement, share
from .damage import damage
from .reader import HEIGHT, LOOK_SLOTS, SAMPLES, WIDTH, Reader, ReaderNet, save_reader
from .slots import FRAME_SLOTS, UNKNOWN, WALKED, Labels, head_track, true_labels
from .windows import LOOK, MOVE, heads_to_cells, pixels_per_unit, windows

log = logging.getLogger(__name__)

FIRST_SEED = 50_000_000  # reader stories start here; tests and evaluations use other seeds
POOL = 3_000  # shots kept
ROUND = 750  # shots rendered before each round of updates
UPDATES = 250  # per round
BATCH = 12  # shots
SCENES, LOOKS = 3, 3  # frames of each shot of a batch for the scene and for the look
LENGTHS = {33: 0.45, 45: 0.2, 57: 0.1, 81: 0.12, 12: 0.13}
"""Frames over which the samples of a shot are spread, and how often. The last chunk of a shot has 12."""
STILL, LEFT, RIGHT = (ACTIONS.index(a) for a in ("stands still", "walks left", "walks right"))


@dataclass
class Examples:
    """Shots, the labels of their frames, and where the heads are.

    frames uint8 [N, T, 80, 128, 3]; labels [N, T, ...] as `true_labels`; heads [N, T, 4, 2] in pixels, NaN without
    a hero.
    """

    frames: NDArray[np.uint8]
    labels: Labels
    heads: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.frames)

    def joined(self, other: Examples, keep: int) -> Examples:
        """Both, of which the last `keep`."""
        labels = {k: np.concatenate((v, other.labels[k]))[-keep:] for k, v in self.labels.items()}
        frames, heads = (np.concatenate((getattr(self, f.name), getattr(other, f.name)))[-keep:]
                         for f in fields(self) if f.name != "labels")
        return Examples(frames, labels, heads)


def draw_examples(count: int, seed: int, shots: int = 5) -> Examples:
    """`count` shots of 9 frames with their labels; a third of the stories hold a held-out pair."""
    rng = np.random.default_rng([seed, 9])
    frames: list[NDArray[np.uint8]] = []
    labels: list[Labels] = []
    heads: list[NDArray[np.float32]] = []
    while len(frames) < count:
        sample = sample_held_out_story if rng.random() < 0.33 else sample_story
        story = sample(FIRST_SEED + seed * 100_000 + len(frames), shots)
        for k in range(shots):
            length = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
            start = int(rng.integers(9 if length > 12 else 60)) if rng.random() < 0.3 or length == 12 else 0
            picked = np.linspace(start, start + length - 1, SAMPLES).round().astype(int).tolist()
            frames.append(render_shot(story, k, picked))
            labels.append(true_labels(story, k, picked))
            heads.append(_heads(story, k, picked))
            # A walker that has arrived stands, whatever the story says: nothing is asked about it.
            way = np.abs(heads[-1][-1, :, 0] - heads[-1][0, :, 0])
            act = labels[-1]["action"]
            act[:, (way < WALKED) & np.isin(act[0], (LEFT, RIGHT))] = UNKNOWN
    stacked = {slot: np.stack([one[slot] for one in labels])[:count] for slot in labels[0]}
    return Examples(np.stack(frames)[:count], stacked, np.stack(heads)[:count])


def _heads(story: Story, k: int, frames: list[int]) -> NDArray[np.float32]:
    heads = np.full((len(frames), len(SPECIES), 2), np.nan, np.float32)
    for hero in story.shots[k].cast:
        heads[:, SPECIES.index(story.characters[hero].species)] = head_track(story, k, hero, frames)
    return heads


def play_tricks(examples: Examples, pick: NDArray[np.int64], rng: np.random.Generator) -> Examples:
    """The picked shots as a batch; some play backwards, some are frozen, and the actions are named accordingly."""
    frames, heads = examples.frames[pick], examples.heads[pick]
    labels = {slot: v[pick] for slot, v in examples.labels.items()}
    for i, trick in enumerate(rng.random(len(pick))):
        order = np.arange(SAMPLES)
        act = labels["action"][i]
        if trick < 0.2:
            order = order[::-1]
            labels["action"][i] = np.where(act == LEFT, RIGHT, np.where(act == RIGHT, LEFT, act))
        elif trick < 0.28:
            order[:] = rng.integers(SAMPLES)
            labels["action"][i] = np.where(act >= 0, STILL, act)
        frames[i], heads[i] = frames[i][order], heads[i][order]
        for value in labels.values():
            value[i] = value[i][order]
    return Examples(frames, labels, heads)


def reader_loss(net: ReaderNet, frames: Tensor, heads: Tensor, labels: dict[str, Tensor],
                generator: torch.Generator) -> Tensor:
    """The sum of the slots' cross entropies; unknown values (-1) do not count.

    frames [N, T, 3, 80, 128] in -1..1, heads [N, T, 4, 2], labels [N, T, ...]. The windows are cut around the true
    heads, missed by as much as the scene network will miss them.
    """
    n, t = frames.shape[:2]
    often = torch.stack([torch.randperm(t, generator=generator)[:SCENES] for _ in range(n)])
    row = torch.arange(n)[:, None]
    wide = frames[row, often].flatten(0, 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = {k: v.float() for k, v in net.scene(wide).items()}
    seen = {k: v[row, often].flatten(0, 1) for k, v in labels.items()}
    loss = 4 * F.binary_cross_entropy_with_logits(logits["present"], seen["present"].float())
    heads_there = heads[row, often].flatten(0, 1)[seen["present"] == 1]
    cells = heads_to_cells(heads_there)
    loss = loss - (cells * logits["where"][seen["present"] == 1].log_softmax(-1)).sum(-1).mean()
    for slot in FRAME_SLOTS:
        loss = loss + _entropy(logits[slot], seen[slot])
    loss = loss + _look_loss(net, frames, heads, labels, generator)
    return loss + _motion_loss(net, frames, heads, labels, generator)


def _look_loss(net: ReaderNet, frames: Tensor, heads: Tensor, labels: dict[str, Tensor],
               generator: torch.Generator) -> Tensor:
    shot, species = labels["present"][:, 0].nonzero(as_tuple=True)
    shot, species = shot.repeat_interleave(LOOKS), species.repeat_interleave(LOOKS)
    at = torch.randint(frames.shape[1], shot.shape, generator=generator)
    # As many windows again ask for a species that is not there, most of them around a hero of another one.
    turned = (species + torch.randint(1, len(SPECIES), species.shape, generator=generator)) % len(SPECIES)
    middle = _missed(heads[shot, at, species], 2.0, generator)
    place = torch.rand(middle.shape, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    strange = torch.where((torch.rand(len(shot), 1, generator=generator) < 0.3), place, middle)
    absent = labels["present"][shot, at, turned] == 0
    which = F.one_hot(torch.cat((species, turned[absent])), len(SPECIES)).float()
    source = torch.cat((shot, shot[absent])), torch.cat((at, at[absent]))
    centre = torch.cat((middle, strange[absent]))
    scale = pixels_per_unit(labels["size"][source])
    scale = scale * (1 + 0.06 * torch.randn(scale.shape, generator=generator)).clamp(0.85, 1.15)
    cut = windows(frames[source], centre, scale, LOOK).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = {k: v.float() for k, v in net.look(cut, which).items()}
    real = torch.arange(len(which)) < len(shot)
    loss = 2 * F.binary_cross_entropy_with_logits(logits["present"], real.float())
    for slot in LOOK_SLOTS:
        loss = loss + _entropy(logits[slot][: len(shot)], labels[slot][shot, at, species])
    return loss


def _motion_loss(net: ReaderNet, frames: Tensor, heads: Tensor, labels: dict[str, Tensor],
                 generator: torch.Generator) -> Tensor:
    shot, species = labels["present"][:, 0].nonzero(as_tuple=True)
    t = frames.shape[1]
    middle = _missed(heads[shot, :, species].median(1).values, 2.0, generator)
    # A window that drifts is a camera that drifts: where things are in the frame is no proof of a walk.
    drift = torch.randn(len(shot), 2, generator=generator) * torch.tensor([10.0, 2.0])
    drift = drift * (torch.rand(len(shot), 1, generator=generator) < 0.15)
    centre = middle[:, None] + torch.linspace(-0.5, 0.5, t)[:, None] * drift[:, None]
    scale = pixels_per_unit(labels["size"][shot, 0])
    scale = scale * (1 + 0.05 * torch.randn(scale.shape, generator=generator)).clamp(0.85, 1.15)
    cut = windows(frames[shot].flatten(0, 1), centre.flatten(0, 1), scale.repeat_interleave(t), MOVE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.motion(cut.unflatten(0, (len(shot), t)), F.one_hot(species, len(SPECIES)).float())
    return 1.5 * _entropy(logits.float(), labels["action"][shot, 0, species])


def _missed(heads_N2: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    return heads_N2 + pixels * torch.randn(heads_N2.shape, generator=generator)


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    known = (target >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="sum", label_smoothing=0.01) / known


def train_reader(steps: int, out_path: Path, seed: int = 0, minutes: float = 16.0,
                 peak: float = 3e-3) -> dict[str, float]:
    """Trains from nothing for `steps` updates of 12 shots, at most `minutes` of processor time.

    The file holds averaged weights and is renewed after every round, so a run may be stopped at any time. The
    learning rate follows the budget that runs out first. Returns the share of right readings of whole shots per slot
    on renders of 40 fresh stories.
    """
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng([seed, 8])
    net = ReaderNet().train()
    _lay_out(net, torch.channels_last)  # faster on a CPU
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    pool = draw_examples(ROUND, seed * 1000)
    began, step, rounds, done = time.process_time(), 0, 0, 0.0
    note = {"batch": f"{BATCH} shots", "seed": str(seed), "started from": "nothing"}
    while done < 1:
        if step and step % UPDATES == 0:
            rounds += 1
            save_reader(averaged.module, out_path, note | {"steps": str(step)})
            pool = pool.joined(draw_examples(ROUND, seed * 1000 + rounds), POOL)
        done = max(step / steps, (time.process_time() - began) / (60 * minutes))
        rate = peak * min(1.0, (step + 1) / 100) * float(np.cos(np.pi / 2 * min(done, 1.0)) ** 2 + 0.003)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = play_tricks(pool, rng.integers(len(pool), size=BATCH), rng)
        frames, heads = damage(torch.from_numpy(batch.frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1,
                               torch.from_numpy(batch.heads), generator)  # fmt: skip
        labels = {k: torch.from_numpy(v) for k, v in batch.labels.items()}
        loss = reader_loss(net, frames, heads, labels, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        averaged.update_parameters(net)
        step += 1
        if step % 50 == 0:
            log.info("reader step %d loss %.3f (%.0f s)", step, loss.item(), time.process_time() - began)
    net.load_state_dict(averaged.module.state_dict())
    _lay_out(net, torch.contiguous_format)
    made = Reader(net)
    stories = [sample_story(FIRST_SEED + 40_000_000 - 40 + i) for i in range(40)]
    scores = share(agreement(made, stories))
    measured = {f"shots_right_{slot}": f"{value:.4f}" for slot, value in scores.items()}
    save_reader(made.net, out_path, note | {"steps": str(step)} | measured)
    return scores


def _lay_out(net: ReaderNet, form: torch.memory_format) -> None:
    for value in net.parameters():
        if value.ndim == 4:
            value.data = value.data.contiguous(memory_format=form)


def main() -> None:
    """Command line: where to write, and how long to train."""
    parser = argparse.ArgumentParser(description="Train the oracle's reader from nothing.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=16.0, help="processor minutes at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    log.info("shots read rightly: %s", train_reader(args.steps, args.out, args.seed, args.minutes))


if __name__ == "__main__":
    main()

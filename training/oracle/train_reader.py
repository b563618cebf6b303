"""Trains the learned reader on renders and on damaged renders, so that a codec's smear is no surprise to it.

Runs on one CPU core. The held-out pairs are shown here on purpose: the oracle must be able to see what the models
under test have never seen. Reader stories and evaluation stories come from disjoint seeds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shotstream.training.world import render_shot, sample_held_out_story, sample_story

from .reader import HEIGHT, WIDTH, ReaderNet, save_reader
from .slots import FRAME_SLOTS, HERO_SLOTS, Labels, true_labels

log = logging.getLogger(__name__)

FIRST_SEED = 50_000_000  # reader stories start here; tests and evaluations use small seeds
POOL = 20_000  # frames kept
ROUND = 2_000  # frames rendered before each round of updates
UPDATES = 150  # per round
BATCH = 64

Codec = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""uint8 frames [F, H, W, 3] -> the same after a video codec."""


def draw_examples(count: int, seed: int, frames_per_shot: int = 2, codec: Codec | None = None,
                  shots: int = 5) -> tuple[NDArray[np.uint8], Labels]:
    """`count` frames [N, 80, 128, 3] with their labels; a third of the stories hold a held-out pair.

    With `codec` half of the shots pass through it, as clips of 9 frames.
    """
    rng = np.random.default_rng([seed, 9])
    frames: list[NDArray[np.uint8]] = []
    labels: list[Labels] = []
    total, number = 0, 0
    while total < count:
        held_out = rng.random() < 0.33
        story_seed = FIRST_SEED + seed * 100_000 + number
        story = (sample_held_out_story if held_out else sample_story)(story_seed, shots)
        number += 1
        for k in range(shots):
            if codec is not None and rng.random() < 0.5:
                start = int(rng.integers(60))
                picked = sorted(int(v) for v in rng.choice(9, frames_per_shot, replace=False))
                clip = codec(render_shot(story, k, range(start, start + 9)))[picked]
                picked = [start + p for p in picked]
            else:
                picked = sorted(int(v) for v in rng.integers(0, 80, frames_per_shot))
                clip = render_shot(story, k, picked)
            frames.append(clip)
            labels.append(true_labels(story, k, picked))
            total += frames_per_shot
    joined = {slot: np.concatenate([one[slot] for one in labels])[:count] for slot in labels[0]}
    return np.concatenate(frames)[:count], joined


def damage(frames_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, coarse blocks, noise, a colour cast and a small shift, each on part of the batch; input in -1..1."""
    n = len(frames_NCHW)

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=generator) < share).float()

    x = frames_NCHW
    dy, dx = (int(v) for v in torch.randint(-3, 4, (2,), generator=generator))
    x = F.pad(x, (3, 3, 3, 3), mode="replicate")[:, :, 3 + dy : 3 + dy + HEIGHT, 3 + dx : 3 + dx + WIDTH]
    scale = float(torch.empty(1).uniform_(1.3, 2.6, generator=generator))
    small = F.interpolate(x, size=(round(HEIGHT / scale), round(WIDTH / scale)), mode="area")
    blurred = F.interpolate(small, size=(HEIGHT, WIDTH), mode="bilinear")
    x = torch.lerp(x, blurred, some(0.4) * torch.rand(n, 1, 1, 1, generator=generator))
    blocks = F.interpolate(F.avg_pool2d(x, 8), scale_factor=8.0, mode="nearest")
    x = torch.lerp(x, blocks, some(0.3) * 0.45 * torch.rand(n, 1, 1, 1, generator=generator))
    coarse = torch.randn(n, 3, HEIGHT // 8, WIDTH // 8, generator=generator)
    x = x + some(0.3) * 0.12 * F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")
    x = x + some(0.4) * 0.12 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    cast = 1 + 0.06 * torch.randn(n, 3, 1, 1, generator=generator)
    return ((x + 1) * cast - 1 + 0.04 * torch.randn(n, 1, 1, 1, generator=generator)).clamp(-1, 1)


def reader_loss(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Sum of the slots' cross entropies; unknown values (-1) do not count."""
    loss = 4 * F.binary_cross_entropy_with_logits(logits["present"], labels["present"].float())
    for slot in ("where", *HERO_SLOTS, *FRAME_SLOTS):
        flat, target = logits[slot].flatten(0, -2), labels[slot].flatten()
        known = (target >= 0).sum().clamp(min=1)
        loss = loss + F.cross_entropy(flat, target, ignore_index=-1, reduction="sum", label_smoothing=0.01) / known
    return loss


def train_reader(steps: int, out_path: Path, seed: int = 0, codec: Codec | None = None, start: ReaderNet | None = None,
                 minutes: float = 15.0, peak: float = 3e-3) -> dict[str, float]:
    """Trains for `steps` updates of 64 frames, at most `minutes` of processor time; returns the accuracies.

    The file holds averaged weights and is renewed after every round, so a run may be stopped at any time. The
    learning rate follows the budget that runs out first. `start` continues from earlier weights.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = start or ReaderNet()
    net.train()
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.985), use_buffers=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    pool, labels = draw_examples(ROUND, seed * 1000, codec=codec)
    targets = {k: torch.from_numpy(v) for k, v in labels.items()}
    began, step, rounds, done = time.process_time(), 0, 0, 0.0
    note = {"batch": str(BATCH), "seed": str(seed), "codec": str(codec is not None)}
    while done < 1:
        if step and step % UPDATES == 0:
            rounds += 1
            save_reader(averaged.module, out_path, note | {"steps": str(step)})
            fresh, more = draw_examples(ROUND, seed * 1000 + rounds, codec=codec)
            pool = np.concatenate((pool, fresh))[-POOL:]
            targets = {k: torch.cat((v, torch.from_numpy(more[k])))[-POOL:] for k, v in targets.items()}
        done = max(step / steps, (time.process_time() - began) / (60 * minutes))
        rate = peak * min(1.0, (step + 1) / 100) * float(np.cos(np.pi / 2 * min(done, 1.0)) ** 2 + 0.003)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(pool), (BATCH,), generator=generator)
        frames = torch.from_numpy(pool[pick.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        frames = damage(frames, generator).contiguous(memory_format=torch.channels_last)  # faster on a CPU
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(frames)
        loss = reader_loss({k: v.float() for k, v in logits.items()}, {k: v[pick] for k, v in targets.items()})
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        averaged.update_parameters(net)
        step += 1
        if step % 100 == 0:
            log.info("reader step %d loss %.3f (%.0f s)", step, loss.item(), time.process_time() - began)
    scores = reader_accuracy(averaged.module, 600, seed * 1000 + 900)
    measured = {f"accuracy_{slot}": f"{share:.4f}" for slot, share in scores.items()}
    save_reader(averaged.module, out_path, note | {"steps": str(step)} | measured)
    return scores


@torch.inference_mode()
def reader_accuracy(net: nn.Module, count: int, seed: int) -> dict[str, float]:
    """Share of right single-frame readings per slot on `count` clean renders of fresh stories."""
    net.eval()
    frames, labels = draw_examples(count, seed)
    inputs = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [net(inputs[i : i + 64]) for i in range(0, count, 64)]
    scores = {}
    for slot in parts[0]:
        logits, target = torch.cat([p[slot] for p in parts]), torch.from_numpy(labels[slot])
        if slot == "present":
            scores[slot] = float(((logits > 0).long() == target).all(-1).float().mean())
        else:
            known = target >= 0
            scores[slot] = float((logits.argmax(-1)[known] == target[known]).float().mean())
    return scores

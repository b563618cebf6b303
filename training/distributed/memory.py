"""How much memory a process of a stage needs, estimated from sizes alone before anything is loaded.

Counted: weights, gradients, optimizer and average of every network, blocks gathered for use, activations and caches
kept for the backward pass. Not counted: codec, text encoder, data, and what libraries and allocators take. The bytes
per token were fitted to what autograd saves of one block (`tests/training/test_distributed_memory.py` holds them
together).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.distributed.flops import Pass
from shotstream.training.distributed.scale import Scale

# Bytes that autograd keeps per token and block: times ffn_dim, times dim; with checkpointing times dim.
_KEPT = {"float32": (8.0, 90.0, 4.5), "autocast": (4.0, 66.0, 6.0), "fsdp-bf16": (4.0, 51.0, 2.4)}
_ENDS = 15.0  # before the first block and behind the last one, times dim
# Bytes of a key and a value as the roll-out remembers them.
_REMEMBERED = {"float32": 8, "autocast": 6, "fsdp-bf16": 4}


@dataclass(frozen=True)
class Need:
    """One row of the estimate; ``sharded`` parts shrink with the number of processes."""

    what: str
    bytes: float
    sharded: bool


@dataclass(frozen=True)
class Network:
    """One transformer of a stage: which share of a float32 copy of itself its optimizer keeps, and how much trains."""

    name: str
    config: DiTConfig
    trained: int
    state: float = 2.0
    ema: bool = False


def parameters(config: DiTConfig, word: str = "") -> int:
    """Parameters of a transformer whose names contain ``word``."""
    with torch.device("meta"):
        named = Transformer(config).named_parameters()
    return sum(p.numel() for name, p in named if word in name)


def adapter_parameters(config: DiTConfig, rank: int) -> int:
    """Parameters of LoRA adapters on every linear layer of the blocks."""
    return config.layers * rank * (16 * config.dim + 2 * (config.dim + config.ffn_dim))


def estimate(
    networks: Sequence[Network], passes: Sequence[Pass], rows: int, scale: Scale, size: int, device: str, *,
    regression: bool = False,
) -> list[Need]:  # fmt: skip
    """What one of ``size`` processes needs for ``rows`` samples at once. ``regression``: blocks are predicted behind a
    history that is trained with them, so that weights once gathered stay (`sharding.keep_in_backward`), and the keys
    and values of the past are activations like others.
    """
    needs: list[Need] = []
    gathered = size > 1 or scale.precision == "fsdp-bf16"
    width = 2 if scale.precision == "fsdp-bf16" else 4
    for network in networks:
        count = parameters(network.config)
        needs.append(Need(f"{network.name}: weights", 4 * max(count, network.trained) / size, gathered))
        if network.trained:
            needs.append(Need(f"{network.name}: gradients", 4 * network.trained / size, gathered))
            needs.append(Need(f"{network.name}: optimizer", 4 * network.trained * network.state / size, gathered))
        if network.ema:
            needs.append(Need(f"{network.name}: average", 4 * network.trained / size, gathered))
    config = networks[0].config
    block, count = parameters(config, "blocks.0."), parameters(config)
    if gathered:  # one block and the next one or all, the rest of the network, and a block's gradient
        rest = count - config.layers * block
        at_once = config.layers if regression else 2
        needs.append(Need("gathered blocks", width * (at_once * block + rest) + 4 * block, False))
    elif scale.precision == "autocast":
        needs.append(Need("weights in bfloat16", 2 * count, False))
    needs.append(Need("activations", rows * _activations(config, passes, scale, device), False))
    caches = 0.0 if regression else rows * _caches(config, passes, scale)
    if caches:
        needs.append(Need("caches of the roll-out", caches, False))
    return needs


def _activations(config: DiTConfig, passes: Sequence[Pass], scale: Scale, device: str) -> float:
    ffn, dim, recomputed = _KEPT[scale.precision]
    scores = 0 if device == "cuda" else config.heads * (4 if scale.precision == "float32" else 2)

    def block(one: Pass) -> float:
        """Of one block in full: what it makes of its tokens, the keys it was given, and a CPU's score matrices."""
        own = one.tokens * (ffn * config.ffn_dim + dim * config.dim)
        past = (one.keys - one.tokens) * config.dim * (8 if scale.precision == "float32" else 4)
        return own + past + scores * one.tokens * one.keys

    trained = [one for one in passes if one.trained]
    ends = sum(one.tokens * _ENDS * config.dim for one in trained)
    if scale.checkpointing:
        kept = sum(config.layers * one.tokens * recomputed * config.dim for one in trained)
        return ends + kept + max(map(block, trained))
    return ends + config.layers * sum(map(block, trained))


def _caches(config: DiTConfig, passes: Sequence[Pass], scale: Scale) -> float:
    """Keys and values of the past: every differentiated chunk keeps the ones it saw, others only the last."""
    past = [(one.keys - one.tokens, one.trained) for one in passes]
    kept = sum(tokens for tokens, trained in past if trained)
    return config.layers * config.dim * _REMEMBERED[scale.precision] * max([kept, *(tokens for tokens, _ in past)])


def available(device: torch.device, neighbours: int = 1) -> float:
    """Bytes that a process may still take: of its GPU, or its share of this machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / neighbours
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / neighbours

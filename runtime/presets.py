"""The plugins that are always there: the embedded model `tiny`, the eager engine, torch's attention.

A preset is a factory of the `model` slot: it finds, checks and loads weights and says nothing about sessions. The real
model's preset is in `shotstream.runtime.wan`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.engine import EagerEngine, Engine
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import BlockOps, TorchOps
from shotstream.runtime.model.attention import Attention, sdpa
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import EngineRequest, ModelParts, ModelRequest, Registry
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder

_Module = TypeVar("_Module", bound=nn.Module)

DEFAULT_PLUGINS: tuple[str, ...] = (
    "shotstream.runtime.presets:CorePlugin",
    "shotstream.runtime.presets:TinyPlugin",
    "shotstream.runtime.sinks.plugin:SinksPlugin",
    "shotstream.runtime.wan:WanPlugin",
)
"""Our plugins in order; those of installed packages follow."""

TINY_LATENT = (10, 16)
"""Height and width of a `tiny` latent frame; one cell is 16 x 16 pixels."""


class CorePlugin:
    """Engines `eager` and `graph`, attention `sdpa` and operations `torch`: plain torch, on any device."""

    name = "core"

    def build(self, registry: Registry) -> None:
        """Register them."""
        registry.register("engine", "eager", EagerEngine)
        registry.register("engine", "graph", _graph_engine)
        registry.register("attention", "sdpa", _sdpa)
        registry.register("ops", "torch", _torch_ops)


class TinyPlugin:
    """The embedded model `tiny`, and its text encoder and decoder on their own."""

    name = "tiny"

    def build(self, registry: Registry) -> None:
        """Register model, text encoder and decoder; files are read when a runtime asks for them."""
        registry.register("model", "tiny", load_tiny)
        registry.register("text", "tiny", load_tiny_text)
        registry.register("decoder", "tiny-vae", load_tiny_vae)


def _sdpa() -> Attention:
    return sdpa


def _graph_engine(request: EngineRequest) -> Engine:
    from shotstream.runtime.graph.engine import GraphEngine

    return GraphEngine(request)


def _torch_ops(device: torch.device) -> BlockOps:
    return TorchOps()


def load_tiny(request: ModelRequest) -> ModelParts:
    """The `tiny` model: 160 x 256 pixels, 16 fps, trained on shots of 3 chunks.

    Files: dit, vae and text `.safetensors` in the package, or in the folder given as `request.weights`. Raises
    UserError for a missing file, one that is no safetensors file, or one whose tensors do not fit.
    """
    _no_options(request, "tiny")
    vae, text = load_tiny_vae(request), load_tiny_text(request)
    if request.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            transformer = Transformer(TINY)
    else:
        transformer = load_transformer(weights_file(request, "dit"))
    return model_parts("tiny", request, transformer, text, vae, TINY_LATENT, default_chunks=3)


def load_tiny_text(request: ModelRequest) -> TinyTextEncoder:
    """The embedded text encoder; float32 always, it costs nothing."""
    if request.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            text = TinyTextEncoder()
    else:
        path = weights_file(request, "text")
        tensors, metadata = read_safetensors(path)
        text = TinyTextEncoder(TinyTextConfig.from_json(_config_text(path, metadata)))
        _fill(text, tensors, path)
    return _frozen(text).to(request.device)


def load_tiny_vae(request: ModelRequest) -> TinyVAE:
    """The embedded codec, in the request's number format."""
    if request.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            vae = TinyVAE()
    else:
        vae = TinyVAE.load(weights_file(request, "vae"))
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _frozen(vae).to(request.device, request.dtype)


def load_transformer(path: Path) -> Transformer:
    """A transformer from our own safetensors layout: Wan's keys, and the configuration as json in the metadata."""
    tensors, metadata = read_safetensors(path)
    config = DiTConfig.from_json(_config_text(path, metadata))
    with torch.device("meta"):
        transformer = Transformer(config)
    _fill(transformer, tensors, path)
    return transformer


def model_parts(
    name: str,
    request: ModelRequest,
    transformer: Transformer,
    text: TinyTextEncoder,
    decoder: TinyVAE,
    latent_size: tuple[int, int],
    default_chunks: int = 7,
) -> ModelParts:
    """Put loaded modules in place (device, number format, eval mode) and describe them."""
    config, cell = transformer.config, decoder.config.cell
    if text.config.dim != config.text_dim or text.config.length != config.text_len:
        raise UserError(
            f"the text encoder of '{name}' gives {text.config.length} rows of {text.config.dim}, but its "
            f"transformer reads {config.text_len} of {config.text_dim}; the files do not belong together"
        )
    if decoder.config.latent_channels != config.channels:
        raise UserError(f"the codec and the transformer of '{name}' differ in channels; they do not belong together")
    return ModelParts(
        name=name,
        config=config,
        transformer=_frozen(transformer).to(request.device, request.dtype),
        text=text,
        decoder=decoder,
        weights_hash=hash_weights({"dit": transformer, "vae": decoder, "text": text}),
        latent_shape=(config.channels, *latent_size),
        frame_size=(latent_size[0] * cell, latent_size[1] * cell),
        default_chunks=default_chunks,
    )


def weights_file(request: ModelRequest, part: str) -> Path:
    """Where a part's weights are: in the package, or in the folder that was asked for; UserError if they are not."""
    name = f"{part}.safetensors"
    if request.weights != "default":
        folder = Path(request.weights)
        if not folder.is_dir():
            raise UserError(f"there is no folder of weights at {folder}; give a folder, 'default' or 'random'")
        path = folder / name
    else:
        path = Path(str(resources.files("shotstream.runtime"))) / "weights" / "tiny" / name
    if not path.is_file():
        raise UserError(f"the weights file {path} is missing; reinstall the package or give another folder")
    return path


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; UserError for a file that cannot be read as safetensors."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); fetch it again") from error


def hash_weights(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 over names, shapes, number formats and bytes of all tensors, in a fixed order."""
    digest = hashlib.sha256()
    for prefix, module in sorted(modules.items()):
        for key, tensor in sorted(module.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{prefix}.{key}:{plain.dtype}:{tuple(plain.shape)};".encode())
            digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _config_text(path: Path, metadata: Mapping[str, str]) -> str:
    if "config" not in metadata:
        raise UserError(f"{path} carries no configuration in its metadata; it was not written by shotstream")
    return metadata["config"]


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors strictly; UserError names the first keys that are missing, unknown or mis-shaped."""
    expected = module.state_dict()
    faults = [f"missing {key}" for key in expected if key not in tensors]
    faults += [f"unknown {key}" for key in tensors if key not in expected]
    faults += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{path} does not fit its configuration: {'; '.join(faults[:3])}{more}")
    module.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)


def _frozen(module: _Module) -> _Module:
    return module.requires_grad_(False).eval()


def _no_options(request: ModelRequest, name: str) -> None:
    if request.options:
        raise UserError(f"the model '{name}' takes no options, but was given {', '.join(request.options)}")

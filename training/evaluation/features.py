"""The slot `features`: what makes pictures (and captions) comparable, as vectors of length 1.

`dino` and `clip` read models of transformers from a folder that the user has; nothing is downloaded. `oracle` and
`oracle-scene` are the shipped reader of the story world: what it knows of heroes, and of the scene.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require
from shotstream.training.oracle.reader import load_reader

BATCH = 16
DINO_TYPES = ("dinov2", "dinov2_with_registers", "vit")
CLIP_TYPES = ("clip",)

Vectors = NDArray[np.float32]
"""[N, D], every row of length 1."""


class Features(Protocol):
    """What a factory of the slot gives. A text encoder may be there too: see `knows_text`."""

    def frames(self, frames_NHWC: NDArray[np.uint8]) -> Vectors:
        """One vector per frame of one shot; frames are uint8 [N, H, W, 3]. UserError if it cannot read such frames."""
        ...


class TextFeatures(Features, Protocol):
    """Features of pictures and captions in one space."""

    def captions(self, captions: Sequence[str]) -> Vectors:
        """One vector per caption; what is too long for the model is cut off at its end."""
        ...


class DinoFeatures:
    """DINO or DINOv2: the class token of the last layer, which VBench compares for subjects."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        """`folder` is as transformers saves it: config, safetensors, preprocessor. UserError says what is missing."""
        own, self._device = _model_folder(folder, "dino", DINO_TYPES), device
        self._prepare = _load("dino", own, "AutoImageProcessor")
        # A plain ViT has a head on its class token, which DINO's files do not hold and nobody uses here.
        bare = {"add_pooling_layer": False} if _model_type(own) == "vit" else {}
        self._model = _load_weights("dino", own, "AutoModel", **bare).to(device)

    @torch.inference_mode()
    def frames(self, frames_NHWC: NDArray[np.uint8]) -> Vectors:
        """See `Features`."""
        batches = _prepared(self._prepare, frames_NHWC, self._device)
        return _unit(torch.cat([self._model(pixel_values=pixels).last_hidden_state[:, 0] for pixels in batches]))


class ClipFeatures:
    """CLIP: image features, which VBench compares for backgrounds, and text features in the same space."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        """`folder` is as transformers saves it: config, safetensors, preprocessor, tokenizer. UserError as above."""
        own, self._device = _model_folder(folder, "clip", CLIP_TYPES), device
        self._prepare = _load("clip", own, "AutoImageProcessor")
        self._tokenize = _load("clip", own, "AutoTokenizer")
        self._model = _load_weights("clip", own, "CLIPModel").to(device)

    @torch.inference_mode()
    def frames(self, frames_NHWC: NDArray[np.uint8]) -> Vectors:
        """See `Features`."""
        batches = _prepared(self._prepare, frames_NHWC, self._device)
        return _unit(torch.cat([_pooled(self._model.get_image_features(pixel_values=pixels)) for pixels in batches]))

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> Vectors:
        """See `TextFeatures`."""
        longest = self._model.config.text_config.max_position_embeddings
        said = self._tokenize(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = {name: said[name].to(self._device) for name in ("input_ids", "attention_mask")}
        return _unit(_pooled(self._model.get_text_features(**tokens)))


class OracleFeatures:
    """The last hidden layer of the story world's reader, for frames of the aspect 16:10; runs on the CPU.

    `subject`: what it sees in windows around the heads it finds, by species and weighted by how sure it is that one is
    there. Otherwise: what it makes of the whole frame, from which it reads size, place, time and house.
    """

    def __init__(self, subject: bool) -> None:
        self._reader, self._subject = load_reader(), subject

    def frames(self, frames_NHWC: NDArray[np.uint8]) -> Vectors:
        """See `Features`."""
        _, height, width, _ = frames_NHWC.shape
        if height * 16 != width * 10:
            raise UserError(
                f"the oracle's features are for the story world, which has the aspect 16:10, not for {width}x{height}; "
                "give --features dino,clip with --features-weights for other films"
            )
        net = self._reader.net
        with _output_of(net.look.mix if self._subject else net.scene.scene) as seen:
            said = self._reader.read_frames(frames_NHWC)
        hidden = F.relu(seen[0])
        if self._subject:
            hidden = (hidden.unflatten(0, said["present"].shape) * said["present"][..., None]).flatten(1)
        return _unit(hidden)


def oracle_subjects(folder: Path | None, device: torch.device) -> OracleFeatures:
    """The features `oracle`; they need no folder and no device."""
    return OracleFeatures(subject=True)


def oracle_scenes(folder: Path | None, device: torch.device) -> OracleFeatures:
    """The features `oracle-scene`, likewise."""
    return OracleFeatures(subject=False)


def knows_text(features: Features) -> TypeGuard[TextFeatures]:
    """Whether it has features of captions too: see `TextFeatures`."""
    return callable(getattr(features, "captions", None))


@contextmanager
def _output_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the module gives while the body runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _given, made: seen.append(made))
    try:
        yield seen
    finally:
        hook.remove()


def _prepared(prepare: Any, frames_NHWC: NDArray[np.uint8], device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(frames_NHWC), BATCH):
        batch = list(frames_NHWC[start : start + BATCH])
        yield prepare(images=batch, return_tensors="pt", input_data_format="channels_last")["pixel_values"].to(device)


def _pooled(made: Any) -> Tensor:
    """transformers 4 gives the features themselves, 5 an object that holds them."""
    return made if isinstance(made, Tensor) else made.pooler_output


def _unit(vectors: Tensor) -> Vectors:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()


def _model_folder(folder: Path | None, name: str, types: Sequence[str]) -> Path:
    """Where this extractor's model is: FOLDER/NAME, or FOLDER itself."""
    require("transformers", f"the features '{name}'")
    if folder is None:
        raise UserError(f"the features '{name}' need their model: give its folder with --features-weights")
    own = folder / name if (folder / name).is_dir() else folder
    if not (own / "config.json").is_file():
        raise UserError(f"{own} holds no model (no config.json); save one there with transformers' save_pretrained")
    if (found := _model_type(own)) not in types:
        raise UserError(f"{own} holds a model of the type {found!r}; the features '{name}' need {' or '.join(types)}")
    return own


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} is not a model's configuration: {error}") from None


def _load(name: str, folder: Path, kind: str, **options: Any) -> Any:
    """One part of a model by transformers' class of this name, from files only. UserError when it cannot be read."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the features '{name}' cannot be loaded from {folder} ({kind}): {reason}") from error


def _load_weights(name: str, folder: Path, kind: str, **options: Any) -> Any:
    """The model in float32, ready to run. Refused: files other than safetensors, and files that lack a weight."""
    model, told = _load(name, folder, kind, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"the weights in {folder} are not all there: {missing[0]} and {len(missing) - 1} more lack")
    return model.float().eval()

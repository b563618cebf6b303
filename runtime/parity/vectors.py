"""A file of reference vectors: reading it safely, and building models of the sizes it holds. It compares nothing.

The format is a nested dict of tensors and plain values, written by `torch.save`; `weights_*` entries are models,
`meta` holds sizes, everything else is a case.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer

_KNOWN = ("meta", "schedule", "context_sampling", "sinusoid")


@dataclass(frozen=True)
class VectorFile:
    """The content of one vector file. `cases` excludes models and sizes."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> VectorFile:
        """Reads a file; raises UserError if it is missing, unreadable, truncated or something else."""
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the vector file itself")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"there is no vector file {path}; give the path of a reference_vectors.pt") from error
        except PermissionError as error:
            raise UserError(f"the vector file {path} may not be read; check its permissions") from error
        except (
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            OSError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            raise UserError(
                f"{path} is not a readable vector file: it is truncated, or another format; copy it again"
            ) from error
        except Exception as error:  # a hostile pickle may raise anything in the restricted reader
            raise UserError(f"{path} is not a vector file ({type(error).__name__} while reading)") from error
        known = isinstance(content, dict) and (
            any(name in content for name in _KNOWN) or any(str(name).startswith("weights_") for name in content)
        )
        if not known:
            raise UserError(f"{path} holds no reference vectors (no schedule, no weights_*); is it a checkpoint?")
        return cls(path, content)

    @property
    def cases(self) -> dict[str, Any]:
        """Case name -> case."""
        return {
            str(name): case
            for name, case in self.content.items()
            if name != "meta" and not str(name).startswith("weights_")
        }

    @property
    def case_names(self) -> list[str]:
        """Names of the cases, in the file's order."""
        return list(self.cases)

    @property
    def meta(self) -> Mapping[str, Any]:
        """Sizes that hold for the whole file; empty when the file has none."""
        found = self.content.get("meta")
        return found if isinstance(found, Mapping) else {}

    def schedule(self) -> NoiseSchedule:
        """The noise table of the file: shift 8 unless its meta entry says otherwise."""
        return NoiseSchedule(float(self.meta.get("shift", 8.0)))

    def steps(self, case: Mapping[str, Any] | None = None) -> Tensor:
        """Warped denoising timesteps: of the case if it holds them, else from the nominal ones."""
        if case is not None and isinstance(case.get("steps"), Tensor):
            return case["steps"].float()
        return self.schedule().warp(list(self.meta.get("steps", (1000, 740, 500, 260))))

    def weights(self, name: str) -> dict[str, Tensor]:
        """The state dict `name` without its `model.` prefix; raises UserError if the file lacks it."""
        entry = self.content.get(name)
        if not isinstance(entry, Mapping) or "state_dict" not in entry or "config" not in entry:
            raise UserError(f"{self.path} lacks the model {name!r} that one of its cases uses")
        return {key.removeprefix("model."): tensor for key, tensor in entry["state_dict"].items()}

    def config(self, name: str, **changes: Any) -> DiTConfig:
        """The sizes of model `name`; `changes` override single fields of the configuration."""
        self.weights(name)
        c = self.content[name]["config"]
        values: dict[str, Any] = {
            "dim": c["dim"],
            "heads": c["num_heads"],
            "ffn_dim": c["ffn_dim"],
            "layers": c["num_layers"],
            "freq_dim": c.get("freq_dim", 256),
            "channels": c.get("in_dim", 16),
            "patch": tuple(c.get("patch_size", (1, 2, 2))),
            "text_len": c["text_len"],
            "text_dim": c["text_dim"],
            "eps": c.get("eps", 1e-6),
            "chunk_frames": int(self.meta.get("chunk", 3)),
            "context_frames": int(self.meta.get("context_frames", 6)),
        }
        values.update(changes)
        return DiTConfig(**values)

    def model(self, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
        """A transformer with the weights `name`, loaded strictly; `changes` as in :meth:`config`."""
        model = Transformer(self.config(name, **changes))
        model.load_state_dict(self.weights(name))
        return model.to(dtype)

"""What regressions (``ode``, ``continuation``, ``coupled``) share: a student, its optimizer, a sheet of its shots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.accumulate import Part, PartLoss, backward, parts_of
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.sharding import free, keep_in_backward, load_trained, place, trained_state
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import TorchDraws
from shotstream.training.stages.given import Codec, FrozenText
from shotstream.training.stages.optim import stage_optimizer, take_step
from shotstream.training.stages.student_sheet import write_student_sheet
from shotstream.training.stages.teacher import takes_adam
from shotstream.training.stages.trainer import Ema, step_generator


@dataclass(frozen=True)
class RegressionRecipe(Scale):
    """Hyper-parameters of a regression. ``lr`` is the rate of matrices, ``adam_lr`` of everything else; ``frames``
    the latents of a whole shot.
    """

    frames: int = 9
    lr: float = 4e-4
    adam_lr: float = 2e-4
    ema: float = 0.98
    clip: float = 1.0
    text_drop: float = 0.1
    optimizer: str = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 10
    decay: float = 0.5
    seed: int = 1


class RegressionStage:
    """State of a regression (see :class:`shotstream.training.stages.trainer.Stage`); ``step`` and ``work`` are the
    stage's own.
    """

    def __init__(
        self, recipe: RegressionRecipe, student: Transformer, text: FrozenText, held_out: TrainingStories, vae: Codec,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        self.team = team = team or replace(ALONE, device=next(student.parameters()).device)
        self.text, self.held_out, self.vae, self.device = text, held_out, vae, team.device
        self._recipe = recipe
        self.model = place(student, team, recipe)
        keep_in_backward(self.model)
        self.schedule = NoiseSchedule(student.config.shift, self.device)
        self.ema = Ema({"dit": student}, recipe.ema)
        self.optimizer = stage_optimizer({"dit": student}, recipe, takes_adam)
        self._captions = 0

    def _parts(self, batch: int) -> list[Part]:
        return parts_of(batch, self.team, self._recipe.micro_batch)

    def _draws(self, index: int, noise_offset: float = 0.0) -> TorchDraws:
        generator = step_generator(self._recipe.seed, index, self.device)
        patch = self.model.config.patch[1:]
        return TorchDraws(generator, device=self.device, noise_offset=noise_offset, patch=patch)

    def _update(
        self, index: int, lr_factor: float, loss_of: Callable[[Part], PartLoss], parts: Sequence[Part]
    ) -> dict[str, float]:
        """One optimizer step; returns figures."""
        self._captions = 0
        figures = backward(parts, loss_of, self.team)
        free(self.model)
        norm = take_step(self.optimizer, (self.model,), self._recipe.clip, lr_factor)
        self.ema.update(index)
        return figures | {"grad_norm": norm}

    def _without_text(self, conditioning: Conditioning, dropped: bool) -> Conditioning:
        """Count the captions of a part, and blank them if they are dropped."""
        self._captions += len(conditioning.captions_NLD)
        captions = conditioning.captions_NLD
        return replace(conditioning, captions_NLD=captions.new_zeros(captions.shape)) if dropped else conditioning

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": trained_state(self.model), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_trained(self.model, state["dit"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The student's own next shots of held-out stories, rolled out chunk by chunk."""
        self.ema.swap()
        sheet = path if self.team.first else None
        write_student_sheet(self.model, self.text, self.vae, self.held_out, sheet, self._recipe, self._recipe.frames)
        self.ema.swap()

"""The teacher's second task, of the story world only: where the parts of the scene are."""

from __future__ import annotations

from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.training.world.parts import PARTS


class PartHead(nn.Module):
    """A linear look at a middle block's features: which parts of the scene fill each cell of a token.

    It exists only while the teacher trains. Middle layers that must know where an ear is, learn what an ear is sooner
    than the flow alone teaches them (after Yu et al., "Representation alignment for generation", 2024, with the world's
    own knowledge in place of a pretrained network's).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = config.patch[1:]
        self.linear = nn.Linear(config.dim, self.patch[0] * self.patch[1] * len(PARTS))

    def forward(self, x_BFTD: Tensor, parts_BFHWP: Tensor) -> Tensor:
        """Mean cross entropy against shares in 255ths of the same frames."""
        rows, columns = self.patch
        cells = parts_BFHWP.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 1, 2, 4, 3, 5, 6)
        target = cells.flatten(4, 5).flatten(2, 3).float() / 255
        logits = self.linear(x_BFTD).float().unflatten(-1, (rows * columns, len(PARTS)))
        return -(target * logits.log_softmax(-1)).sum(-1).mean()

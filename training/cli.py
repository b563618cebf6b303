"""The plugin that mounts the training room's commands; each command lies in a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from shotstream.runtime.parity import CaseGroup
    from shotstream.runtime.plugins import Registry


class TrainingPlugin:
    """Mounts the training room's commands and its part of the parity check."""

    name = "training"

    def build(self, registry: Registry) -> None:
        """Register the commands ``train``, ``evaluate`` and ``table`` and the parity groups of the training stages."""
        from shotstream.training.evaluation import plugin as evaluation_slots

        registry.register("command", "train", _mount_train)
        registry.register("command", "evaluate", _mount_evaluate)
        registry.register("command", "table", _mount_table)
        registry.register("parity", "training", _parity_groups)
        evaluation_slots.register(registry)


def _mount_train(app: typer.Typer) -> None:
    from shotstream.training import train_command

    train_command.mount(app)


def _mount_evaluate(app: typer.Typer) -> None:
    from shotstream.training.evaluation import command as evaluate_command

    evaluate_command.mount(app)


def _mount_table(app: typer.Typer) -> None:
    from shotstream.training.table import command

    command.mount(app)


def _parity_groups() -> list[CaseGroup]:
    from shotstream.training.method import parity_cases

    return parity_cases.parity_groups()


plugin = TrainingPlugin()
"""Entry point ``shotstream.plugins``."""

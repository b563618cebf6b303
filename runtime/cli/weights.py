"""The commands `fetch` and `convert`: weights by revision and hash, and between the layouts they come in."""

from __future__ import annotations

import typer


def mount(app: typer.Typer) -> None:
    """Add `fetch` and `convert`."""

"""The picture-book story world: stories from seeds, their captions and their frames. numpy only, no model code."""

from .captions import paraphrased
from .render import render_shot
from .story import (
    Background,
    Character,
    Shot,
    Story,
    is_held_out,
    sample_held_out_story,
    sample_story,
)

__all__ = [
    "Background",
    "Character",
    "Shot",
    "Story",
    "is_held_out",
    "paraphrased",
    "render_shot",
    "sample_held_out_story",
    "sample_story",
]

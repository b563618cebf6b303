"""The plugin that offers the directors `tiny` and `cinematic` in the slot `director`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shotstream.bridge.director.director import Director
    from shotstream.runtime.plugins import Registry


class DirectorPlugin:
    """Registers one director for each event map that comes with the package."""

    name = "director"

    def build(self, registry: Registry) -> None:
        """Register the factories; a map is read when its director is asked for."""
        for name in ("tiny", "cinematic"):
            registry.register("director", name, partial(make_director, name))


def make_director(name: str, options: Mapping[str, Any]) -> Director:
    """A director by the map `name`, or by the file that the option `map` names.

    Raises UserError for other options and for whatever is wrong with the file."""
    from shotstream.bridge.director.director import Director
    from shotstream.bridge.director.load import load_map, shipped_map
    from shotstream.runtime.errors import UserError

    if unknown := [key for key in options if key != "map"]:
        raise UserError(f"the director '{name}' has no option '{unknown[0]}'; it takes map, an event map of your own")
    own = options.get("map")
    return Director(load_map(Path(own)) if own else shipped_map(name))


plugin = DirectorPlugin()
"""For the entry-point group `shotstream.plugins`."""

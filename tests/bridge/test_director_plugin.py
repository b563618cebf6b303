"""Directors are plugins, and cost neither torch nor a file until one is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shotstream.bridge.director import CastMember, Event, StoryState
from shotstream.bridge.director.plugin import plugin
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import Registry


def test_both_directors_are_in_their_slot():
    registry = Registry([plugin])
    assert registry.names("director") == ["tiny", "cinematic"]
    director = registry.factory("director", "tiny")({})
    state, _ = director.scene(StoryState(), cast=[CastMember("hero", "red cat")])
    assert director.direct(state, Event("Player.Wave", "hero"))[0].caption == "Wide shot: the red cat waves."


def test_a_director_takes_an_event_map_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: tiny\nrules: [{kind: Hop, action: jumps}]\n")
    director = Registry([plugin]).factory("director", "tiny")({"map": str(file)})
    assert director.name == "mine"
    with pytest.raises(UserError, match="has no option 'file'; it takes map"):
        Registry([plugin]).factory("director", "tiny")({"file": str(file)})


def test_directing_imports_neither_torch_nor_sockets():
    code = (
        "import sys\n"
        "from shotstream.bridge.director import Director, Event, StoryState, CastMember, shipped_map\n"
        "import shotstream.bridge.director.plugin\n"
        "d = Director(shipped_map('cinematic'))\n"
        "d.direct(d.scene(StoryState(), cast=[CastMember('a', 'Ann')])[0], Event('Player.Act', 'a', 'waits'))\n"
        "found = {'torch', 'zmq', 'socket', 'shotstream.training'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Plugins: an explicit, ordered list whose failures are named and stop nobody else."""

from __future__ import annotations

import logging
import sys
import types
from importlib import metadata

import pytest
import torch

from shotstream.runtime import plugins as plugins_module
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import HOOKS, Registry
from shotstream.runtime.runtime import Runtime, assemble_registry


class Listener:
    """Subscribes to every hook and remembers the calls."""

    name = "listener"

    def __init__(self):
        self.calls = []

    def build(self, registry):
        for hook in HOOKS:
            registry.subscribe(hook, lambda *arguments, hook=hook: self.calls.append(hook))


class Broken:
    """Registers something, then fails."""

    name = "broken"

    def build(self, registry):
        registry.register("sink", "half-made", object)
        registry.subscribe("on_chunk", print)
        raise RuntimeError("no such library")


class Provider:
    def __init__(self, name, slot="sink", provides="file"):
        self.name, self.slot, self.provides = name, slot, provides

    def build(self, registry):
        registry.register(self.slot, self.provides, lambda: self.name)


def test_factories_are_found_by_slot_and_name():
    registry = Registry([Provider("one"), Provider("two", provides="web")])
    assert registry.names("sink") == ["file", "web"]
    assert registry.factory("sink", "web")() == "two"


def test_an_unknown_name_lists_the_valid_ones():
    registry = Registry([Provider("one"), Provider("two", provides="web")])
    with pytest.raises(UserError, match=r"no sink 'tape'.*file, web"):
        registry.factory("sink", "tape")
    with pytest.raises(UserError, match=r"no slot 'sinks'.*model, attention, ops, engine"):
        registry.factory("sinks", "file")


def test_a_failing_plugin_is_named_leaves_nothing_behind_and_the_rest_go_on(caplog):
    with caplog.at_level(logging.WARNING):
        registry = Registry([Provider("one"), Broken(), "shotstream.nowhere:Plugin", Provider("two", provides="web")])
    states = {state.name: state for state in registry.describe()}
    assert [state.state for state in registry.describe()] == ["ready", "failed", "failed", "ready"]
    assert states["broken"].reason == "RuntimeError: no such library"
    assert "No module named" in states["Plugin"].reason
    assert states["Plugin"].origin == "shotstream.nowhere:Plugin"
    assert registry.names("sink") == ["file", "web"]
    assert "broken" in caplog.text
    registry.call_hook("on_chunk", None, None)
    with pytest.raises(UserError, match="no such library"):
        registry.factory("sink", "tape")


def test_a_required_plugin_that_failed_is_an_error():
    registry = Registry([Broken(), Provider("one")])
    registry.require(["one"])
    with pytest.raises(UserError, match=r"'broken' is required but failed to load: RuntimeError"):
        registry.require(["broken"])
    with pytest.raises(UserError, match=r"'nobody' is required but not there"):
        registry.require(["nobody"])


def test_a_name_that_is_taken_and_a_second_plugin_of_one_name_are_refused():
    registry = Registry([Provider("one"), Provider("two"), Provider("one", provides="web")])
    assert [state.state for state in registry.describe()] == ["ready", "failed", "failed"]
    assert "already has a 'file', from one" in registry.describe()[1].reason
    assert registry.factory("sink", "file")() == "one"


def test_unknown_slots_and_hooks_are_refused():
    class Confused:
        name = "confused"

        def build(self, registry):
            registry.subscribe("on_everything", print)

    states = Registry([Provider("one", slot="sinks"), Confused()]).describe()
    assert "there is no slot 'sinks'" in states[0].reason
    assert "there is no hook 'on_everything'" in states[1].reason


def test_registering_after_build_is_refused():
    with pytest.raises(UserError, match="build"):
        Registry().register("sink", "late", object)


def test_packages_add_plugins_through_entry_points_unless_listed_already(monkeypatch):
    module = types.ModuleType("some_package")
    module.Extra = type("Extra", (), {"name": "extra", "build": lambda self, registry: None})
    module.Listed = type("Listed", (), {"name": "listed", "build": lambda self, registry: None})
    monkeypatch.setitem(sys.modules, "some_package", module)
    group = plugins_module.ENTRY_POINT_GROUP
    points = [
        metadata.EntryPoint("listed", "some_package:Listed", group),
        metadata.EntryPoint("missing", "some_package:Nothing", group),
        metadata.EntryPoint("extra", "some_package:Extra", group),
    ]
    monkeypatch.setattr(plugins_module.metadata, "entry_points", lambda group: points)
    registry = Registry(["some_package:Listed"], entry_points=True)
    found = [(state.name, state.state) for state in registry.describe()]
    assert found == [("listed", "ready"), ("extra", "ready"), ("missing", "failed")]


# ------------------------------------------------------------------------------------ in a runtime
def test_hooks_are_called_in_the_order_of_a_session(small_runtime):
    listener = Listener()
    runtime = small_runtime(listener)
    session = runtime.open()
    session.begin_shot("a fox", 2)
    list(session.chunks())
    session.cut("a crab", chunks=2)
    session.next_chunk()
    session.close()
    runtime.close()
    runtime.close()
    assert listener.calls == [
        "on_session_open",
        "on_shot_begin", "on_chunk", "on_chunk", "on_shot_end",
        "on_shot_begin", "on_chunk", "on_shot_end",
        "on_session_close", "on_shutdown",
    ]  # fmt: skip


def test_a_hook_that_raises_is_logged_with_its_plugin_and_the_film_goes_on(small_runtime, caplog):
    class Faulty:
        name = "faulty"

        def build(self, registry):
            for hook in HOOKS:
                registry.subscribe(hook, self.fail)

        def fail(self, *arguments):
            raise ValueError("on purpose")

    listener = Listener()
    session = small_runtime(Faulty(), listener).open()
    session.begin_shot("a fox", 2)
    assert len(list(session.chunks())) == 2
    assert "plugin faulty raised in on_chunk" in caplog.text
    assert listener.calls.count("on_chunk") == 2


def test_a_hook_may_cut_and_end_shots(small_runtime):
    class Director:
        name = "director"

        def build(self, registry):
            registry.subscribe("on_chunk", self.chunk)
            registry.subscribe("on_shot_begin", self.begin)

        def chunk(self, session, chunk):
            if (chunk.shot, chunk.chunk) == (0, 1):
                session.cut("a crab", chunks=3)

        def begin(self, session, shot, caption):
            if shot == 1:
                session.cut("a whale", chunks=1)
            if shot == 3:
                session.end_shot()

    session = small_runtime(Director()).open()
    session.begin_shot("a fox", 5)
    assert [(c.shot, c.caption) for c in session.chunks()] == [
        (0, "a fox"), (0, "a fox"), (1, "a crab"), (2, "a whale"),
    ]  # fmt: skip
    session.begin_shot("nothing", 5)
    assert session.next_chunk() is None
    assert len(session.snapshot()) > 0


def test_an_event_reaches_the_plugins_and_one_of_them_cuts(small_runtime):
    class Director:
        name = "director"

        def build(self, registry):
            registry.subscribe("on_event", lambda session, event: session.cut(f"the {event} opens", chunks=1))

    session = small_runtime(Director()).open()
    session.tell("door")
    assert [c.caption for c in session.chunks()] == ["the door opens"]


def test_a_decoder_of_another_plugin_takes_the_place_of_the_presets_own(small_runtime):
    class Grey:
        """Decodes everything to mid grey, nine and twelve frames."""

        name = "grey"

        def build(self, registry):
            registry.register("decoder", "grey", lambda request: self)

        def new_stream(self, batch):
            return [1]

        def decode_chunk(self, z, stream):
            return torch.zeros(1, 4 * z.shape[1] - 3 * (stream.pop() if stream else 0), 3, 64, 96)

        def encode_frames(self, frames):
            return frames.new_zeros(len(frames), 4, 4, 6)

    session = small_runtime(Grey(), decoder="grey").open()
    session.begin_shot("a fox", 2)
    frames = [chunk.frames for chunk in session.chunks()]
    assert [len(f) for f in frames] == [9, 12]
    assert {int(f.min()) for f in frames} == {128}
    with pytest.raises(UserError, match="other weights"):
        small_runtime().restore(session.snapshot())


def test_our_own_plugins_load_and_describe_themselves():
    states = {state.name: state for state in assemble_registry().describe()}
    core = (("engine", "eager"), ("engine", "graph"), ("attention", "sdpa"), ("ops", "torch"))
    assert states["core"].provides == core
    assert ("model", "tiny") in states["tiny"].provides


@pytest.mark.parametrize(
    ("preset", "options", "reason"),
    [
        ("huge", {}, r"no model 'huge'; there is .*tiny"),
        ("tiny", {"engine": "steam"}, r"no engine 'steam'; there is .*eager"),
        ("tiny", {"attention": "none"}, r"no attention 'none'; there is .*sdpa"),
        ("tiny", {"device": "toaster"}, "no device 'toaster'"),
        ("tiny", {"device": "meta"}, "not supported"),
        ("tiny", {"colour": 3}, "unknown runtime option"),
        ("tiny", {"weights": "/nowhere/at/all"}, "no folder of weights"),
        ("tiny", {"required": ["magic"]}, "'magic' is required but not there"),
        ("tiny", {"weights": "random", "model_options": {"size": 3}}, "takes no options"),
    ],
)
def test_a_runtime_that_cannot_be_put_together_says_why(preset, options, reason):
    with pytest.raises(UserError, match=reason):
        Runtime(preset, **options)


def test_a_closed_runtime_opens_nothing(small_runtime):
    runtime = small_runtime()
    session = runtime.open()
    runtime.close()
    with pytest.raises(UserError, match="closed"):
        session.next_chunk()
    with pytest.raises(UserError, match="closed"):
        runtime.open()

"""A failing engine: an error, unless the user named another one to take its place; and then everybody can see it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.model.worker import make_studio
from shotstream.runtime.bench.measure import setting_of
from shotstream.runtime.cli.app import make_app
from shotstream.runtime.cli.engine_options import parsed_options
from shotstream.runtime.errors import UserError
from shotstream.runtime.film import film_info
from shotstream.runtime.plugins import EngineRequest, Registry
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]


class Broken:
    """The engine `broken`, which says something and cannot start."""

    name = "broken"

    def build(self, registry: Registry) -> None:
        registry.register("engine", "broken", self.make)

    def make(self, request: EngineRequest) -> Any:
        request.say("looking for the thing")
        raise UserError("the thing is not installed; install it")


def test_without_a_fallback_it_is_an_error(small_runtime: MakeRuntime) -> None:
    with pytest.raises(UserError, match="the thing is not installed; install it"):
        small_runtime(Broken(), engine="broken")


def test_the_fallback_runs_and_everybody_can_see_it(
    small_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    with caplog.at_level(logging.WARNING):
        runtime = small_runtime(
            Broken(), engine="broken", engine_options={"x": 1}, engine_fallback="eager", say=said.append
        )
    assert said == ["looking for the thing"]
    assert "the thing is not installed; install it; the engine 'eager' runs in place of 'broken'" in caplog.text
    sentence = "eager (instead of broken: the thing is not installed; install it)"
    setting = setting_of(runtime, shots=1, chunks=1, warm_up=0)
    assert (setting.engine, setting.engine_options) == (sentence, "")
    session = runtime.open("A forest. ")
    assert film_info(runtime, session).versions["engine"] == sentence
    session.begin_shot("a fox waits", 1)
    assert session.next_chunk() is not None


def test_a_working_engine_has_no_note(small_runtime: MakeRuntime) -> None:
    assert small_runtime(engine="graph", engine_fallback="eager").engine_choice.sentence == "graph"


def test_other_errors_are_not_hidden(small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Broken, request: EngineRequest) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Broken, "make", crash)
    with pytest.raises(ZeroDivisionError):
        small_runtime(Broken(), engine="broken", engine_fallback="eager")


@pytest.mark.parametrize(
    ("fallback", "message"), [("nothing", "there is no engine 'nothing'"), ("broken", "cannot stand in for itself")]
)
def test_a_fallback_that_is_none_is_refused(small_runtime: MakeRuntime, fallback: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_runtime(Broken(), engine="broken", engine_fallback=fallback)


def test_options_are_read_as_yaml() -> None:
    assert parsed_options(["a=1", "b=true", "c=x/y", "d=null"]) == {"a": 1, "b": True, "c": "x/y", "d": None}


@pytest.mark.parametrize("text", ["a", "=1", "a b=1", "a=["])
def test_what_is_no_option_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no option of an engine; write it as NAME=VALUE"):
        parsed_options([text])


@pytest.mark.parametrize("command", ["play", "demo", "bench", "serve"])
def test_commands_have_the_options(command: str) -> None:
    app = make_app()
    if command == "serve":
        from shotstream.runtime.cli.app import mount_rooms

        mount_rooms(app)
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert "--engine-option" in shown
    assert "--engine-fallback" in shown


def test_the_bridge_hands_them_to_its_model_process() -> None:
    options = WorkerOptions("tiny", weights="random", engine="graph", engine_options={"capture": False})
    assert msgspec.json.decode(msgspec.json.encode(options), type=WorkerOptions) == options
    said: list[tuple[str, str]] = []
    facts = make_studio(options).prepare(lambda state, text: said.append((state, text)))
    assert "graph" in facts.description
    with pytest.raises(UserError, match="has no option speed"):
        make_studio(replace(options, engine_options={"speed": 9})).prepare(lambda state, text: None)

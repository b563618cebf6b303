"""The command line: what it answers to, and the one sentence that every mistake gets."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Shell

from shotstream.runtime.cli.choices import ask, someone_to_ask
from shotstream.runtime.cli.interrupts import Interrupts
from shotstream.runtime.story import parse_yaml


def refused(answer: tuple[int, str, str]) -> str:
    """The sentence of a refusal: exit code 2, one line on standard error that begins with `error:`, no traceback."""
    code, _, err = answer
    assert code == 2
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


STORIES = {
    "unknown_key.yaml": ("global_caption: a\nfoo: b\nshots: [{caption: c}]", "unknown key 'foo'"),
    "empty_caption.yaml": ("global_caption: a\nshots: [{caption: ''}]", "caption is empty"),
    "no_shots.yaml": ("global_caption: a\nshots: []", "0 shots"),
    "broken.yaml": ("global_caption: [a\nshots", "not valid yaml"),
    "chunks.yaml": ("global_caption: a\nshots: [{caption: c, chunks: 0}]", "from 1 to 100"),
    "no_question.yaml": ("global_caption: a\nshots: [{choice: '', options: {}}]", "line 2: choice is empty"),
    "long_branch.yaml": (
        "global_caption: a\nshots:\n- choice: b\n  options:\n    c: {label: l, shots: [{caption: d}]}\n"
        "    e: {label: l, shots: [{caption: " + "word " * 60 + "}]}",
        "line 6: the caption of this shot has 6",
    ),
    "one_line.txt": ("only a global caption\n", "no shots"),
    "empty.txt": ("", "is empty"),
    "900_words.txt": ("a\n" + "word " * 900, "reads at most 48"),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_story_that_is_wrong_gets_one_sentence(shell: Shell, tmp_path: Path, name: str) -> None:
    text, says = STORIES[name]
    (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    assert says in refused(shell("play", str(tmp_path / name), "--weights", "random", "--out", str(out)))
    assert not list(out.glob("*.mp4"))


def test_wrong_uses_of_play_get_one_sentence(shell: Shell, tmp_path: Path) -> None:
    story = tmp_path / "s.txt"
    story.write_text("a cat\nit waves\n")
    out = ("--out", str(tmp_path / "out"))
    (tmp_path / "file").touch()
    assert "no story file" in refused(shell("play", str(tmp_path / "missing.yaml"), *out))
    assert "no model 'huge'" in refused(shell("play", str(story), "--model", "huge", *out))
    assert "no engine 'warp'" in refused(shell("play", str(story), "--engine", "warp", "--weights", "random", *out))
    assert "device 'tpu'" in refused(shell("play", str(story), "--device", "tpu", *out))
    assert "cannot write to the folder" in refused(shell("play", str(story), "--out", str(tmp_path / "file" / "x")))
    assert "--seed" in refused(shell("play", str(story), "--seed", "x", *out))
    assert "--chunks" in refused(shell("play", str(story), "--chunks", "0", *out))
    assert "No such option" in refused(shell("play", str(story), "--frob", *out))
    assert "STORY" in refused(shell("play"))


CHOICE = """\
global_caption: A story about a red cat.
shots:
- choice: Where to?
  options:
    sea: {label: to the sea, shots: [{caption: it swims}]}
    city: {label: to the city, shots: [{caption: it walks}]}
    cave: {label: into the cave, shots: [{caption: it hides}, {caption: it waits}]}
"""


def test_choosing_what_is_not_there_gets_one_sentence_that_names_what_is(shell: Shell, tmp_path: Path) -> None:
    story, plain = tmp_path / "s.yaml", tmp_path / "s.txt"
    story.write_text(CHOICE)
    plain.write_text("a cat\nit waves\n")
    out = ("--out", str(tmp_path / "out"))
    sentence = refused(shell("play", str(story), "--choose", "moon", *out))
    assert "s.yaml, line 3: there is no option 'moon'" in sentence
    assert '"Where to?" has sea, city and cave' in sentence
    assert "--choose was given 2 times" in refused(
        shell("play", str(story), "--choose", "sea", "--choose", "sea", *out)
    )
    assert "has none" in refused(shell("play", str(plain), "--choose", "sea", *out))
    assert "has beach and city" in refused(shell("demo", "--choose", "moon", *out))
    assert not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "taken"), [("city\n", "city"), ("3\n", "cave"), ("\n", "sea"), ("", "sea"), ("moon\ncity\n", "city")]
)
def test_a_question_is_asked_until_an_option_is_named_and_enter_takes_the_first(
    monkeypatch: pytest.MonkeyPatch, typed: str, taken: str
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stdout", shown)
    assert someone_to_ask()
    assert ask(parse_yaml(CHOICE, "s.yaml").choices[0]).name == taken
    assert all(text in shown.getvalue() for text in ("Where to?", "sea: to the sea", "cave: into the cave"))


@pytest.mark.parametrize("piped", ["stdin", "stdout"])
def test_nobody_is_asked_through_a_pipe(monkeypatch: pytest.MonkeyPatch, piped: str) -> None:
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, io.StringIO() if name == piped else Terminal())
    assert not someone_to_ask()


def test_weights_that_are_wrong_get_one_sentence(shell: Shell, tmp_path: Path) -> None:
    story = tmp_path / "s.txt"
    story.write_text("a cat\nit waves\n")
    weights = tmp_path / "weights"
    for data in (None, b"", b"\x10\0\0\0\0\0\0\0{", b"not a safetensors file, whatever its name says"):
        if data is not None:
            weights.mkdir(exist_ok=True)
            for name in ("dit", "vae", "text"):
                (weights / f"{name}.safetensors").write_bytes(data)
        answer = shell("play", str(story), "--weights", str(weights), "--out", str(tmp_path / "out"))
        assert str(weights) in refused(answer)


def test_an_unknown_command_names_the_way_to_the_list(shell: Shell) -> None:
    assert "No such command 'frob'" in refused(shell("frob"))


def test_help_lists_the_commands(shell: Shell) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    for command in ("play", "demo", "doctor", "plugins", "parity", "fetch", "convert", "bench"):
        assert f"\n  {command} " in out


def test_the_version_is_told(shell: Shell) -> None:
    code, out, _ = shell("--version")
    assert (code, out.split()[0]) == (0, "shotstream")


def test_doctor_says_what_works_and_why_the_rest_does_not(shell: Shell) -> None:
    code, out, _ = shell("doctor", "--json")
    assert code == 0
    checks = {(check["group"], check["name"]): check for check in json.loads(out)}
    assert checks["engine", "eager"]["ok"] is True
    assert checks["engine", "tensorrt"]["ok"] is False
    assert "the package tensorrt is not installed" in checks["engine", "tensorrt"]["value"]
    assert checks["packages", "torch"]["value"].startswith("2.")
    assert any(group == "embedded weights" for group, _ in checks)
    code, out, _ = shell("doctor")
    assert code == 0
    assert "eager" in out


def test_plugins_lists_slots_names_origin_and_state(shell: Shell) -> None:
    code, out, _ = shell("plugins", "--json")
    assert code == 0
    report = json.loads(out)
    assert "tiny" in report["slots"]["model"]
    assert set(report["slots"]["sink"]) == {"mp4", "contact-sheet", "story-json", "window", "terminal"}
    assert {"name", "origin", "state", "reason", "provides"} <= set(report["plugins"][0])
    assert shell("plugins")[0] == 0


def test_fetch_convert_and_parity_refuse_what_they_cannot_use(shell: Shell, tmp_path: Path) -> None:
    assert "nothing to fetch for 'huge'" in refused(shell("fetch", "huge"))
    (tmp_path / "x.pt").write_bytes(b"no vectors")
    assert "x.pt" in refused(shell("parity", str(tmp_path / "x.pt")))
    assert "x.pt" in refused(shell("convert", str(tmp_path / "x.pt"), str(tmp_path / "y"), "--to", "wan"))
    assert "unknown layout 'gguf'" in refused(shell("convert", "x.pt", "y", "--to", "gguf"))
    assert "missing.pt" in refused(shell("parity", str(tmp_path / "missing.pt")))


def test_an_unexpected_failure_is_one_sentence_with_the_place_of_the_details(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shotstream.runtime.story as story

    def broken(path: Path) -> None:
        raise RuntimeError("a bug\nover two lines")

    monkeypatch.setattr(story, "load_story", broken)
    code, _, err = shell("play", "x.txt")
    assert code == 1
    assert err.count("\n") == 1
    assert "unexpected RuntimeError: a bug over two lines" in err
    log = Path(err.rsplit("details are in ", 1)[1].rstrip(")\n"))
    assert "Traceback" in log.read_text()
    log.unlink()
    assert "Traceback" in shell("play", "x.txt", "--debug")[2]


def test_an_interruption_waits_for_the_end_of_a_write() -> None:
    reached = []
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.shield():  # noqa: PT012 - the order inside is the point
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("written")
        with interrupts.shield():  # a second one, while files are being finished, is not raised again
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.exit_code == 130
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.exit_code == 143
    assert reached == ["written"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_one_sentence_and_tells_the_shell(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    import shotstream.runtime.story as story

    monkeypatch.setattr(story, "load_story", lambda path: signal.raise_signal(number))
    answer, _, err = shell("play", "x.txt")
    assert (answer, err) == (code, "stopped\n")


def test_help_is_quick_because_torch_is_not_loaded_for_it() -> None:
    code = (
        "import sys; from shotstream.runtime.cli import run; run(['play', '--help']);"
        "sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0

"""The C++ client and its C interface: built here, checked with the vectors, run against a scripted server."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from scripted_server import HEIGHT, WIDTH, WINDOW, ScriptedServer, SilentServer

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol import schema
from shotstream.bridge.protocol.limits import Limits

SOURCE = Path(__file__).resolve().parents[2] / "bridge" / "cpp"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-I", str(SOURCE / "include")]
CXX = ["-std=c++17", "-O0", *WARNINGS]


def missing() -> str:
    """What is not installed here, or an empty text."""
    gone = [tool for tool in ("g++", "gcc") if not shutil.which(tool)]
    if not gone:
        for header in ("zmq.h", "msgpack.hpp"):
            code = f"#define MSGPACK_NO_BOOST\n#include <{header}>\n"
            probe = ["g++", "-std=c++17", "-E", "-x", "c++", "-", "-o", os.devnull]
            if subprocess.run(probe, input=code, text=True, capture_output=True, check=False).returncode:
                gone.append(header)
    return " and ".join(gone)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if gone := missing():
        pytest.skip(f"{gone} missing; on Debian and Ubuntu: apt-get install g++ libzmq3-dev libmsgpack-cxx-dev")
    out = tmp_path_factory.mktemp("cpp")
    c = ["gcc", "-std=c89", *WARNINGS, f"-L{out}", f"-Wl,-rpath,{out}"]
    library = ["g++", *CXX, "-fPIC", "-shared", "-fvisibility=hidden", "src/shotstream_c.cpp", "-o"]
    for command in (
        [*library, str(out / "libshotstream.so"), "-lzmq"],
        ["g++", *CXX, "tests/vectors.cpp", "-o", str(out / "vectors")],
        ["g++", *CXX, "tests/queue.cpp", "-o", str(out / "queue"), "-lzmq"],
        ["g++", *CXX, "examples/watch.cpp", "-o", str(out / "watch"), "-lzmq"],
        [*c, "examples/watch.c", "-o", str(out / "watch_c"), "-lshotstream"],
        [*c, "tests/c_abi.c", "-o", str(out / "c_abi"), "-lshotstream"],
    ):
        done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(params=["watch", "watch_c"])
def program(built: Path, request: pytest.FixtureRequest) -> Path:
    return built / request.param


def watch(program: Path, endpoint: str, *args: object) -> tuple[int, dict[str, Any]]:
    command = [str(program), endpoint, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}


def read(built: Path, lines: list[str]) -> list[str]:
    text = "".join(line + "\n" for line in lines)
    return subprocess.run(
        [built / "vectors"], input=text, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def spec(name: str) -> Any:
    return json.loads((schema.SPEC / name).read_text(encoding="utf-8"))


# --- vectors -------------------------------------------------------------------------------------------------------
def test_every_vector_is_read_and_written_again_as_the_same_bytes(built: Path) -> None:
    vectors = spec("vectors.json")
    cases = [(v, v[form], v["header"]) for v in vectors["vectors"] for form in ("header", "also") if form in v]
    cases += [(v, v["header"], v["canonical"]) for v in vectors["lenient"]]
    for (vector, _, canonical), line in zip(cases, read(built, [f"{v['from']} {h}" for v, h, _ in cases]), strict=True):
        word, again, text = line.split(" ", 2)
        assert (word, again) == ("ok", canonical), vector["name"]
        assert json.loads(text) == vector["json"], vector["name"]


# What only a server checks: numbers and lengths out of bounds, words that are not among the known ones.
BOUNDS = {
    "id_zero", "session_too_long", "kind_too_long", "urgency_unknown", "param_key_too_long", "params_too_many",
    "tags_too_many", "text_too_long", "role_unknown", "one_choice", "five_choices", "quality_zero", "quality_101",
    "encoding_unknown", "ttl_negative", "ttl_not_a_number", "nine_in_the_cast",
}  # fmt: skip


def test_hostile_headers_are_refused(built: Path) -> None:
    cases = [case for case in spec("hostile.json")["hostile"] if case["code"] in ("bad_message", "unknown_type")]
    for case, line in zip(cases, read(built, [f"client {case['parts'][1]}" for case in cases]), strict=True):
        word = "ok" if case["name"] in BOUNDS else "unknown" if case["code"] == "unknown_type" else "error"
        assert line.split(" ")[0] == word, (case["name"], line)


def test_the_queue_paces_skips_flushes_and_grants(built: Path) -> None:
    done = subprocess.run([built / "queue"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_c_interface_refuses_nonsense_and_reads_older_structs(built: Path) -> None:
    done = subprocess.run([built / "c_abi"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- against a server ----------------------------------------------------------------------------------------------
def test_a_film_is_watched_to_its_end(program: Path, tmp_path: Path) -> None:
    picture = tmp_path / "last.ppm"
    with ScriptedServer(frames=60) as server:
        code, told = watch(program, server.endpoint, 60, 20, picture)
    assert code == 0, told
    assert (told["received"], told["presented"] + told["dropped"]) == (60, 60)
    assert (told["gaps"], told["holes"], told["answers"], told["error"]) == (0, 0, 2, "")
    assert told["last_bytes"] == WIDTH * HEIGHT * 3
    assert picture.read_bytes() == b"P6\n8 4\n255\n" + bytes([59, 128, 255]) * (WIDTH * HEIGHT)

    assert isinstance(server.seen[0], m.Hello)
    assert isinstance(server.seen[1], m.OpenSession)
    assert [request.id for request in server.got(m.Request)] == [1, 2, 3]
    assert server.got(m.Event)[0].params["speed"] == 1.5
    credits = server.got(m.Credit)
    assert [one.upto - one.played for one in credits] == [WINDOW] * len(credits)
    assert all(a.upto < b.upto for a, b in itertools.pairwise(credits))
    assert credits[-1].upto == 60 + WINDOW
    assert server.got(m.Goodbye), "a client that ends says so"


def test_a_request_without_an_answer_is_asked_again_under_the_same_number(program: Path) -> None:
    class Forgetful(ScriptedServer):
        def handle(self, message: m.FromClient) -> None:
            if not (isinstance(message, m.Prompt) and len(self.got(m.Prompt)) == 1):
                super().handle(message)

    with Forgetful(frames=200) as server:
        code, told = watch(program, server.endpoint, 180, 20)
    assert (code, told["answers"]) == (0, 2), told
    assert [prompt.id for prompt in server.got(m.Prompt)] == [3, 3]


def test_a_film_opens_when_the_model_is_loaded(program: Path) -> None:
    class Loading(ScriptedServer):
        def handle(self, message: m.FromClient) -> None:
            if isinstance(message, m.OpenSession) and len(self.got(m.OpenSession)) == 1:
                self.send(m.Error(code="model_loading", message="reads weights", retryable=True, re=message.id))
            else:
                super().handle(message)

    with Loading(frames=24) as server:
        code, told = watch(program, server.endpoint, 24, 20)
    assert (code, told["received"], told["answers"]) == (0, 24, 2), told
    first, second = server.got(m.OpenSession)
    assert first.nonce == second.nonce
    assert first.id < second.id


def test_a_lost_connection_is_resumed_without_a_hole(program: Path) -> None:
    class Dropping(ScriptedServer):
        dropped = False

        def between_frames(self) -> None:
            if self.next_seq == 30 and not self.dropped:
                self.dropped = True
                self.send(*self.frame(30))  # may or may not arrive
                self.next_seq = 31
                self.drop_connection()

    with Dropping(frames=90) as server:
        code, told = watch(program, server.endpoint, 90, 30)
    assert code == 0, told
    assert (told["received"], told["holes"], told["gaps"]) == (90, 0, 0)
    (resume,) = server.got(m.Resume)
    assert (resume.session, resume.token) == ("s1", "t1")
    assert 24 <= resume.next_seq <= 31
    assert len(server.got(m.Hello)) == 2
    assert len(server.got(m.OpenSession)) == 1


def test_a_server_that_forgot_the_session_is_named_as_the_reason(program: Path) -> None:
    class Restarted(ScriptedServer):
        def between_frames(self) -> None:
            if self.next_seq == 12:
                self.drop_connection()

        def handle(self, message: m.FromClient) -> None:
            if isinstance(message, m.Resume):
                self.send(m.Error(code="no_session", message="no session s1", re=message.id, session=message.session))
            else:
                super().handle(message)

    with Restarted() as server:
        code, told = watch(program, server.endpoint, 60, 20)
    assert code == 0, "no frame is missing of those that were announced"
    assert told["closed"].startswith("no_session: no session s1 (the server was started again")


def test_a_flush_drops_what_is_queued_and_shows_the_new_shot_at_once(program: Path) -> None:
    class Flushing(ScriptedServer):
        def between_frames(self) -> None:
            if self.next_seq == 30 and self.epoch == 0:
                self.epoch, self.shot = 1, 1
                self.send(
                    m.ShotBegin(session="s1", shot=1, epoch=1, seq=30, global_caption="", caption="now", flush=True)
                )

        def frame(self, seq: int) -> tuple[m.Frame, bytes]:
            header, payload = super().frame(seq)
            # 10 frames a second: the queue is full when the flush comes
            return msgspec.structs.replace(header, pts=seq * 9000), payload

    with Flushing(frames=42) as server:
        code, told = watch(program, server.endpoint, 42, 20)
    assert code == 0, told
    assert told["received"] == 42
    assert told["dropped"] >= 10, "frames of the old epoch were queued and are not shown"
    assert told["presented"] + told["dropped"] == 42


def test_a_gap_is_counted_and_gives_exit_code_1(program: Path) -> None:
    class Late(ScriptedServer):
        def between_frames(self) -> None:
            if self.next_seq == 12:
                self.send(m.Gap(session="s1", first=12, until=18, reason="late"))
                self.next_seq = 18

    with Late(frames=60) as server:
        code, told = watch(program, server.endpoint, 60, 20)
    assert (code, told["gaps"], told["holes"], told["received"]) == (1, 6, 0, 54), told


def test_a_frame_that_never_came_gives_exit_code_1(program: Path) -> None:
    class Losing(ScriptedServer):
        def between_frames(self) -> None:
            self.next_seq += self.next_seq == 20

    with Losing(frames=60) as server:
        code, told = watch(program, server.endpoint, 59, 20)
    assert (code, told["gaps"], told["holes"]) == (1, 0, 1), told


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that accepts connections at the level of TCP only, and never reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def test_poll_does_not_wait_for_a_server_that_never_answers(program: Path, nobody: str) -> None:
    with SilentServer() as silent:
        for endpoint in (silent.endpoint, nobody, "tcp://127.0.0.1:9"):
            longest = []
            for _ in range(3):  # on a busy machine any process may be kept waiting
                code, told = watch(program, endpoint, 10, 1.5)
                assert (code, told["received"]) == (2, 0)
                longest.append(told["longest_poll_ms"])
                if longest[-1] < 50:
                    break
            assert min(longest) < 50, endpoint
    assert len(silent.got(m.Hello)) >= 1


def test_another_protocol_version_ends_the_client_and_names_both(program: Path) -> None:
    class Newer(ScriptedServer):
        def handle(self, message: m.FromClient) -> None:
            self.send(
                m.Welcome(
                    proto=(2, 1), server="", enc=[], models=[], limits=Limits(), features=[], directors=[], clock_us=0
                )
            )

    with Newer() as server:
        code, told = watch(program, server.endpoint, 10, 10)
    assert code == 2
    assert told["error"].startswith("version: the server speaks protocol 2.1, this client 1.0")
    assert told["closed"] == told["error"]


def test_a_hostile_server_is_survived(program: Path) -> None:
    hostile = [case for case in spec("hostile.json")["hostile"] if case["parts"]]
    lies = ({"w": 2**53, "h": 2**53}, {"stride": 2**53}, {"stride": 1}, {"h": 0}, {"enc": "none2"}, {"seq": 2**53})

    class Hostile(ScriptedServer):
        def between_frames(self) -> None:
            for case in hostile[self.next_seq % 7 :: 7]:
                self.send_parts(*(bytes.fromhex(part) for part in case["parts"]))
            header, payload = self.frame(self.next_seq)
            self.send(header, payload[:-1])
            self.send(header)
            for lie in lies:
                self.send(msgspec.structs.replace(header, **lie), b"")
            self.send(msgspec.structs.replace(self.opened(99), session="nobody asked"))

    with Hostile(frames=40) as server:
        code, told = watch(program, server.endpoint, 40, 20)
    assert (code, told["received"], told["holes"]) == (0, 40, 0), told


def test_more_frames_than_were_granted_do_not_fill_the_memory(program: Path) -> None:
    class Flood(ScriptedServer):
        def between_frames(self) -> None:
            for _ in range(300):
                header, payload = self.frame(self.next_seq)
                self.send(header, payload)
                self.next_seq += 1

    with Flood(frames=900) as server:
        _, told = watch(program, server.endpoint, 900, 3)
        server.faults.clear()
    assert told["error"] == "bad_message: the server sends more frames than it may"


@pytest.mark.skipif(not zmq.has("curve"), reason="pyzmq was built without CURVE")
def test_curve_encrypts_and_a_wrong_key_is_named(built: Path) -> None:
    keys, other = zmq.curve_keypair(), zmq.curve_keypair()
    with ScriptedServer(frames=24, curve=keys) as server:
        code, told = watch(built / "watch", server.endpoint, 24, 20, "", keys[0].decode())
        assert (code, told["received"], told["error"]) == (0, 24, ""), told
        for args in (("", other[0].decode()), ()):
            code, told = watch(built / "watch", server.endpoint, 24, 1.5, *args)
            assert code == 2
            assert told["error"].startswith("unauthorized: curve: "), told

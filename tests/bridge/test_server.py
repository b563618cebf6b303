"""The server's core in virtual time: what a client can rely on, whatever it and the model do."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import PROTO, Limits

sys.path.insert(0, str(Path(__file__).parent))
from virtual import Scribe, VirtualClient, VirtualServer


def test_a_prompt_becomes_a_shot_of_the_usual_length() -> None:
    client = VirtualClient(VirtualServer())
    request = client.ask(m.Prompt, text="a fox")
    client.watch(5)
    assert [f.seq for f in client.frames] == list(range(33))
    assert [f.index for f in client.frames[:9]] == list(range(9))
    assert client.last(m.ShotBegin).cause == request
    assert client.last(m.ShotEnd).frames == 33
    ack, applied = client.answers(request)
    assert (ack.status, applied.seq, applied.caption) == ("accepted", 0, "a fox")
    assert applied.latency_ms == pytest.approx(500, abs=20)


def test_what_belongs_together_comes_in_order() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox")
    client.ask(m.Prompt, text="a hare", at="next_shot")
    client.watch(8)
    kinds = [type(t).__name__ for t in client.told if isinstance(t, (m.ShotBegin, m.Applied, m.Frame, m.ShotEnd))]
    runs = [name for name, _ in itertools.groupby(kinds)]
    assert runs == ["ShotBegin", "Applied", "Frame", "ShotEnd"] * 2


def test_without_credit_nothing_is_made() -> None:
    client = VirtualClient(VirtualServer(), window=24)
    client.ask(m.Prompt, text="a fox", chunks=50)
    client.server.run(20)
    assert len(client.frames) == 21  # 9 + 12; another 12 would pass the 24 of the window
    assert client.server.model.busy is None


def test_a_client_that_asks_for_endless_credit_gets_a_bounded_lead() -> None:
    client = VirtualClient(VirtualServer(chunk_s=0.05))
    client.ask(m.Prompt, text="a fox", chunks=100)
    for _ in range(50):
        client.say(m.Credit(session=client.session, upto=2**50, played=0))
        client.server.run(0.2)
    assert len(client.frames) <= client.server.limits.window_max


def test_now_cuts_at_once_and_drops_what_is_queued() -> None:
    client = VirtualClient(VirtualServer(chunk_s=0.5))
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(2.2)
    before = client.server.now
    request = client.ask(m.Prompt, text="a bang", at="now")
    client.server.run(0.6)
    begin = client.last(m.ShotBegin)
    assert begin.flush
    assert begin.epoch == 1
    assert begin.caption == "a bang"
    assert begin.cause == request
    assert client.last(m.Applied).latency_ms <= 520  # the chunk in the making was given up
    assert client.server.now - before < 0.7
    assert [f.seq for f in client.frames] == list(range(len(client.frames)))


def test_next_chunk_lets_the_chunk_in_the_making_be_seen() -> None:
    client = VirtualClient(VirtualServer(chunk_s=0.5))
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.server.run(0.7)
    client.ask(m.Prompt, text="a hare", at="next_chunk")
    client.server.run(0.6)
    client.watch(2)
    assert client.last(m.ShotBegin).seq == 21
    assert not client.last(m.ShotBegin).flush


def test_of_two_shots_for_the_same_place_the_later_one_is_shown() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox")
    first = client.ask(m.Prompt, text="a hare", at="next_shot")
    second = client.ask(m.Prompt, text="an owl", at="next_shot")
    client.watch(6)
    assert [a.status for a in client.answers(first)] == ["queued", "superseded"]
    assert client.answers(second)[-1].caption == "an owl"
    assert [b.caption for b in client.all(m.ShotBegin)] == ["a fox", "an owl"]


def test_events_with_the_same_key_become_one() -> None:
    server = VirtualServer(words={"scribe": Scribe()}, default_words="scribe")
    client = VirtualClient(server)
    client.ask(m.Event, kind="Door")
    first = client.ask(m.Event, kind="Rain", coalesce="weather", at="next_shot")
    client.ask(m.Event, kind="Snow", coalesce="weather", at="next_shot")
    client.watch(6)
    assert client.answers(first)[-1].status == "superseded"
    assert [b.caption for b in client.all(m.ShotBegin)][1].endswith("Snow")


def test_the_same_request_again_is_answered_again_and_done_once() -> None:
    client = VirtualClient(VirtualServer())
    request = client.ask(m.Prompt, text="a fox")
    client.watch(3)
    said = client.answers(request)
    client.say(m.Prompt(id=request, session=client.session, text="a fox"))
    assert client.answers(request) == said + said
    client.watch(3)
    assert len(client.all(m.ShotBegin)) == 1


def test_a_forgotten_request_is_a_duplicate_and_not_done_again() -> None:
    client = VirtualClient(VirtualServer(limits=Limits(ids=4, requests_per_s=1000)))
    request = client.ask(m.Prompt, text="a fox")
    for _ in range(6):
        client.ask(m.Pause)
    client.say(m.Prompt(id=request, session=client.session, text="a fox"))
    assert client.answers(request)[-1].status == "duplicate"


def test_steer_changes_the_caption_without_a_cut() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox", chunks=6)
    client.watch(1)
    request = client.ask(m.Steer, text="a fox that sleeps")
    client.watch(3)
    applied = client.answers(request)[-1]
    assert isinstance(applied, m.Applied)
    assert applied.caption == "a fox that sleeps"
    assert applied.chunk > 0
    assert len(client.all(m.ShotBegin)) == 1


def test_steer_without_a_shot_is_refused() -> None:
    client = VirtualClient(VirtualServer())
    (answer,) = client.answers(client.ask(m.Steer, text="a fox"))
    assert answer.code == "invalid_argument"


def test_a_caption_that_the_model_cannot_read_is_refused_and_the_shot_goes_on() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox", chunks=6)
    client.watch(1)
    request = client.ask(m.Prompt, text="unreadable")
    client.watch(4)
    assert client.answers(request)[-1].code == "text_too_long"
    assert len(client.all(m.ShotBegin)) == 1
    assert len(client.frames) > 40


def test_pause_makes_nothing_and_play_goes_on() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(1)
    client.ask(m.Pause)
    client.watch(1)
    seen = len(client.frames)
    client.watch(5)
    assert len(client.frames) == seen
    client.ask(m.Play)
    client.watch(2)
    assert len(client.frames) > seen


def test_a_request_that_waits_can_be_cancelled_and_one_that_was_applied_cannot() -> None:
    client = VirtualClient(VirtualServer())
    first = client.ask(m.Prompt, text="a fox")
    waiting = client.ask(m.Prompt, text="a hare", at="next_shot")
    client.ask(m.Cancel, ref=waiting)
    client.watch(6)
    assert client.answers(waiting)[-1].code == "cancelled"
    assert client.answers(client.ask(m.Cancel, ref=first))[-1].code == "invalid_argument"
    assert len(client.all(m.ShotBegin)) == 1


def test_a_prepared_choice_is_answered_from_memory() -> None:
    client = VirtualClient(VirtualServer(chunk_s=0.3))
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(2)
    options = [m.Option(key="left", caption="go left"), m.Option(key="right", caption="go right")]
    choice = client.ask(m.Choices, options=options)
    client.watch(4)
    assert {r.key for r in client.all(m.ChoiceReady)} == {"left", "right"}
    at = client.server.now
    request = client.ask(m.Commit, choices=choice, key="right")
    assert client.server.now == at  # no time has passed
    begin = client.last(m.ShotBegin)
    assert (begin.caption, begin.flush, begin.cause) == ("go right", True, request)
    assert client.frames[-1].speculative
    client.watch(3)
    assert client.frames[-1].seq == len(client.frames) - 1
    assert len(client.server.model.films) == 1  # the other ways are closed


def test_a_choice_that_nobody_makes_makes_itself() -> None:
    client = VirtualClient(VirtualServer(chunk_s=0.1))
    client.ask(m.Prompt, text="a fox", chunks=50)
    options = [m.Option(key="left", caption="go left"), m.Option(key="right", caption="go right")]
    client.ask(m.Choices, options=options, deadline_ms=2000, default="left")
    client.watch(3)
    assert client.last(m.ShotBegin).caption == "go left"


def test_a_choice_committed_before_anything_is_ready_is_a_cut() -> None:
    client = VirtualClient(VirtualServer(chunk_s=0.5))
    client.ask(m.Prompt, text="a fox", chunks=50)
    client.server.run(0.1)
    options = [m.Option(key="left", caption="go left"), m.Option(key="right", caption="go right")]
    choice = client.ask(m.Choices, options=options)
    client.ask(m.Commit, choices=choice, key="right")
    client.watch(2)
    assert client.last(m.ShotBegin).caption == "go right"


def test_a_lost_client_comes_back_without_a_hole() -> None:
    server = VirtualServer()
    client = VirtualClient(server)
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(2)
    seen = client.frames[: len(client.frames) - 5]
    server.hub.lost(b"a", server.now)
    server.run(3)
    server.say(b"b", m.Hello(proto=PROTO))
    server.say(b"b", m.Resume(id=1, session=client.session, token=client.opened.token, next_seq=len(seen)))
    told = server.told[b"b"]
    again = [f for f in told if isinstance(f, m.Frame)]
    assert [f.seq for f in again[:5]] == [len(seen) + i for i in range(5)]
    assert all(f.replay for f in again[:5])
    assert not any(isinstance(t, m.Gap) for t in told)
    server.say(b"b", m.Credit(session=client.session, upto=len(seen) + 40, played=len(seen) + 5))
    server.run(2)
    seqs = [f.seq for f in server.told[b"b"] if isinstance(f, m.Frame)]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert len(seqs) > 10


def test_frames_that_are_not_kept_any_more_are_a_gap() -> None:
    server = VirtualServer(chunk_s=0.1)
    client = VirtualClient(server)
    client.ask(m.Prompt, text="a fox", chunks=50)
    client.watch(8)
    assert len(client.frames) > 60
    server.hub.lost(b"a", server.now)
    server.say(b"b", m.Hello(proto=PROTO))
    server.say(b"b", m.Resume(id=1, session=client.session, token=client.opened.token, next_seq=0))
    (gap,) = [t for t in server.told[b"b"] if isinstance(t, m.Gap)]
    first = next(f.seq for f in server.told[b"b"] if isinstance(f, m.Frame))
    assert (gap.first, gap.until) == (0, first)


def test_a_wrong_token_opens_nothing() -> None:
    server = VirtualServer()
    client = VirtualClient(server)
    server.say(b"b", m.Hello(proto=PROTO))
    server.say(b"b", m.Resume(id=1, session=client.session, token="guess", next_seq=0))
    assert server.told[b"b"][-1].code == "bad_token"
    assert server.hub.films.sessions[client.session].owner == b"a"


def test_of_two_clients_with_the_token_the_later_one_has_the_session() -> None:
    server = VirtualServer()
    client = VirtualClient(server)
    server.say(b"b", m.Hello(proto=PROTO))
    server.say(b"b", m.Resume(id=1, session=client.session, token=client.opened.token))
    assert client.told[-1].code == "not_owner"
    refused = client.ask(m.Prompt, text="a fox")
    assert client.answers(refused)[-1].code == "not_owner"


def test_a_session_that_nobody_comes_back_to_is_closed_and_everything_is_free() -> None:
    server = VirtualServer()
    client = VirtualClient(server, resume_ttl_s=5.0)
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(2)
    server.hub.lost(b"a", server.now)
    server.run(6)
    assert not server.hub.films.sessions
    assert not server.model.films
    slots = server.hub.films.slots
    assert slots.free == server.hub.films.slots_for(server.hub.films.facts)


def test_a_silent_connection_is_lost_after_its_lease() -> None:
    server = VirtualServer()
    client = VirtualClient(server)
    server.run(11, step=0.5)
    assert server.hub.films.sessions[client.session].owner is None


def test_a_crashed_model_goes_on_from_the_last_boundary() -> None:
    server = VirtualServer()
    client = VirtualClient(server)
    client.ask(m.Prompt, text="a fox")
    client.watch(3)
    client.ask(m.Prompt, text="a hare", chunks=10)
    client.watch(1.2)
    server.crash()
    client.watch(3)
    assert client.last(m.Error).code == "model_failed"
    begins = client.all(m.ShotBegin)
    assert [b.caption for b in begins] == ["a fox", "a hare", "a hare"]
    assert begins[-1].flush
    assert server.model.opened[-1].saved == b"1"  # the film as it was after the fox
    assert [f.seq for f in client.frames] == list(range(len(client.frames)))


def test_snapshot_restore_and_fork() -> None:
    server = VirtualServer()
    client = VirtualClient(server)
    client.ask(m.Prompt, text="a fox")
    client.watch(3)
    client.ask(m.Snapshot, name="fox")
    assert client.last(m.SnapshotMade).shot == 1
    client.ask(m.Prompt, text="a hare")
    client.watch(1)
    client.ask(m.Restore, snap="fox")
    assert client.last(m.Restored).epoch == 1
    assert server.model.opened[-1].saved == b"1"
    client.ask(m.Prompt, text="an owl")
    client.watch(3)
    assert client.last(m.ShotBegin).flush
    client.ask(m.Fork, snap="fox", name="twin")
    assert client.last(m.Forked).fork == "twin"
    assert client.last(m.SessionOpened).session == "twin"
    missing = client.ask(m.Restore, snap="nowhere")
    assert client.answers(missing)[-1].code == "snapshot_missing"


def test_a_snapshot_in_the_middle_of_a_shot_waits_for_its_end() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox")
    client.watch(1)
    request = client.ask(m.Snapshot)
    assert [a.status for a in client.answers(request)] == ["queued"]
    client.watch(4)
    assert isinstance(client.answers(request)[-1], m.SnapshotMade)


def test_sessions_share_the_model_by_who_runs_dry_first() -> None:
    server = VirtualServer(chunk_s=0.25)
    clients = [VirtualClient(server, bytes([97 + i])) for i in range(2)]
    for client in clients:
        client.ask(m.Prompt, text="a fox", chunks=100)
    shown = [0, 0]
    for tick in range(16 * 20):
        server.run(1 / 16)
        for i, client in enumerate(clients):
            shown[i] = min(shown[i] + 1, len(client.frames))
            if tick % 6 == i:
                client.grant(shown[i])
    assert min(shown) > 0.95 * 16 * 19
    assert abs(shown[0] - shown[1]) < 12


def test_a_session_that_stalls_costs_nothing() -> None:
    server = VirtualServer(chunk_s=0.5)
    stalled, lively = VirtualClient(server, b"a"), VirtualClient(server, b"b")
    for client in (stalled, lively):
        client.ask(m.Prompt, text="a fox", chunks=100)
    lively.watch(3)
    begun = len(lively.frames)
    lively.watch(10)
    assert len(stalled.frames) == 21
    assert len(lively.frames) - begun >= 0.95 * 160


def test_limits_hold_before_anything_is_made() -> None:
    server = VirtualServer(limits=Limits(sessions=2, requests_per_s=1000))
    clients = [VirtualClient(server, bytes([97 + i])) for i in range(2)]
    server.say(b"z", m.Hello(proto=PROTO))
    server.say(b"z", m.OpenSession(id=1))
    error = server.told[b"z"][-1]
    assert (error.code, error.retryable, error.re) == ("busy", True, 1)
    assert len(server.model.opened) == len(clients)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "other"}, "not_supported"),
        ({"width": 640, "height": 480}, "not_supported"),
        ({"fps": 24}, "not_supported"),
        ({"director": "nobody"}, "not_supported"),
        ({"policy": "latest"}, "not_supported"),
    ],
)
def test_what_a_server_cannot_do_is_said_at_the_door(fields: dict[str, object], code: str) -> None:
    server = VirtualServer()
    server.say(b"z", m.Hello(proto=PROTO))
    server.say(b"z", m.OpenSession(id=1, **fields))  # type: ignore[arg-type]
    assert server.told[b"z"][-1].code == code


def test_nobody_is_served_before_hello_and_versions_must_fit() -> None:
    server = VirtualServer()
    server.say(b"z", m.OpenSession(id=1))
    assert server.told[b"z"][-1].code == "hello_required"
    server.say(b"z", m.Hello(proto=(9, 0)))
    assert (server.told[b"z"][-1].code, server.told[b"z"][-1].fatal) == ("version", True)
    assert not server.hub.peers


def test_a_flood_is_slowed_and_junk_is_shown_the_door() -> None:
    server = VirtualServer(limits=Limits(requests_per_s=30))
    client = VirtualClient(server)
    for _ in range(60):
        client.ask(m.Pause)
    assert [e.code for e in client.all(m.Error)].count("rate_limited") >= 30
    for _ in range(30):
        server.hub.receive(b"a", [b"SST/1", b"\xc1"], server.now)
    server.settle()
    assert isinstance(client.told[-1], m.ServerGoodbye)
    server.say(b"a", m.Hello(proto=PROTO))
    assert isinstance(client.told[-1], m.ServerGoodbye)  # not heard for a while


def test_clocks_that_jump_do_no_harm() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(1)
    client.server.now -= 0.7
    client.watch(2)
    assert [f.seq for f in client.frames] == list(range(len(client.frames)))
    assert len(client.frames) > 20


SOME = st.sampled_from(["prompt", "now", "next_shot", "steer", "pause", "play", "choices", "commit", "cancel", "crash",
                        "snapshot", "restore", "lose", "grant", "wait"])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(SOME, min_size=5, max_size=40), st.sampled_from([0.05, 0.3, 0.7]))
def test_whatever_happens_frames_have_no_holes_and_requests_one_end(script: list[str], chunk_s: float) -> None:
    """Order, credit and memory hold under any mixture of requests, losses and crashes."""
    server = VirtualServer(chunk_s=chunk_s)
    client = VirtualClient(server)
    asked: list[int] = []
    choice = 0
    for word in script:
        match word:
            case "prompt":
                asked.append(client.ask(m.Prompt, text=f"shot {len(asked)}"))
            case "now" | "next_shot":
                asked.append(client.ask(m.Prompt, text=f"shot {len(asked)}", at=word))
            case "steer":
                asked.append(client.ask(m.Steer, text="otherwise"))
            case "pause":
                client.ask(m.Pause)
            case "play":
                client.ask(m.Play)
            case "choices":
                choice = client.ask(m.Choices, options=[m.Option(key="a", caption="x"), m.Option(key="b", caption="y")])
            case "commit":
                asked.append(client.ask(m.Commit, choices=choice or 1, key="b"))
            case "cancel":
                client.ask(m.Cancel, ref=asked[-1] if asked else 1)
            case "crash":
                server.crash()
            case "snapshot":
                client.ask(m.Snapshot, name="s")
            case "restore":
                client.ask(m.Restore, snap="s")
            case "lose":
                server.hub.lost(client.peer, server.now)
                client.say(m.Hello(proto=PROTO))
                client.say(m.Resume(
                    id=10_000 + len(client.told), session=client.session, token=client.opened.token,
                    next_seq=len({f.seq for f in client.frames}),
                ))  # fmt: skip
            case "grant":
                client.grant(len({f.seq for f in client.frames}))
            case "wait":
                client.watch(0.6)
    client.ask(m.Play)
    client.watch(6)
    client.watch(6)
    seqs = [f.seq for f in client.frames if not f.replay]
    assert seqs == list(range(len(seqs)))
    for request in asked:
        ends = {a for a in client.answers(request) if isinstance(a, (m.Applied, m.Rejected))
                or (isinstance(a, m.Ack) and a.status == "superseded")}  # fmt: skip
        assert len(ends) == 1, (request, client.answers(request))
    client.ask(m.CloseSession)
    server.run(1)
    assert server.hub.films.slots.free == server.hub.films.slots_for(server.hub.films.facts)
    assert not server.model.films

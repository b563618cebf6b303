"""The server's core in virtual time: what a client can rely on, whatever it and the model do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import Scribe, VirtualClient, VirtualServer

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import PROTO, Limits


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

"""Connections that break, servers that restart or will not have us, in virtual time: nothing is lost or done twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.client.receipts import Receipt
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import MAGIC, PROTO, Limits
from shotstream.runtime.errors import UserError


def test_a_film_that_lost_its_connection_goes_on_without_a_hole(world) -> None:
    film = world.playing()
    world.prompt()
    world.step(0.1)
    world.script.make(world.script.session)
    world.step(0.2)
    world.script.make(world.script.session)  # on its way when the wire is cut
    world.cut_wire()
    assert film.state == "detached"
    world.step(1.5)
    assert film.state == "open"
    assert film.resumed == 1
    assert world.seen == list(range(21))
    assert film.player.dropped == 0


def test_what_was_applied_while_the_wire_was_cut_is_told_by_the_frames(world) -> None:
    world.playing()
    receipt = world.prompt()
    world.send()
    session = world.script.session
    world.script.make(session)
    session.said = [(seq, parts) for seq, parts in session.said if b"applied" not in parts[1]]
    world.cut_wire()
    world.step(1.5)
    assert (receipt.status, receipt.seq, receipt.caption) == ("applied", 0, "shot 0")


def test_an_event_that_is_told_again_after_a_resume_reaches_the_application_once(world) -> None:
    film = world.playing()
    world.prompt()
    world.step(0.1)
    world.cut_wire()
    world.step(1.5)
    assert film.resumed == 1
    assert len([event for event in film.happened if isinstance(event, m.ShotBegin)]) == 1


@pytest.mark.parametrize("reopen", [False, True])
def test_a_restarted_server_has_lost_the_film_unless_the_application_wants_it_reopened(world, reopen) -> None:
    film = world.playing(reopen=reopen)
    receipt = world.prompt()
    world.step(0.1)
    world.script.make(world.script.session)
    world.step(0.2)
    pending = world.core.ask(world.now, film, m.Pause(id=1, session=""))
    world.script.restart()
    world.core.disconnected(world.now)
    world.step(1.5)
    assert receipt.status == "applied"
    assert (pending.status, pending.code) == ("rejected", "no_session")
    if not reopen:
        assert (film.state, film.error[0]) == ("lost", "no_session")
        assert world.prompt().code == "no_session"
        return
    assert (film.state, film.reopened) == ("open", 1)
    assert film.player.shown is not None, "the last picture stays until the new film has one"
    world.prompt()
    world.step(0.1)
    world.script.make(world.script.session)
    world.seen.clear()
    world.step(0.5)
    assert world.seen[-1] > 0
    assert film.player.next_seq == 9


def test_a_wrong_token_for_a_film_is_the_end_of_it(world) -> None:
    film = world.playing(reopen=True)
    world.script.session.token = "another"
    world.cut_wire()
    world.step(1.0)
    assert (film.state, film.error[0]) == ("lost", "bad_token")


def test_a_client_that_was_away_for_too_long_says_hello_again_and_takes_its_film_up(world) -> None:
    film = world.playing()
    world.now += 60  # a loading screen: nobody polled
    world.script.disconnect()
    world.step(3.0)
    assert (world.core.state, film.state, film.resumed) == ("welcomed", "open", 1)


def test_a_silent_server_counts_as_lost_after_some_seconds_and_is_tried_again(world) -> None:
    film = world.playing()
    world.script.mute = True
    world.step(9.0)
    assert film.state == "detached"
    assert "silent" in world.core.trouble or "answered" in world.core.trouble
    world.script.mute = False
    world.step(12.0)
    assert film.state == "open"


def test_attempts_to_reconnect_become_rarer_up_to_five_seconds(world) -> None:
    world.playing()
    waits = []
    for _ in range(9):
        world.core.lost(world.now, "test")
        began = world.now
        while world.core.state == "reconnecting":
            world.now += 0.05
            world.core.tick(world.now)
        waits.append(world.now - began)
    assert waits[:3] == pytest.approx([0.1, 0.2, 0.4], abs=0.06)
    assert max(waits) == pytest.approx(5.0, abs=0.06)


def test_another_version_is_refused_with_both_versions_in_the_text(world) -> None:
    world.script.proto = (2, 0)
    film = world.open()
    world.step(0.1)
    assert world.core.state == "refused"
    assert "2.0" in world.core.refusal
    assert "1.0" in world.core.refusal
    assert film.state == "lost"
    with pytest.raises(UserError, match="update the older"):
        world.open()


def test_another_magic_is_another_version(world) -> None:
    world.core.receive(world.now, [b"SST/2", b"\x80"])
    assert world.core.state == "refused"


def test_a_wrong_token_is_refused_but_a_full_server_is_tried_again(world) -> None:
    world.script.refusal = m.Error(code="busy", message="full", retryable=True, fatal=True, retry_after_ms=2000)
    world.step(0.1)
    assert (world.core.state, world.core.trouble) == ("reconnecting", "full (busy)")
    world.script.refusal = m.Error(code="unauthorized", message="the token is wrong", fatal=True)
    world.step(3.0)
    assert (world.core.state, "token is wrong" in world.core.refusal) == ("refused", True)


def test_a_film_waits_for_a_model_that_loads(world) -> None:
    film = world.open()
    world.script.mute = True
    world.script.welcomed = True
    world.step(0.1)
    world.script.mute = False
    loading = m.Error(code="model_loading", message="reading weights", re=film.arguments.id, retryable=True)
    world.core.receive(world.now, [MAGIC, pack(m.Welcome(
        proto=PROTO, server="s", enc=["rgb24"], models=[], limits=Limits(), features=[], directors=[], clock_us=0,
    ))])  # fmt: skip
    world.core.receive(world.now, [MAGIC, pack(loading)])
    assert (film.state, film.error) == ("opening", ("model_loading", "reading weights"))
    world.step(2.0)
    assert (film.state, film.error) == ("open", None)


ACTIONS = st.sampled_from(["step", "step", "step", "long", "make", "make", "ask", "now", "cut", "hide", "repeat"])


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40), data=st.data())
def test_wherever_the_connection_breaks_nothing_is_lost_shown_twice_or_done_twice(new_world, actions, data) -> None:
    world = new_world()
    film = world.open()
    receipts: list[Receipt] = []
    for action in actions:
        if action in ("step", "long"):
            world.step(0.1 if action == "step" else 0.7)
        elif action == "make" and world.script.sessions and world.script.session.shot >= 0:
            world.script.make(world.script.session)
        elif action in ("ask", "now"):
            receipts.append(world.prompt(at="now" if action == "now" else "auto"))
            world.send()
        elif action == "cut":
            for _ in range(data.draw(st.integers(0, 5))):  # some of what is on its way still arrives
                if world.script.out and world.core.wants_socket:
                    world.core.receive(world.now, world.script.out.popleft())
            world.cut_wire()
        elif action == "hide":
            world.reachable = not world.reachable
        elif action == "repeat" and world.script.out:
            world.script.out.append(world.script.out[0])
        for film_credit in world.script.sessions.values():
            told = [credit.upto for credit in film_credit.credits]
            assert told == sorted(told), "credit only grows"
        assert film.player.queued <= 24
    world.reachable = True
    world.step(40.0)
    session = world.script.session
    assert film.state == "open"
    assert world.seen == sorted(set(world.seen))
    assert film.player.next_seq == session.next_seq
    assert film.player.presented + film.player.skipped + film.player.dropped == session.next_seq
    if not any(action == "now" for action in actions):
        assert film.player.dropped == 0
    assert all(count == 1 for count in session.done.values())
    assert sorted(session.done) == [receipt.id for receipt in receipts]
    assert all(receipt.answered for receipt in receipts)
    assert film.waiting == 0


def test_what_nobody_answered_is_asked_again_as_soon_as_the_film_is_back(world) -> None:
    world.playing()
    world.script.mute = True
    receipt = world.prompt()
    world.step(4.0)  # long enough for the next attempt to be seconds away
    world.script.mute = False
    world.cut_wire()
    world.step(0.3)
    assert receipt.status == "applied"


def test_credit_that_was_lost_with_the_connection_is_told_again(world) -> None:
    film = world.playing()
    world.prompt()
    world.step(0.1)
    session = world.script.session
    world.script.make(session)
    world.step(1.0)
    assert film.player.upto > 24
    session.upto = 24  # as if none of it had arrived
    world.cut_wire()
    world.step(0.5)
    assert session.upto == film.player.upto == 9 + 24

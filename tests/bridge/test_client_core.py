"""The client's protocol in virtual time: no sockets, no clock, a server that follows the book."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.client import ClientCore
from shotstream.bridge.client.requests import Pace
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import MAGIC, PROTO, Limits
from shotstream.runtime.errors import UserError

STEP = 0.02
"""One turn of the `world`, in seconds."""


def test_a_film_opens_as_soon_as_the_server_has_welcomed_the_client(world) -> None:
    film = world.open()
    assert (world.core.state, film.state) == ("connecting", "opening")
    world.step(0.1)
    assert (world.core.state, film.state) == ("welcomed", "open")
    assert isinstance(world.script.heard[0], m.Hello)


def test_what_is_asked_before_the_film_is_open_is_asked_once_it_is(world) -> None:
    world.open()
    receipt = world.prompt()
    assert receipt.status == "pending"
    world.step(0.2)
    assert (receipt.status, receipt.caption, receipt.seq) == ("applied", "shot 0", 0)


def test_a_receipt_tells_when_its_first_frame_was_seen(world) -> None:
    film = world.playing()
    receipt = world.prompt()
    world.step(0.1)
    assert receipt.seen_ms == 0
    world.script.make(world.script.session)
    world.step(0.1)
    assert film.player.presented
    assert 100 <= receipt.seen_ms <= 200


def test_a_refused_request_says_why_and_is_reported_once(world) -> None:
    world.playing()
    receipt = world.prompt("refuse me", on_change=lambda receipt: None)
    world.step(0.1)
    assert (receipt.status, receipt.code, receipt.error) == ("rejected", "rejected_content", "no words for it")
    assert [r.status for r in world.film.changed] == ["rejected"]


def test_an_unanswered_request_is_sent_again_with_the_same_number(world) -> None:
    world.playing()
    world.script.mute = True
    receipt = world.prompt()
    world.step(1.5)
    world.script.mute = False
    world.step(2.0)
    asked = [h.id for h in world.script.heard if isinstance(h, m.Prompt)]
    assert asked == [receipt.id] * 3
    assert receipt.status == "applied"


def test_a_duplicate_or_late_answer_changes_nothing(world) -> None:
    film = world.playing()
    receipt = world.prompt()
    world.step(0.1)
    for status in ("accepted", "duplicate", "queued"):
        world.core.receive(world.now, [MAGIC, pack(m.Ack(re=receipt.id, session=film.session, status=status))])
    refused = m.Rejected(re=receipt.id, session=film.session, code="busy", message="")
    world.core.receive(world.now, [MAGIC, pack(refused)])
    assert receipt.status == "applied"


def test_requests_that_the_server_finds_too_many_are_sent_again_later(world) -> None:
    film = world.playing()
    world.script.mute = True
    receipt = world.prompt()
    world.step(0.1)
    late = m.Error(code="rate_limited", message="", re=receipt.id, retryable=True, retry_after_ms=300)
    world.core.receive(world.now, [MAGIC, pack(late)])
    world.script.mute = False
    world.step(0.5)
    assert (receipt.status, film.state) == ("applied", "open")


def test_a_storm_of_events_is_spread_so_that_no_second_holds_too_many(world) -> None:
    film = world.playing()
    receipts = [world.core.ask(world.now, film, m.Event(id=1, session="", kind="Door")) for _ in range(100)]
    sent = 0
    for _ in range(8):
        before = len([h for h in world.script.heard if isinstance(h, m.Event)])
        world.step(1.0)
        sent = len([h for h in world.script.heard if isinstance(h, m.Event)])
        assert sent - before <= Limits().requests_per_s
    assert sent == 100
    assert all(receipt.answered for receipt in receipts)


def test_more_than_256_waiting_requests_are_refused_at_once(world) -> None:
    film = world.open()
    receipts = [world.core.ask(world.now, film, m.Event(id=1, session="", kind="Door")) for _ in range(257)]
    assert receipts[-1].code == "queue_full"
    assert receipts[-1].retryable
    assert receipts[0].status == "pending"


def test_pings_keep_the_lease_and_measure_the_servers_clock(world) -> None:
    world.open()
    world.step(10)
    pings = [h for h in world.script.heard if isinstance(h, m.Ping)]
    assert 5 <= len(pings) <= 7
    assert world.core.clock.offset_us == pytest.approx(5_000_000, abs=25_000)


def test_a_flush_drops_the_old_shot_and_shows_the_new_one_at_once(world) -> None:
    film = world.playing()
    world.prompt()
    world.step(0.05)
    world.script.make(world.script.session)
    world.script.make(world.script.session)
    world.step(0.2)
    receipt = world.prompt("now!", at="now")
    world.step(STEP)
    world.script.make(world.script.session)
    world.step(2 * STEP)
    assert film.player.shown.seq == 21 == receipt.seq
    assert film.player.dropped == 21 - film.player.presented + 1
    assert film.shots[film.player.shown.shot].caption == "shot 1"


def test_announced_and_unannounced_holes_count_as_dropped(world) -> None:
    film = world.playing()
    gap = m.Gap(session=film.session, first=0, until=5, reason="late")
    world.core.receive(world.now, [MAGIC, pack(gap)])
    assert (film.player.next_seq, film.player.dropped) == (5, 5)


def test_a_frame_whose_bytes_do_not_fit_is_left_out_and_counted(world) -> None:
    film = world.playing()
    world.script.pictures = lambda seq: b"short" if seq == 3 else bytes(24)
    world.prompt()
    world.step(0.1)
    world.script.make(world.script.session)
    world.step(1.0)
    assert film.broken == 1
    assert world.seen == [0, 1, 2, 4, 5, 6, 7, 8]


def test_pixels_are_a_view_of_the_message_and_cannot_be_written(world) -> None:
    film = world.playing()
    data = bytes(range(24))
    world.script.pictures = lambda seq: data
    world.prompt()
    world.step(0.1)
    world.script.make(world.script.session)
    world.step(0.1)
    pixels = film.player.shown.pixels
    assert pixels.shape == (2, 4, 3)
    assert pixels[1, 0].tolist() == [12, 13, 14]
    assert np.shares_memory(pixels, np.frombuffer(data, np.uint8))
    assert not pixels.flags.writeable


def test_a_fork_is_a_second_film_on_the_same_connection(world) -> None:
    film = world.playing()
    branch, receipt = world.core.fork(world.now, film, "", "")
    world.step(0.2)
    assert (branch.state, receipt.status) == ("open", "applied")
    assert branch.session != film.session


def test_a_fork_that_is_refused_is_lost_with_the_reason(world) -> None:
    film = world.playing()
    world.script.mute = True
    branch, receipt = world.core.fork(world.now, film, "nothing", "")
    no = m.Rejected(re=receipt.id, session=film.session, code="snapshot_missing", message="there is none")
    world.core.receive(world.now, [MAGIC, pack(no)])
    world.step(0.1)
    assert (branch.state, branch.error[0], receipt.status) == ("lost", "snapshot_missing", "rejected")


def test_a_closed_film_answers_what_still_waits(world) -> None:
    film = world.playing()
    closing = world.core.ask(world.now, film, m.CloseSession(id=1, session=""))
    world.step(0.2)
    assert (film.state, closing.status) == ("closed", "applied")


def test_what_the_server_would_refuse_is_refused_before_it_is_sent(world) -> None:
    film = world.playing()
    with pytest.raises(UserError, match="4096"):
        world.prompt("é" * 3000)
    with pytest.raises(UserError, match=r"\$\.at"):
        world.prompt(at="soon")
    with pytest.raises(UserError, match="window"):
        world.open(window=5)
    with pytest.raises(UserError, match="no model 'huge'"):
        world.open(model="huge")
    with pytest.raises(UserError, match="bytes"):
        world.core.ask(
            world.now, film, m.Event(id=1, session="", kind="x", params={str(i): "y" * 4000 for i in range(32)})
        )


def test_pace_never_lets_more_through_in_a_second_than_it_was_told() -> None:
    pace, sent = Pace(30), []
    for tick in range(3000):
        if pace.ready(tick / 1000):
            pace.spend()
            sent.append(tick)
    assert max(sum(1 for other in sent if begin <= other < begin + 1000) for begin in sent) <= 30
    assert len(sent) > 60


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(0, 2**31))
def test_junk_from_the_server_is_counted_and_changes_nothing(parts, seed) -> None:
    core = ClientCore(0.0, m.Hello(proto=PROTO))
    core.receive(0.0, parts)
    good = bytearray(pack(m.Ack(re=1, session="s1")))
    dice = random.Random(seed)
    for _ in range(3):
        good[dice.randrange(len(good))] ^= 1 << dice.randrange(8)
    core.receive(0.0, [MAGIC, bytes(good)])
    assert core.state in ("connecting", "refused")
    core.tick(0.1)

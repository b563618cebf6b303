"""The server's core in virtual time: what one client does never costs another one its film."""

from __future__ import annotations

from virtual import VirtualClient, VirtualServer

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import PROTO


def test_somebody_who_hammers_a_button_freezes_no_other_film_and_sees_his_own() -> None:
    server = VirtualServer(chunk_s=0.25)
    calm, hasty = VirtualClient(server, b"calm"), VirtualClient(server, b"hasty")
    for client in (calm, hasty):
        client.ask(m.Prompt, text="a fox", chunks=100)
    shown = stood = 0
    for turn in range(20 * 16):
        server.run(1 / 16)
        shown, stood = (shown + 1, stood) if shown < len(calm.frames) else (shown, stood + bool(shown))
        hasty.ask(m.Prompt, text="now!", at="now", chunks=100)
        if turn % 6 == 0:
            calm.grant(shown)
            hasty.grant(len(hasty.frames))
    assert stood == 0
    assert len(hasty.frames) > 100


def test_frames_that_one_does_not_fetch_take_no_slots_from_the_others() -> None:
    server = VirtualServer(chunk_s=0.1)
    slots = server.hub.films.slots
    kept: list[int] = []

    def keep(peer: bytes, message: object) -> None:
        """The transport has everything for the deaf client and gets rid of nothing."""
        if peer == b"deaf" and isinstance(message, m.Frame):
            slot = server.hub.films.sessions[message.session].buffer._said[-1].payload
            if slot is not None:
                slots.hold(slot.slot)
                kept.append(slot.slot)

    server.on_tell = keep
    deaf, good = VirtualClient(server, b"deaf"), VirtualClient(server, b"good")
    good.ask(m.Prompt, text="a fox", chunks=100)
    for _ in range(60):
        deaf.ask(m.Prompt, text="now!", at="now", chunks=100)
        good.watch(0.25)
    assert slots.taken(deaf.session) <= slots.share
    assert len(good.frames) > 60 * 0.25 * 16
    for number in range(8):  # opening again and again does not help
        deaf.ask(m.CloseSession)
        server.say(b"deaf", m.OpenSession(id=1000 + number, seed=3))
    assert slots.total - slots.used >= slots.share - slots.taken(good.session)


def test_a_shot_that_kills_the_model_twice_is_given_up() -> None:
    server = VirtualServer()
    client, other = VirtualClient(server, b"a"), VirtualClient(server, b"b")
    request = client.ask(m.Prompt, text="poison", chunks=5)
    for _ in range(2):
        server.run(0.1)
        server.crash()
    assert client.answers(request)[-1].code == "model_failed"
    other.ask(m.Prompt, text="a hare")
    other.watch(4)
    assert len(other.frames) == 33
    assert not client.frames


def test_a_wide_window_is_made_up_for_after_a_broken_connection() -> None:
    server = VirtualServer(chunk_s=0.05)
    client = VirtualClient(server, window=96)
    client.ask(m.Prompt, text="a fox", chunks=100)
    server.run(6)
    sent = len(client.frames)
    assert sent > 84
    server.hub.lost(b"a", server.now)
    server.say(b"b", m.Hello(proto=PROTO))
    server.say(b"b", m.Resume(id=1, session=client.session, token=client.opened.token, next_seq=3))
    again = [told.seq for told in server.told[b"b"] if isinstance(told, m.Frame)]
    assert again[: sent - 3] == list(range(3, sent))


def test_snapshots_that_never_come_about_are_bounded() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox", chunks=100)
    codes = [client.answers(client.ask(m.Snapshot, name=f"s{n}"))[-1] for n in range(20)]
    assert [type(code).__name__ for code in codes[:8]] == ["Ack"] * 8
    assert all(code.code == "queue_full" for code in codes[8:])


def test_a_steer_that_waits_when_the_model_dies_is_told_its_end() -> None:
    server = VirtualServer(chunk_s=0.05)
    client = VirtualClient(server)
    client.ask(m.Prompt, text="a fox", chunks=50)
    server.run(3)  # until there is no credit left
    request = client.ask(m.Steer, text="it rains")
    server.crash()
    assert client.answers(request)[-1].status == "superseded"

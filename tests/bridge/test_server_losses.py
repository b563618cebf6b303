"""Lost clients, lost models, and going back: the server's core in virtual time."""

from __future__ import annotations

from virtual import VirtualClient, VirtualServer

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import PROTO


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

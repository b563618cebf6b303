"""What clients send, and what it is made of. The rules that all messages follow stand in `messages`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from shotstream.bridge.protocol.fields import (
    Count,
    Empty,
    Encoding,
    Name,
    Policy,
    RequestId,
    Role,
    Scalar,
    Size,
    Text,
    Urgency,
)
from shotstream.bridge.protocol.limits import BIGGEST, CAST, CHOICES, PARAMS, TAGS


class Accept(Struct, frozen=True, omit_defaults=True):
    """What a client can read."""

    enc: Annotated[list[Name], Meta(max_length=16)] = []
    max_payload: Count = BIGGEST


class Cast(Struct, frozen=True, omit_defaults=True):
    """One member of the cast: ``description`` at the first appearance, ``short`` (default: the name) later."""

    key: Name
    name: Name = ""
    description: Text = ""
    short: Text = ""


class Option(Struct, frozen=True, omit_defaults=True):
    """One way to go on: a caption, or an event's kind with its parts for the director."""

    key: Name
    label: Text = ""
    caption: Text = ""
    kind: Name = ""
    actor: Name = ""
    action: Name = ""
    target: Name = ""
    params: Annotated[dict[Name, Scalar], Meta(max_length=PARAMS)] = {}


class ClientMessage(Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="t", tag=True):
    """Base of what clients send."""


class Hello(ClientMessage, frozen=True, kw_only=True, tag="hello"):
    """First message of a connection. ``stats`` asks for `stats` every second."""

    proto: tuple[Count, Count]
    client: Name = ""
    token: Text = ""
    accept: Accept = Accept()
    role: Role = "player"
    stats: bool = False


class Request(ClientMessage, frozen=True, kw_only=True):
    """Base of what is acknowledged."""

    id: RequestId


class OpenSession(Request, frozen=True, kw_only=True, tag="open_session"):
    """A new film. 0 or "" for size, rate and model means the server's; other values must be among those in `welcome`.

    ``nonce``: the same again (of a client that lost its connection before the answer) gives the same session.
    ``director``: name of the plugin that words events. ``seed`` None: the server draws one and says which.
    """

    model: Name = ""
    width: Count = 0
    height: Count = 0
    fps: Count = 0
    seed: Count | None = None
    style: Text = ""
    global_caption: Text = ""
    cast: Annotated[list[Cast], Meta(max_length=CAST)] = []
    enc: Encoding = "rgb24"
    quality: Annotated[int, Meta(ge=1, le=100)] = 85
    window: Count = 24
    policy: Policy = "pace"
    resume_ttl_s: Annotated[float, Meta(ge=0, le=3600)] = 60.0
    director: Name = ""
    nonce: Name = ""


class SessionRequest(Request, frozen=True, kw_only=True):
    """Base of requests about one session."""

    session: Name


class Event(SessionRequest, frozen=True, kw_only=True, tag="event"):
    """Something happened in the game; the director words it. ``ts`` is the client's clock in ms."""

    kind: Name
    actor: Name = ""
    action: Name = ""
    target: Name = ""
    params: Annotated[dict[Name, Scalar], Meta(max_length=PARAMS)] = {}
    tags: Annotated[list[Name], Meta(max_length=TAGS)] = []
    at: Urgency = "auto"
    ts: float = 0.0
    coalesce: Name = ""


class Prompt(SessionRequest, frozen=True, kw_only=True, tag="prompt"):
    """A shot caption, word for word. ``chunks`` 0: the model's usual length."""

    text: Text
    at: Urgency = "auto"
    chunks: Count = 0


class Steer(SessionRequest, frozen=True, kw_only=True, tag="steer"):
    """A new caption for the running shot, without a cut, from the next chunk on."""

    text: Text


class Cut(SessionRequest, frozen=True, kw_only=True, tag="cut"):
    """Begin a new shot behind the chunk in the making, or at once with ``flush``. Without a caption the director
    finds one for ``size`` and ``subject``."""

    caption: Text = ""
    size: Size | Empty = ""
    subject: Name = ""
    flush: bool = False
    chunks: Count = 0


class Scene(SessionRequest, frozen=True, kw_only=True, tag="scene"):
    """New circumstances from the next shot on. ``forget``: earlier shots are not remembered there."""

    global_caption: Text = ""
    cast: Annotated[list[Cast], Meta(max_length=CAST)] = []
    style: Text = ""
    place: Text = ""
    time: Name = ""
    forget: bool = False


class Choices(SessionRequest, frozen=True, kw_only=True, tag="choices"):
    """Ways to go on; the first chunk of each is made ahead. ``default`` is committed after ``deadline_ms``, if both
    are given."""

    options: Annotated[list[Option], Meta(min_length=2, max_length=CHOICES)]
    deadline_ms: Count = 0
    default: Name = ""


class Commit(SessionRequest, frozen=True, kw_only=True, tag="commit"):
    """Take option ``key`` of the choices announced under the request id ``choices``."""

    choices: RequestId
    key: Name


class Cancel(SessionRequest, frozen=True, kw_only=True, tag="cancel"):
    """Take back request ``ref`` unless it has been applied."""

    ref: RequestId


class Pause(SessionRequest, frozen=True, kw_only=True, tag="pause"):
    """Make nothing until `play`. What was sent stays sent."""


class Play(SessionRequest, frozen=True, kw_only=True, tag="play"):
    """Go on after `pause`."""


class Snapshot(SessionRequest, frozen=True, kw_only=True, tag="snapshot"):
    """Keep the film as it is at the coming shot boundary (at once between shots)."""

    name: Name = ""


class Restore(SessionRequest, frozen=True, kw_only=True, tag="restore"):
    """Go back to a snapshot of this session; the running shot ends."""

    snap: Name


class Fork(SessionRequest, frozen=True, kw_only=True, tag="fork"):
    """A new session that goes on from a snapshot, or from the last shot boundary."""

    snap: Name = ""
    name: Name = ""


class Credit(ClientMessage, frozen=True, kw_only=True, tag="credit"):
    """Frames below ``upto`` may be sent; it only grows. Granted when frames are presented. ``played`` is the number of
    frames presented or dropped so far, ``lead_ms`` what is queued, ``late`` how often nothing was there to show.
    """

    session: Name
    upto: Count
    played: Count = 0
    lead_ms: float = 0.0
    late: Count = 0
    dropped: Count = 0


class Resume(Request, frozen=True, kw_only=True, tag="resume"):
    """Take a session over on this connection; frames from ``next_seq`` on are sent again as far as they are kept."""

    session: Name
    token: Text
    next_seq: Count = 0


class CloseSession(SessionRequest, frozen=True, kw_only=True, tag="close_session"):
    """End the film and free what it holds."""


class Ping(ClientMessage, frozen=True, kw_only=True, tag="ping"):
    """Keeps the lease and measures the clock: ``t0`` is the client's time in us, any origin."""

    t0: Count


class Goodbye(ClientMessage, frozen=True, kw_only=True, tag="goodbye"):
    """The client leaves; its sessions are closed at once."""

    reason: Text = ""


FromClient: TypeAlias = (
    Hello | OpenSession | Event | Prompt | Steer | Cut | Scene | Choices | Commit | Cancel | Pause | Play | Snapshot
    | Restore | Fork | Credit | Resume | CloseSession | Ping | Goodbye
)  # fmt: skip

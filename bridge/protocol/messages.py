"""Every message of the protocol as a typed struct; the field ``t`` on the wire is the name in snake case.

Client messages come first, server messages after them. Unknown fields are ignored and missing ones take their
defaults, so that minor versions can add fields. Integers are 0..2**53, times are milliseconds or microseconds as the
name's ending says, texts are UTF-8. Requests carry ``id``: one counter for everything that a client asks for,
increasing and larger than 0. The same id again is answered as before and done only once.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shotstream.bridge.protocol.limits import BIGGEST, CAST, CHOICES, NAME, PARAMS, TAGS, TEXT, Limits

Count: TypeAlias = Annotated[int, Meta(ge=0, le=BIGGEST)]
RequestId: TypeAlias = Annotated[int, Meta(ge=1, le=BIGGEST)]
Name: TypeAlias = Annotated[str, Meta(max_length=NAME)]
Text: TypeAlias = Annotated[str, Meta(max_length=TEXT)]
Scalar: TypeAlias = bool | Annotated[int, Meta(ge=-BIGGEST, le=BIGGEST)] | float | Text | None

Urgency: TypeAlias = Literal["now", "next_chunk", "next_shot", "auto"]
"""``now`` cuts at once and drops what is queued, ``next_chunk`` cuts behind the chunk in the making, ``next_shot``
waits for the shot's end, ``auto`` leaves it to the director."""
Size: TypeAlias = Literal["wide", "medium", "close_up"]
Policy: TypeAlias = Literal["pace", "latest"]
Role: TypeAlias = Literal["player", "viewer", "director"]
Encoding: TypeAlias = Literal["rgb24", "rgba32", "bgra32", "jpeg", "none"]
Empty: TypeAlias = Literal[""]


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


class Place(Struct, frozen=True, omit_defaults=True):
    """Where something takes effect: numbers of the shot and of the chunk in it, from 0."""

    shot: Count = 0
    chunk: Count = 0


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


# --- from the server ------------------------------------------------------------------------------------------------
ModelState: TypeAlias = Literal["loading", "warming_up", "ready", "restarting", "failed"]


class Model(Struct, frozen=True, omit_defaults=True):
    """A model and its facts. ``state_text`` says what is being done, or what went wrong."""

    name: Name
    width: Count = 0
    height: Count = 0
    fps: Count = 16
    chunk_frames: Count = 12
    first_chunk_frames: Count = 9
    max_shot_chunks: Count = 100
    usual_shot_chunks: Count = 7
    state: ModelState = "loading"
    state_text: Text = ""


class ServerMessage(Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="t", tag=True):
    """Base of what servers send."""


class Welcome(ServerMessage, frozen=True, kw_only=True, tag="welcome"):
    """Answer to `hello`. ``clock_us`` is the server's monotonic clock."""

    proto: tuple[Count, Count]
    server: Name
    enc: list[Name]
    models: list[Model]
    limits: Limits
    features: list[Name]
    directors: list[Name]
    clock_us: Count


class ModelStatus(ServerMessage, frozen=True, kw_only=True, tag="model_status"):
    """A model's state has changed."""

    model: Model


class SessionOpened(ServerMessage, frozen=True, kw_only=True, tag="session_opened"):
    """``fps`` is a fraction, ``tb`` the unit of pts in 1/s; chunk lengths in frames."""

    re: RequestId
    session: Name
    token: Text
    model: Name
    width: Count
    height: Count
    fps: tuple[Count, Count]
    tb: Count
    chunk_frames: Count
    first_chunk_frames: Count
    window: Count
    seed: Count
    enc: Encoding
    director: Name = ""
    resumed: bool = False
    next_seq: Count = 0
    epoch: Count = 0


class Ack(ServerMessage, frozen=True, kw_only=True, tag="ack"):
    """A request was understood and will be done (``accepted``), waits for something (``queued``), was sent before
    (``duplicate``), or an earlier one made way for a later one (``superseded``)."""

    re: RequestId
    session: Name = ""
    status: Literal["accepted", "queued", "duplicate", "superseded"] = "accepted"
    at: Place | None = None


class Applied(ServerMessage, frozen=True, kw_only=True, tag="applied"):
    """Request ``re`` shows from frame ``seq`` on. ``caption`` is what the model was given, ``latency_ms`` the time from
    the request's arrival to now."""

    re: RequestId
    session: Name
    seq: Count
    shot: Count
    chunk: Count
    epoch: Count
    caption: Text
    latency_ms: float


class Rejected(ServerMessage, frozen=True, kw_only=True, tag="rejected"):
    """A request will not be done."""

    re: RequestId
    session: Name = ""
    code: Name
    message: Text


class ShotBegin(ServerMessage, frozen=True, kw_only=True, tag="shot_begin"):
    """Before a shot's first frame ``seq``. ``flush``: drop queued frames of earlier epochs. ``cause``: the request."""

    session: Name
    shot: Count
    epoch: Count
    seq: Count
    global_caption: Text
    caption: Text
    size: Name = ""
    cause: Count = 0
    transition: Literal["cut", "continue"] = "cut"
    flush: bool = False


class Frame(ServerMessage, frozen=True, kw_only=True, tag="frame"):
    """One picture; its bytes are the message's payload. Pixels are sRGB, full range, rows from the top, packed unless
    ``stride``. ``index`` counts in the chunk, ``seq`` over the session without holes, ``pts`` in units of 1/tb.
    ``prompt`` is the request shown last. ``ts`` is the server's clock in us.
    """

    session: Name
    shot: Count
    chunk: Count
    index: Count
    seq: Count
    epoch: Count
    pts: Count
    prompt: Count = 0
    enc: Encoding = "rgb24"
    w: Count
    h: Count
    stride: Count = 0
    key: bool = True
    end: bool = False
    ts: Count = 0
    gen_ms: float = 0.0
    replay: bool = False
    speculative: bool = False


class ShotEnd(ServerMessage, frozen=True, kw_only=True, tag="shot_end"):
    """After a shot's last frame."""

    session: Name
    shot: Count
    frames: Count
    reason: Literal["cut", "max_length", "close", "error"]


class Gap(ServerMessage, frozen=True, kw_only=True, tag="gap"):
    """Frames ``first`` up to but not with ``until`` will not come."""

    session: Name
    first: Count
    until: Count
    reason: Literal["late", "resume", "flushed"]


class ChoiceReady(ServerMessage, frozen=True, kw_only=True, tag="choice_ready"):
    """The first chunk of option ``key`` lies ready: ``frames`` pictures."""

    re: RequestId
    session: Name
    key: Name
    frames: Count


class SnapshotMade(ServerMessage, frozen=True, kw_only=True, tag="snapshot_made"):
    re: RequestId
    session: Name
    snap: Name
    bytes: Count
    shot: Count


class Restored(ServerMessage, frozen=True, kw_only=True, tag="restored"):
    re: RequestId
    session: Name
    snap: Name
    seq: Count
    epoch: Count


class Forked(ServerMessage, frozen=True, kw_only=True, tag="forked"):
    """The new session stands open on the same connection; a `session_opened` for it, with the same ``re``, comes first.
    Its frames are numbered from 0 and its first window is granted, as after `open_session`."""

    re: RequestId
    session: Name
    fork: Name


class Stats(ServerMessage, frozen=True, kw_only=True, tag="stats"):
    """Every second, to those who asked for it. ``credit`` and ``queue`` in frames."""

    session: Name
    fps: float
    chunk_ms_p50: float
    chunk_ms_p95: float
    lead_ms: float
    credit: Count
    queue: Count
    late: Count


class Starved(ServerMessage, frozen=True, kw_only=True, tag="starved"):
    """The client's queue has run dry ``since_ms`` ago: for want of credit, because the model is too slow, or because
    no shot was asked for (``story``)."""

    session: Name
    since_ms: float
    reason: Literal["credit", "model", "story"]


class Error(ServerMessage, frozen=True, kw_only=True, tag="error"):
    """Something went wrong. ``fatal``: the connection is of no further use."""

    code: Name
    message: Text
    retryable: bool = False
    retry_after_ms: Count = 0
    re: Count = 0
    session: Name = ""
    fatal: bool = False


class SessionClosed(ServerMessage, frozen=True, kw_only=True, tag="session_closed"):
    """A film has ended. ``code``: closed, expired, time_limit, shutting_down, or an error's; ``reason`` is for
    people."""

    session: Name
    reason: Text
    code: Name = "closed"
    frames: Count = 0
    shots: Count = 0


class Pong(ServerMessage, frozen=True, kw_only=True, tag="pong"):
    """``t1`` and ``t2``: the server's clock in us when the ping came and when this left."""

    t0: Count
    t1: Count
    t2: Count


class ServerGoodbye(ServerMessage, frozen=True, kw_only=True, tag="goodbye"):
    reason: Text = ""


FromServer: TypeAlias = (
    Welcome | ModelStatus | SessionOpened | Ack | Applied | Rejected | ShotBegin | Frame | ShotEnd | Gap | ChoiceReady
    | SnapshotMade | Restored | Forked | Stats | Starved | Error | SessionClosed | Pong | ServerGoodbye
)  # fmt: skip

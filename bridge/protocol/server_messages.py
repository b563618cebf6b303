"""What servers send, and what it is made of. The rules that all messages follow stand in `messages`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from shotstream.bridge.protocol.fields import Count, Encoding, Name, RequestId, Text
from shotstream.bridge.protocol.limits import Limits

ModelState: TypeAlias = Literal["loading", "warming_up", "ready", "restarting", "failed"]


class Place(Struct, frozen=True, omit_defaults=True):
    """Where something takes effect: numbers of the shot and of the chunk in it, from 0."""

    shot: Count = 0
    chunk: Count = 0


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

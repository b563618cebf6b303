"""What bridge and model process say to each other: orders and results, in MessagePack, never seen by clients.

Orders are done one after the other; `Stop` alone overtakes. Frames do not travel here: they lie in a slot of the shared
frame store (`shotstream.bridge.frame_store`), which the bridge owns and names in the order.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from shotstream.bridge.protocol.messages import Encoding


class _Tagged(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Base of orders and results."""


# --- orders ---------------------------------------------------------------------------------------------------------
class OpenFilm(_Tagged, frozen=True):
    """A film under a number of the bridge's choice; ``saved`` continues it from a shot boundary."""

    film: int
    seed: int
    global_caption: str
    saved: bytes = b""


class BranchFilm(_Tagged, frozen=True):
    """A second film that goes on from where the shot of film ``of`` stands, as if it ended there."""

    film: int
    of: int


class CloseFilm(_Tagged, frozen=True):
    """Free what the film holds."""

    film: int


class NewShot(_Tagged, frozen=True):
    """Begin a shot: ``chunks`` 0 for the model's usual length, ``global_caption`` None to keep the one in force."""

    caption: str
    global_caption: str | None = None
    chunks: int = 0
    forget: bool = False


class Make(_Tagged, frozen=True):
    """Make one chunk into ``slot``: of a new shot, of the running one under another caption, or simply the next."""

    film: int
    ticket: int
    slot: int
    shot: NewShot | None = None
    steer: str = ""
    enc: Encoding = "rgb24"
    quality: int = 85


class Stop(_Tagged, frozen=True):
    """Give up the chunk with this ticket if it is still being denoised."""

    ticket: int


class UseStore(_Tagged, frozen=True):
    """Where the frame store lies: ``slots`` slots of ``slot_bytes`` in the file ``path``."""

    path: str
    slots: int
    slot_bytes: int


class Quit(_Tagged, frozen=True):
    """Close everything and leave."""


Order: TypeAlias = OpenFilm | BranchFilm | CloseFilm | Make | Stop | UseStore | Quit


# --- results --------------------------------------------------------------------------------------------------------
class Facts(msgspec.Struct, frozen=True):
    """What the bridge has to know of a model. Sizes in pixels, lengths in frames and chunks."""

    name: str
    width: int
    height: int
    fps: int
    chunk_frames: int
    first_chunk_frames: int
    max_shot_chunks: int
    usual_shot_chunks: int
    description: str = ""

    @property
    def slot_bytes(self) -> int:
        """Room for the longest chunk in the widest encoding."""
        return max(self.chunk_frames, self.first_chunk_frames) * self.width * self.height * 4


class Loading(_Tagged, frozen=True):
    """The model is on its way; ``step`` says what is being done."""

    state: str
    step: str


class Ready(_Tagged, frozen=True):
    facts: Facts


class Broken(_Tagged, frozen=True):
    """The model cannot be loaded; the process ends. ``message`` is for people."""

    message: str


class FilmOpen(_Tagged, frozen=True):
    film: int


class FilmFailed(_Tagged, frozen=True):
    film: int
    code: str
    message: str


class Made(_Tagged, frozen=True):
    """A chunk lies in ``slot``: ``sizes`` are the bytes of its frames, one behind the other."""

    film: int
    ticket: int
    slot: int
    shot: int
    chunk: int
    caption: str
    sizes: list[int]
    last: bool
    gen_ms: float
    digest: str = ""
    """SHA-256 (hex) of the frames as made, before any encoding; empty unless asked for."""


class NotMade(_Tagged, frozen=True):
    """No chunk: ``code`` is stopped, idle (no shot runs), text_too_long, out_of_memory, invalid_argument or internal.
    The film is as before."""

    film: int
    ticket: int
    code: str
    message: str = ""


class Kept(_Tagged, frozen=True):
    """The film as of the shot boundary before shot ``shot``."""

    film: int
    shot: int
    saved: bytes


Result: TypeAlias = Loading | Ready | Broken | FilmOpen | FilmFailed | Made | NotMade | Kept

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_result = msgspec.msgpack.Decoder(Result).decode

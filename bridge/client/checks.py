"""What would be refused is refused here, before it is sent: a part that is too large makes the transport drop the
connection without a word. Pure."""

from __future__ import annotations

import msgspec

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import BadMessage, pack, unpack_client
from shotstream.bridge.protocol.limits import MAGIC, Limits
from shotstream.runtime.errors import UserError

_LISTS = {"cast": "cast", "tags": "tags", "params": "params", "options": "choices"}
"""Field -> the limit on how many it holds."""


def check(message: m.ClientMessage, limits: Limits) -> bytes:
    """The header of ``message``. Raises `UserError` where it breaks the protocol or ``limits``; the text names the
    field."""
    name = str(type(message).__struct_config__.tag)
    try:
        header = pack(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{name} cannot be sent: {error}") from None
    if len(header) > limits.header_bytes:
        raise UserError(f"{name} has {len(header)} bytes, the server takes at most {limits.header_bytes}")
    try:
        unpack_client([MAGIC, header], limits.header_bytes, limits.part_bytes, limits.parts)
    except BadMessage as error:
        raise UserError(str(error)) from None
    for field, limit in _LISTS.items():
        held = getattr(message, field, ())
        if len(held) > getattr(limits, limit):
            raise UserError(f"{name}.{field} has {len(held)} entries, the server takes {getattr(limits, limit)}")
    _texts(name, msgspec.to_builtins(message), limits.text_bytes)
    return header


def _texts(where: str, value: object, most: int) -> None:
    if isinstance(value, str):
        size = len(value.encode())
        if size > most:
            raise UserError(f"{where} has {size} bytes of text, the server takes at most {most}")
    elif isinstance(value, dict):
        for key, part in value.items():
            _texts(f"{where}.{key}", part, most)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _texts(f"{where}[{index}]", part, most)


def check_open(message: m.OpenSession, welcome: m.Welcome) -> None:
    """What an `open_session` may ask for is known once the server has said welcome. Raises `UserError`."""
    models = [model.name for model in welcome.models]
    if message.model and message.model not in models:
        raise UserError(f"the server has no model {message.model!r}; it has {', '.join(models) or 'none'}")
    if message.enc not in welcome.enc:
        raise UserError(f"the server does not send {message.enc}; it sends {', '.join(welcome.enc)}")
    if message.director and message.director not in welcome.directors:
        known = ", ".join(welcome.directors) or "none"
        raise UserError(f"the server has no director {message.director!r}; it has {known}")
    least, most = welcome.limits.window_min, welcome.limits.window_max
    if not least <= message.window <= most:
        raise UserError(f"a window has {least} to {most} frames, not {message.window}")

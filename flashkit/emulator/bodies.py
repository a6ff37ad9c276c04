"""JSON bodies of requests: read within a limit, decoded strictly, encoded without surprises.

orjson reads deeper nesting than it writes, and a job is written several times on its way. So depth is
checked where a body comes in, and whatever came in can be sent on.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.types import Receive

from flashkit.errors import InputError

DISCARD_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""How much of an oversized body is still read, so that the sender gets to see the answer."""
_UNSUSPICIOUS_BRACKETS: Final = 200
"""With fewer opening brackets, JSON cannot be too deep for orjson, which writes 254 levels."""


class BodyTooLarge(InputError):
    """The body is over the limit of its route."""

    code = "body_too_large"

    @classmethod
    def of_size(cls, size_bytes: int, limit_bytes: int) -> BodyTooLarge:
        """Return the error for a body of this size."""
        return cls(
            f"the body has {size_bytes:,} bytes, the platform takes {limit_bytes:,}",
            hint="send a URL to the data instead of the data (a bucket or a network volume)",
            details={"size_bytes": size_bytes, "limit_bytes": limit_bytes},
        )


class ClientGone(Exception):
    """The other side hung up before its request was complete."""


async def read_body(receive: Receive, *, limit_bytes: int) -> bytes:
    """Return the request's whole body.

    Raises:
        BodyTooLarge: It is larger than `limit_bytes`.
        ClientGone: The connection ended first.
    """
    message = await _next_part(receive)
    body: bytes = message.get("body", b"")
    if not message.get("more_body") and len(body) <= limit_bytes:
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body") and size <= DISCARD_LIMIT_BYTES:
        message = await _next_part(receive)
        size += len(message.get("body", b""))
        if size <= limit_bytes:
            parts.append(message.get("body", b""))
    if size > limit_bytes:
        raise BodyTooLarge.of_size(size, limit_bytes)
    return b"".join(parts)


async def _next_part(receive: Receive) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def decode_json(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        InputError: It is not JSON (NaN and Infinity are not), or too deeply nested to be sent on.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InputError(f"the body is not JSON: {exc}", details={"start": _start_of(body)}) from exc
    if body.count(b"[") + body.count(b"{") > _UNSUSPICIOUS_BRACKETS:
        _check_depth(value)
    return value


def _start_of(body: bytes) -> str:
    return body[:80].decode(errors="replace")


def _check_depth(value: Any) -> None:
    try:
        orjson.dumps([[[[value]]]])  # answers wrap what came in, four levels at most
    except orjson.JSONEncodeError as exc:
        raise InputError("the body is nested too deeply", hint="stay below 200 levels") from exc


def encode_json(value: Any) -> bytes:
    """Return the JSON text of a value that came in as JSON."""
    return orjson.dumps(value)

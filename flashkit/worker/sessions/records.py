"""The bytes of a journal: one record a step, chained by checksums, compressed and encrypted where asked.

A record is a 26-byte header and a body. The header (big-endian) is magic `FK`, format, codec, kind, flags,
length of the body before compression and encryption, sequence number, checksum of the previous record, and
the checksum of header and body. The body is two lines of JSON: what is known about the step, and its output
as the caller encoded it, which is therefore parsed by nobody who does not need it.

Checksums find accidents. With a key, AES-GCM finds tampering too, and its associated data binds a record to
namespace, session, incarnation, number and kind, so none can be moved. Data never names code: what is read
are plain JSON values, which the running program puts into the types that it declares.
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol

import orjson

from flashkit.errors import ConfigurationError, FlashkitError, RecordCorrupt, RecordKeyMissing, RecordTooNew

FORMAT: Final = 1
"""The newest format that this version reads, and the one that it writes."""
COMPRESS_FROM_BYTES: Final = 32 << 10
MAX_RAW_BYTES: Final = 64 << 20
"""No record is larger: a length beyond it is damage, and is not decompressed."""

_MAGIC: Final = b"FK"
_HEADER: Final = Struct(">2sBBBBIQI")
_CRC: Final = Struct(">I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
_KEY_ID_AND_NONCE_BYTES: Final = 13
_TAG_BYTES: Final = 16


class Kind(IntEnum):
    """What a record tells. Numbers are stored: they never change."""

    INTENT = 1
    """A step with an effect is about to start."""
    RESULT = 2
    """A step returned."""
    ATTACH = 3
    """A call's job was submitted; the output is its id and where it runs."""
    ERROR = 4
    """A step failed for good; the output is the error's report."""
    INTERRUPT = 5
    """The session waits for an answer or event."""
    ANSWER = 6
    """It came."""
    TURN = 7
    """A turn began; the output is its input."""
    SNAPSHOT = 8
    """The state; not in the journal."""
    BLOB = 9
    """A large value; not in the journal."""
    MESSAGE = 10
    """A message of the inbox or its answer; not in the journal."""


class Flag(IntFlag):
    """How a body is stored."""

    ZLIB = 1
    ZSTD = 2
    AES_GCM = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a session's journal."""

    kind: Kind
    key: str
    """The step: its stable name in the session."""
    output: bytes = b"null"
    """JSON text."""
    digest: str = ""
    """Digest of the step's arguments."""
    blob: str | None = None
    """Name of the blob that holds the output instead."""
    started_ms: int = 0
    seconds: float = 0.0
    attempt: int = 1
    code: str = ""
    """Version of the code that ran the step."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the session layer adds: usage, traceparent, effect class; JSON values."""
    seq: int = 0
    """Its number in the journal; set by the store."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after a turn, or in the middle of one."""

    data: bytes
    """JSON text of the session layer's making."""
    turn: int
    seq: int = 0
    """It stands for all records up to this one; set by the store."""

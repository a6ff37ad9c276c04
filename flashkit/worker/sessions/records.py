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

import base64
import binascii
import hmac
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import Any, Final, NamedTuple

import orjson

from flashkit.errors import ConfigurationError, RecordCorrupt, RecordKeyMissing, RecordTooNew

zstd: Any = None
try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    pass  # zlib is always there; records that a better equipped worker compressed are refused with a hint

FORMAT: Final = 1
"""The newest format that this version reads, and the one that it writes. All formats share the header."""
COMPRESS_FROM_BYTES: Final = 32 << 10
MAX_RAW_BYTES: Final = 64 << 20
"""No record is larger: a length beyond it is damage, and is not decompressed."""

_ZLIB: Final = 1
_ZSTD: Final = 2
_AES_GCM: Final = 4

_MAGIC: Final = b"FK"
_HEADER: Final = Struct(">2sBBBBIQI")
_CRC: Final = Struct(">I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
_DAMAGE: Final[tuple[type[Exception], ...]] = (zlib.error, EOFError, *([zstd.ZstdError] if zstd else []))
_NONCE_BYTES: Final = 12
_KEY_ID_AND_NONCE_BYTES: Final = 1 + _NONCE_BYTES
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
    """A step failed and the handler went on, or what was known of it no longer counts: see `turn.Fate`."""
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
    NOTE = 11
    """What people should know of a step; nothing is replayed from it."""


_KINDS: Final = {int(kind): kind for kind in Kind}
_COMPRESSED: Final = (Kind.SNAPSHOT, Kind.BLOB)


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


class Place(NamedTuple):
    """Where bytes belong; encrypted ones can be read nowhere else."""

    namespace: str
    session: str
    incarnation: str


class Sealed(NamedTuple):
    """Bytes as they are stored, and their checksum, with which the next record is chained."""

    data: bytes
    crc: int


class Opened(NamedTuple):
    """What stored bytes hold."""

    kind: Kind
    seq: int
    previous: int
    crc: int
    body: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Keyring:
    """Keys of 16, 24 or 32 bytes by number; new data is encrypted with the active one."""

    keys: Mapping[int, bytes]
    active: int
    accept_plain: bool = False
    """Read data that was stored before there was a key; it can be forged by whoever can write to the store."""

    @classmethod
    def from_text(cls, text: str) -> Keyring:
        """Read `number:base64[,number:base64…]`; the first key is the active one.

        Raises:
            ConfigurationError: The text is something else.
        """
        keys: dict[int, bytes] = {}
        try:
            for part in text.split(","):
                number, _, secret = part.strip().partition(":")
                keys[int(number)] = base64.b64decode(secret, validate=True)
            return cls(keys, active=next(iter(keys)))
        except (ValueError, binascii.Error):
            raise ConfigurationError(
                "the keys for sessions cannot be read",
                hint="write them as number:base64 of 32 random bytes, several with commas, the active one first",
            ) from None

    def __post_init__(self) -> None:
        """Refuse keys that cannot be used, here instead of at the first write."""
        for number, key in self.keys.items():
            if not 0 <= number <= 255 or len(key) not in (16, 24, 32):  # noqa: PLR2004 - a byte; AES
                raise ConfigurationError(
                    f"key {number} for sessions has {len(key)} bytes",
                    hint="number keys from 0 to 255, and give each 32 random bytes",
                )
        if self.active not in self.keys:
            raise ConfigurationError(f"there is no key {self.active} for sessions to encrypt with")

    def encrypt(self, data: bytes, bound_to: bytes) -> bytes:
        """Return key number, nonce, and the encrypted data with its tag; the same for the same data and place.

        A write that is sent again is recognised by its checksum, so the nonce is not random but a digest of
        everything that is encrypted or bound, under a key of its own: it repeats only with all of that.
        """
        key = self.keys[self.active]
        digest = hmac.new(hmac.digest(key, b"flashkit nonce", "sha256"), bound_to + b"\0", "sha256")
        digest.update(data)
        nonce = digest.digest()[:_NONCE_BYTES]
        sealed: bytes = _aes_gcm(key).encrypt(nonce, data, bound_to)
        return bytes([self.active]) + nonce + sealed

    def decrypt(self, data: bytes, bound_to: bytes) -> bytes:
        """Return what was encrypted. Raises `RecordKeyMissing` or `RecordCorrupt`."""
        from cryptography.exceptions import InvalidTag

        if len(data) < _KEY_ID_AND_NONCE_BYTES + _TAG_BYTES:
            raise RecordCorrupt("a stored record is truncated")
        number = data[0]
        if number not in self.keys:
            raise _no_key(number)
        try:
            nonce, sealed = data[1:_KEY_ID_AND_NONCE_BYTES], data[_KEY_ID_AND_NONCE_BYTES:]
            return bytes(_aes_gcm(self.keys[number]).decrypt(nonce, sealed, bound_to))
        except InvalidTag:
            raise RecordCorrupt(
                f"a stored record does not open with key {number}: it was changed, moved, or that key is another one",
                hint="compare the worker's keys with those of the worker that wrote the session",
                details={"suspect": "keys"},
            ) from None


def seal(
    place: Place, kind: Kind, *body: bytes, seq: int = 0, previous: int = 0, keyring: Keyring | None = None
) -> Sealed:
    """Return the bytes to store for a body, which may come in pieces.

    Compresses large snapshots and blobs: call it in a thread for those.
    """
    flags, size, stored = 0, sum(map(len, body)), body
    if kind in _COMPRESSED and size > COMPRESS_FROM_BYTES:
        whole = b"".join(body)
        packed = zstd.compress(whole, 1) if zstd else zlib.compress(whole, 1)
        if len(packed) < size:
            stored, flags = (packed,), _ZSTD if zstd else _ZLIB
    if keyring is not None:
        flags |= _AES_GCM
    header = _HEADER.pack(_MAGIC, FORMAT, 0, kind, flags, size, seq, previous)
    if keyring is not None:
        stored = (keyring.encrypt(b"".join(stored), _binding(place, header)),)
    crc = zlib.crc32(header)
    for part in stored:
        crc = zlib.crc32(part, crc)
    return Sealed(b"".join((header, _CRC.pack(crc), *stored)), crc)


def unseal(place: Place, data: bytes, *, keyring: Keyring | None = None) -> Opened:
    """Return what stored bytes hold, verified.

    Raises:
        RecordCorrupt: They are damaged, truncated or belong elsewhere.
        RecordTooNew: A newer version wrote them, or one with a compression that is not installed here.
        RecordKeyMissing: They are encrypted with a key that is not in the keyring.
    """
    if len(data) < HEADER_BYTES or not data.startswith(_MAGIC):
        raise RecordCorrupt("a stored record is truncated" if len(data) < HEADER_BYTES else "bytes are no record")
    header, stored = data[: _HEADER.size], data[HEADER_BYTES:]
    (crc,) = _CRC.unpack_from(data, _HEADER.size)
    if zlib.crc32(stored, zlib.crc32(header)) != crc:
        raise RecordCorrupt("a stored record is damaged: its checksum is another one")
    _, written_format, codec, kind_number, flags, raw_bytes, seq, previous = _HEADER.unpack(header)
    known = written_format <= FORMAT and codec == 0 and flags < 2 * _AES_GCM
    kind = _KINDS.get(kind_number)
    if not known or kind is None:
        raise RecordTooNew(
            f"a stored record has format {written_format}.{codec}.{kind_number}; this flashkit reads up to {FORMAT}",
            hint="a newer flashkit wrote it: update this worker, or let the newer one go on with the session",
        )
    if flags & _AES_GCM:
        if keyring is None:
            raise _no_key(stored[0] if stored else None)
        stored = keyring.decrypt(stored, _binding(place, header))
    elif keyring is not None and not keyring.accept_plain:
        raise RecordCorrupt(
            "a stored record is not encrypted, although this worker has keys",
            hint="set accept_plain in the keyring while sessions from before there were keys are in use",
            details={"suspect": "keys"},
        )
    body = _unpack(stored, flags, raw_bytes)
    if len(body) != raw_bytes:
        raise RecordCorrupt(f"a stored record has {len(body)} bytes instead of {raw_bytes}")
    return Opened(kind, seq, previous, crc, body)


def encode_record(record: Record) -> tuple[bytes, bytes]:
    """Return a record's body: its first line, and the output as the caller encoded it."""
    known: dict[str, Any] = {"k": record.key, "s": record.started_ms, "t": record.seconds, "n": record.attempt}
    if record.digest:
        known["a"] = record.digest
    if record.blob:
        known["b"] = record.blob
    if record.code:
        known["c"] = record.code
    if record.extra:
        known["x"] = dict(record.extra)
    return orjson.dumps(known, option=orjson.OPT_APPEND_NEWLINE), record.output


def decode_record(opened: Opened) -> Record:
    """Return the record that a body tells of. Raises `RecordCorrupt`."""
    known, output = split_body(opened.body)
    try:
        return Record(
            kind=opened.kind,
            key=str(known["k"]),
            output=output,
            digest=str(known.get("a", "")),
            blob=known.get("b"),
            started_ms=int(known["s"]),
            seconds=float(known["t"]),
            attempt=int(known["n"]),
            code=str(known.get("c", "")),
            extra=known.get("x", {}),
            seq=opened.seq,
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise RecordCorrupt(f"record {opened.seq} lacks what a record has: {exc!r}") from exc


def encode_snapshot(snapshot: Snapshot) -> tuple[bytes, bytes]:
    """Return a snapshot's body: its first line, and the state as the caller encoded it."""
    return orjson.dumps({"turn": snapshot.turn}, option=orjson.OPT_APPEND_NEWLINE), snapshot.data


def decode_snapshot(opened: Opened) -> Snapshot:
    """Return the snapshot in a body. Raises `RecordCorrupt`."""
    known, data = split_body(opened.body)
    if opened.kind is not Kind.SNAPSHOT or not isinstance(known.get("turn"), int):
        raise RecordCorrupt("the stored snapshot is none")
    return Snapshot(data, turn=known["turn"], seq=opened.seq)


def split_body(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object in a body's first line, and the bytes after it. Raises `RecordCorrupt`."""
    line, newline, rest = body.partition(b"\n")
    try:
        known = orjson.loads(line)
    except ValueError as exc:
        raise RecordCorrupt(f"a stored record has no readable first line: {exc}") from exc
    if not newline or not isinstance(known, dict):
        raise RecordCorrupt("a stored record has no readable first line")
    return known, rest


def _binding(place: Place, header: bytes) -> bytes:
    return "|".join(place).encode() + b"|" + header


def _unpack(stored: bytes, flags: int, raw_bytes: int) -> bytes:
    if raw_bytes > MAX_RAW_BYTES:
        raise RecordCorrupt(f"a stored record claims {raw_bytes} bytes")
    try:
        if flags & _ZSTD:
            if zstd is None:
                raise RecordTooNew(
                    "a stored record is compressed with zstd, which is not installed here",
                    hint="pip install backports.zstd",
                )
            return bytes(zstd.ZstdDecompressor().decompress(stored, raw_bytes + 1))
        if flags & _ZLIB:
            return zlib.decompressobj().decompress(stored, raw_bytes + 1)
    except _DAMAGE as exc:
        raise RecordCorrupt(f"a stored record cannot be decompressed: {exc}") from exc
    return stored


def _aes_gcm(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as exc:
        raise ConfigurationError(
            "there are keys for sessions, but cryptography is not installed",
            hint="pip install 'flashkit-serverless[crypto]'",
        ) from exc
    return AESGCM(key)


def _no_key(number: int | None) -> RecordKeyMissing:
    return RecordKeyMissing(
        f"a stored record is encrypted with key {number}, which this worker does not have",
        hint="give the worker the keys that the session was written with",
    )

"""Threads of checkpoints in Redis or Valkey, as bytes: one hash a thread, one script call a change.

This module knows what a checkpointer stores, but no framework: records, channel values by version, pending
writes. All of a thread is one key, `fk1:{namespace:thread}:g`, so it is in one slot of a Cluster and ends at
one time; `:gn` beside it is a copy in the making. `fk1:{namespace}:gt` (threads by last change) and
`fk1:{namespace:run:id}:gr` (threads of a run) are only indexes: what they name and is gone is skipped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import ormsgpack

from flashkit.errors import InputError, PayloadTooLarge, RecordCorrupt, SessionBusy, SessionError, SessionFenced
from flashkit.worker.sessions.redis_client import RedisClient, Script

_LUA: Final = Path(__file__).parent / "lua"
_NUL: Final = "\0"
_LARGEST_VALUE_BYTES: Final = 8 << 20
_SET_ASIDE_BYTES: Final = 128
"""From this size on a value is stored by its digest, as often as it may occur."""
_COPIED_AT_ONCE: Final = 200
_MOST_PLANS: Final = 20
"""How often a plan to remove checkpoints is made anew because the thread changed meanwhile."""
_FRESH_SECONDS: Final = 60.0
"""A thread's place in the index is renewed after this time, or after a tenth of its lifetime."""
_REMEMBERED: Final = 10_000


class Place(StrEnum):
    """Where a new checkpoint may stand."""

    HEAD = "head"
    """On its parent, which must still be the thread's latest."""
    BRANCH = "branch"
    """On any parent that is there: somebody asked for it."""
    EMPTY = "empty"
    """First of all."""
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Record:
    """One checkpoint, without the values of its channels."""

    parent: str
    """Its parent's id, or nothing."""
    body: bytes
    metadata: bytes
    values: tuple[str, ...]
    """Names of its channels' values: `value_name(channel, version)`."""
    run: str = ""
    must_trace: tuple[str, ...] = ()
    """Channels whose value may have to be rebuilt from ancestors."""


@dataclass(frozen=True, slots=True)
class Write:
    """What a task wrote before the next checkpoint."""

    task: str
    path: str
    index: int
    channel: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint as it was read."""

    id: str
    is_head: bool
    record: Record
    values: dict[str, bytes]
    """By name; names without a value are missing."""
    writes: tuple[Write, ...]


_At = tuple[str, str]
"""Namespace and id of a checkpoint."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a thread holds, without its values."""

    revision: str
    fields: Sequence[bytes]
    records: dict[_At, Record]
    heads: dict[str, str]
    contents: dict[bytes, str]
    """Digests of the contents that values and writes name, by field."""


class StaleWriter(SessionFenced):
    """The thread has moved on since this run read it, so its checkpoint was refused and nothing was written."""


def value_name(channel: str, version: object) -> str:
    """Return the name under which a channel's value of one version is stored, once."""
    return require_plain(channel) + _NUL + require_plain(str(version))


def require_plain(name: str) -> str:
    """Return a name that may be part of a field's name. Raises `InputError`."""
    if not isinstance(name, str) or _NUL in name:
        raise InputError(f"{name!r} cannot name a thread, checkpoint, channel or task", hint="use text without NUL")
    return name


class Threads:
    """The threads of one namespace. All ids are text without NUL."""

    def __init__(self, client: RedisClient, *, namespace: str, retain_s: float) -> None:
        self._client = client
        self._namespace = namespace
        self._ttl_ms = round(retain_s * 1000)
        self._fresh_s = min(_FRESH_SECONDS, retain_s / 10)
        self._indexed: dict[str, float] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def put(
        self, thread: str, ns: str, checkpoint: str, record: Record, values: dict[str, bytes], *, place: Place
    ) -> None:
        """Store a checkpoint and the new values of its channels.

        Raises:
            StaleWriter: Its place is taken; nothing was written.
        """
        fields: dict[str, bytes] = {}
        for name, value in values.items():
            fields[_field("b", ns, name)] = _set_aside(_require_size(value, name), b"", fields)
        await self._index(thread, record.run)
        pairs = [item for pair in fields.items() for item in pair]
        arguments = [self._ttl_ms, ns, require_plain(checkpoint), record.parent, place, _pack_record(record), *pairs]
        reply = await self._run(_PUT, thread, arguments)
        if _text(reply[0]) == "STALE":
            raise _stale(thread, ns, record.parent, _text(reply[1]))

    async def put_writes(self, thread: str, ns: str, checkpoint: str, writes: Sequence[Write]) -> None:
        """Store what a task wrote; of an index that is there already, only negative ones are replaced."""
        triples: list[Any] = []
        contents: dict[str, bytes] = {}
        for write in writes:
            name = require_plain(write.task) + _NUL + str(write.index)
            origin = ormsgpack.packb((write.path, write.channel))
            packed = _set_aside(_require_size(write.value, write.channel), origin, contents)
            triples += [name, int(write.index < 0), packed]
        pairs = [item for pair in contents.items() for item in pair]
        if triples:
            arguments = [self._ttl_ms, ns, require_plain(checkpoint), len(contents), *pairs, *triples]
            await self._run(_WRITES, thread, arguments)

    async def get(self, thread: str, ns: str, checkpoint: str = "") -> Stored | None:
        """Return a checkpoint, the latest one without an id."""
        reply = await self._run(_GET, thread, [ns, checkpoint])
        if not reply:
            return None
        found, head, packed, names, values, contents, writes, written = reply
        record = _read_record(packed)
        whole = zip(record.values, values, contents, strict=True)
        return Stored(
            id=_text(found),
            is_head=found == head,
            record=record,
            values={name: _put_back(value, content)[1] for name, value, content in whole if value is not None},
            writes=tuple(_read_write(*parts) for parts in zip(names, writes, written, strict=True)),
        )

    async def ids(self, thread: str, ns: str | None = None) -> list[tuple[str, str]]:
        """Return namespaces and ids of a thread's checkpoints: namespaces in order, newest id first."""
        fields = await self._run(_IDS, thread, [ns or "", int(ns is not None)])
        pairs = [_split(field)[1:3] for field in fields]
        newest = sorted(pairs, key=lambda pair: pair[1], reverse=True)
        return [(pair[0], pair[1]) for pair in sorted(newest, key=lambda pair: pair[0])]

    async def threads(self) -> list[str]:
        """Return the threads, last changed first."""
        found = await self._client.command("ZREVRANGE", self._index_key, 0, -1)
        return [_text(thread) for thread in found]

    async def delete(self, thread: str) -> None:
        """Remove all of a thread."""
        await self._client.command("UNLINK", self._key(thread))
        await self._client.command("ZREM", self._index_key, thread)
        self._indexed.pop(thread, None)

    async def keep_latest(self, thread: str) -> None:
        """Remove all but the latest checkpoint of each namespace, and what it is rebuilt from."""
        await self._reduce(thread, _needed_by_heads)

    async def delete_run(self, run: str) -> None:
        """Remove the checkpoints that a run made, in all its threads."""
        key = self._run_key(run)
        for thread in await self._client.command("SMEMBERS", key):
            await self._reduce(_text(thread), lambda survey: _made_by_others(survey, run))
        await self._client.command("UNLINK", key)

    async def copy(self, source: str, target: str) -> None:
        """Copy all of a thread.

        Raises:
            SessionBusy: The target is there already.
        """
        flat = await self._client.command("HGETALL", self._key(source))
        pairs = list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))
        if not pairs:
            return
        keys = [self._key(target) + "n", self._key(target)]
        await self._client.command("UNLINK", keys[0])
        for start in range(0, len(pairs), _COPIED_AT_ONCE):
            part = [item for pair in pairs[start : start + _COPIED_AT_ONCE] for item in pair]
            await self._client.run(_COPY, keys, [self._ttl_ms, *part])
        await self._index(target, "")
        reply = await self._client.run(_COPY, keys, [self._ttl_ms])
        if _text(reply[0]) == "TAKEN":
            raise SessionBusy(f"thread {target!r} has checkpoints already", hint="copy to a thread that is new")
        survey = await self._survey(target)
        for run in {record.run for record in survey.records.values()} - {""}:
            await self._note_run(target, run)

    async def _survey(self, thread: str) -> _Survey:
        revision, fields, records, heads, contents = await self._run(_SURVEY, thread, [])
        return _Survey(
            revision=_text(revision),
            fields=fields,
            records={
                (parts[1], parts[2]): _read_record(packed)
                for parts, packed in zip(map(_split, records[::2]), records[1::2], strict=True)
            },
            heads={_split(field)[1]: _text(head) for field, head in zip(heads[::2], heads[1::2], strict=True)},
            contents={field: _text(digest) for field, digest in zip(contents[::2], contents[1::2], strict=True)},
        )

    async def _reduce(self, thread: str, choose: Callable[[_Survey], set[_At]]) -> None:
        """Keep the checkpoints that `choose` returns, and remove what only the others needed."""
        for _ in range(_MOST_PLANS):
            survey = await self._survey(thread)
            if not survey.fields:
                return
            kept = choose(survey)
            if not kept:
                await self.delete(thread)
                return
            heads, dropped = _plan(survey, kept)
            pairs = [item for pair in heads.items() for item in pair]
            reply = await self._run(_DROP, thread, [survey.revision, len(heads), *pairs, *dropped])
            if _text(reply[0]) == "OK":
                return
        raise SessionBusy(f"thread {thread!r} changes all the time", hint="remove checkpoints when it is idle")

    async def _run(self, script: Script, thread: str, arguments: Sequence[Any]) -> Any:
        return await self._client.run(script, [self._key(thread)], arguments)

    async def _index(self, thread: str, run: str) -> None:
        """Note a thread where it can be found without its id; before it is written, so none is ever missing."""
        now = time.time()
        if run:
            await self._note_run(thread, run)
        if now - self._indexed.get(thread, 0.0) < self._fresh_s:
            return
        await self._client.command("ZADD", self._index_key, round(now * 1000), thread)
        await self._client.command("ZREMRANGEBYSCORE", self._index_key, 0, round(now * 1000) - self._ttl_ms)
        await self._client.command("PEXPIRE", self._index_key, self._ttl_ms)
        if len(self._indexed) >= _REMEMBERED:
            self._indexed.clear()
        self._indexed[thread] = now

    async def _note_run(self, thread: str, run: str) -> None:
        key = self._run_key(run)
        now = time.time()
        if now - self._indexed.get(key + _NUL + thread, 0.0) < self._fresh_s:
            return
        await self._client.command("SADD", key, thread)
        await self._client.command("PEXPIRE", key, self._ttl_ms)
        self._indexed[key + _NUL + thread] = now

    def _key(self, thread: str) -> str:
        return f"fk1:{{{self._namespace}:{_quote(thread)}}}:g"

    def _run_key(self, run: str) -> str:
        return f"fk1:{{{self._namespace}:run:{_quote(run)}}}:gr"

    @property
    def _index_key(self) -> str:
        return f"fk1:{{{self._namespace}}}:gt"


def _read_script(name: str) -> Script:
    text = (_LUA / "head.lua").read_text() + (_LUA / f"{name}.lua").read_text()
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_PUT: Final = _read_script("put")
_WRITES: Final = _read_script("writes")
_GET: Final = _read_script("get")
_IDS: Final = _read_script("ids")
_SURVEY: Final = _read_script("survey")
_DROP: Final = _read_script("drop")
_COPY: Final = _read_script("copy")


def _made_by_others(survey: _Survey, run: str) -> set[_At]:
    return {at for at, record in survey.records.items() if record.run != run}


def _needed_by_heads(survey: _Survey) -> set[_At]:
    """Return the latest checkpoint of each namespace, with the ancestors that its channels are rebuilt from."""
    kept: set[_At] = set()
    for at in survey.heads.items():
        if at not in survey.records:
            continue
        kept.add(at)
        record = survey.records[at]
        missing = set(record.must_trace)
        while missing and (at := (at[0], record.parent)) in survey.records:
            kept.add(at)
            record = survey.records[at]
            missing &= set(record.must_trace)
    return kept


def _plan(survey: _Survey, kept: set[_At]) -> tuple[dict[str, str], list[bytes]]:
    """Return the heads' fields as they will be, and the fields to remove."""
    dropped = set(survey.records) - kept
    values = {(ns, name) for ns, checkpoint in kept for name in survey.records[ns, checkpoint].values}
    latest: dict[str, str] = {}
    for ns, checkpoint in kept:
        latest[ns] = max(latest.get(ns, ""), checkpoint)
    heads = {ns: head if (ns, head := survey.heads.get(ns, "")) in kept else newest for ns, newest in latest.items()}
    removed = {field for field in survey.fields if not _is_needed(_split(field), dropped, values, heads)}
    needed = {digest for field, digest in survey.contents.items() if field not in removed}
    removed |= {field for field in survey.fields if field[:2] == b"d\0" and _split(field)[1] not in needed}
    return {_field("h", ns): checkpoint for ns, checkpoint in heads.items()}, sorted(removed)


def _is_needed(parts: list[str], dropped: set[_At], values: set[tuple[str, str]], heads: dict[str, str]) -> bool:
    match parts:
        case ["c" | "n" | "w", ns, checkpoint, *_]:
            return (ns, checkpoint) not in dropped
        case ["b", ns, channel, version]:
            return (ns, channel + _NUL + version) in values
        case ["h", ns]:
            return ns in heads
    return True


def _field(*parts: str) -> str:
    return _NUL.join(parts)


def _split(field: bytes) -> list[str]:
    return _text(field).split(_NUL)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _quote(name: str) -> str:
    """Return the name as part of a key: braces would move the hash tag."""
    return require_plain(name).replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


def _pack_record(record: Record) -> bytes:
    """Return the length of the values' names, the names as the scripts read them, and the rest as msgpack."""
    names = "".join(name + _NUL for name in record.values).encode()
    rest = (record.parent, record.body, record.metadata, record.run, record.must_trace)
    return b"%d:%b%b" % (len(names), names, ormsgpack.packb(rest))


def _read_record(packed: bytes) -> Record:
    try:
        length, _, rest = packed.partition(b":")
        names, rest = rest[: int(length)].decode().split(_NUL), rest[int(length) :]
        parent, body, metadata, run, must_trace = ormsgpack.unpackb(rest)
    except (ValueError, TypeError) as exc:
        raise RecordCorrupt(f"a stored checkpoint is damaged: {exc}") from exc
    values = tuple(map(_NUL.join, zip(names[0:-1:2], names[1:-1:2], strict=True)))
    return Record(parent, body, metadata, values, run, tuple(must_trace))


def _set_aside(value: bytes, origin: bytes, contents: dict[str, bytes]) -> bytes:
    """Return a field's bytes; a large value goes into `contents`, and only its digest into the field."""
    if len(value) < _SET_ASIDE_BYTES:
        return b"=%d:%b%b" % (len(origin), origin, value)
    digest = hashlib.blake2b(value, digest_size=16).hexdigest()
    contents[_field("d", digest)] = value
    return b"#%b:%d:%b" % (digest.encode(), len(origin), origin)


def _put_back(packed: bytes, content: bytes | None) -> tuple[bytes, bytes]:
    """Return origin and value of a field. Raises `RecordCorrupt`."""
    try:
        digest, rest = (b"", packed[1:]) if packed[:1] == b"=" else packed[1:].split(b":", 1)
        length, rest = rest.split(b":", 1)
        origin, value = rest[: int(length)], rest[int(length) :]
    except ValueError as exc:
        raise RecordCorrupt(f"a stored value is damaged: {packed[:40]!r}") from exc
    if not digest:
        return origin, value
    if content is None or hashlib.blake2b(content, digest_size=16).hexdigest() != digest.decode():
        raise RecordCorrupt(f"the content {digest.decode()} of a checkpoint is damaged or missing")
    return origin, content


def _read_write(name: bytes, packed: bytes | None, content: bytes | None) -> Write:
    origin, value = _put_back(packed or b"", content)
    try:
        task, index = _split(name)
        path, channel = ormsgpack.unpackb(origin)
        return Write(task, path, int(index), channel, value)
    except (ValueError, TypeError) as exc:
        raise RecordCorrupt(f"a stored write of a task is damaged: {exc}") from exc


def _require_size(value: bytes, name: str) -> bytes:
    if len(value) > _LARGEST_VALUE_BYTES:
        raise PayloadTooLarge(
            f"the value of channel {name.partition(_NUL)[0]!r} has {len(value):,} bytes, "
            f"a checkpoint takes {_LARGEST_VALUE_BYTES:,}",
            hint="keep large data outside of the state and store where it is",
        )
    return value


def _stale(thread: str, ns: str, parent: str, head: str) -> SessionError:
    where = f"thread {thread!r}" + (f", namespace {ns!r}" if ns else "")
    base = f"checkpoint {parent}" if parent else "an empty thread"
    now = f"it is at {head} now" if head else "it has been deleted or has expired"
    return StaleWriter(
        f"{where}: this run built on {base}, but {now}; another run wrote to it, so this one's step was refused",
        hint="let only one run at a time work on a thread; read the thread's state and go on from there",
        details={"thread_id": thread, "checkpoint_ns": ns, "parent": parent, "head": head},
    )

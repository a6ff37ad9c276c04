"""What earlier versions stored is read, what newer ones will store is left alone (row 14).

The files in `golden/` are never changed; `golden/make.py` tells how a new format gets its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from struct import pack
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis

from flashkit.worker.sessions import records, runner
from flashkit.worker.sessions.records import (
    HEADER_BYTES,
    Kind,
    Place,
    Record,
    decode_record,
    encode_record,
    seal,
    unseal,
)
from tests.sessions.golden.make import FOLDER, KEYRING, NAMESPACE, PLACE, SESSION, TURN_2, make_agent
from tests.sessions.session_lab import Lab, Worker

FORMAT_AT, DAY_MS = 2, 86_400_000
RECORD_FILES = sorted(FOLDER.glob("records-*.json"))
SESSION_FILES = sorted(FOLDER.glob("session-*"))


def entries_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


ENTRIES = [pytest.param(each, id=f"{path.stem} {each['kind']} {each['how']} {at}")
           for path in RECORD_FILES for at, each in enumerate(entries_of(path))]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_stored_bytes_of_every_kind_hold_what_they_held(entry):
    stored = base64.b64decode(entry["stored"])
    keyring = KEYRING if "encrypted" in entry["how"] else None
    opened = unseal(PLACE, stored, keyring=keyring)
    assert (opened.kind.name, opened.seq, opened.previous) == (entry["kind"], entry["seq"], entry["previous"])
    if "record" in entry:
        assert decode_record(opened) == _record(entry["record"])
    else:
        assert opened.body == entry["body"].encode() * entry["times"]


def test_every_kind_is_among_them_in_every_way():
    """Failing for a new kind? Add it to golden/make.py and run that: it appends what is missing."""
    entries = [entry for path in RECORD_FILES for entry in entries_of(path)]
    for kind in Kind:
        ways = {entry["how"] for entry in entries if entry["kind"] == kind.name}
        assert {"plain", "encrypted"} <= ways, kind
        if kind in (Kind.SNAPSHOT, Kind.BLOB):
            assert {f"{how} {packing}" for how in ("plain", "encrypted") for packing in ("zlib", "zstd")} <= ways


def test_each_format_has_its_files_and_none_was_changed_without_a_new_number():
    """Failing? Count the format up, keep reading the old one, and run golden/make.py: workers differ in their age."""
    formats = range(1, records.FORMAT + 1)
    assert [path.name for path in RECORD_FILES] == [f"records-{number}.json" for number in formats]
    contents = range(1, runner._SNAPSHOT_FORMAT + 1)
    assert [path.name for path in SESSION_FILES] == [
        f"session-{number}.{store}" for number in contents for store in ("redis.json", "sqlite.sql")
    ]
    for number, path in zip(formats, RECORD_FILES, strict=True):
        assert {base64.b64decode(entry["stored"])[FORMAT_AT] for entry in entries_of(path)} == {number}


UNCOMPRESSED = [
    each for each in ENTRIES
    if f"records-{records.FORMAT} " in str(each.id) and each.values[0]["how"] in ("plain", "encrypted")
]  # fmt: skip
"""Another release of a library may compress better."""


@pytest.mark.parametrize("entry", UNCOMPRESSED)
def test_what_is_written_today_is_what_the_present_format_says(entry):
    keyring = KEYRING if "encrypted" in entry["how"] else None
    body = encode_record(_record(entry["record"])) if "record" in entry else (entry["body"].encode(),)
    kind, seq, previous = Kind[entry["kind"]], entry["seq"], entry["previous"]
    sealed = seal(PLACE, kind, *body, seq=seq, previous=previous, keyring=keyring)
    assert base64.b64encode(sealed.data).decode() == entry["stored"]


def _record(fields: dict[str, Any]) -> Record:
    return Record(**{**fields, "kind": Kind[fields["kind"]], "output": fields["output"].encode()})


# ------------------------------------------------------------------ whole sessions


class Golden:
    """A golden session, put into a store of its kind, where its bytes can be looked at and exchanged."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.database = url.removeprefix("sqlite:///")
        self.is_sqlite = path.name.endswith(".sql")

    async def put(self) -> None:
        """Put the session in, as if it had been written a moment ago by a worker that died since."""
        if self.is_sqlite:
            with sqlite3.connect(self.database) as db:
                db.executescript(self.path.read_text())
                db.execute("UPDATE head SET expires = ?", (round(time.time() * 1000) + DAY_MS,))
            return
        async with aioredis.from_url(self.url) as client:
            for key, value in json.loads(self.path.read_text()).items():
                await self._put_key(client, key, value)
                await client.pexpire(key, DAY_MS)

    async def _put_key(self, client: Any, key: str, value: Any) -> None:
        match value:
            case str():
                await client.set(key, base64.b64decode(value))
            case dict():
                await client.hset(key, mapping={name: base64.b64decode(text) for name, text in value.items()})
            case list():
                for number, fields in value:
                    await client.xadd(key, {name: base64.b64decode(text) for name, text in fields.items()}, id=number)

    async def journal(self) -> list[tuple[int, bytes]]:
        """Return the records as they are stored."""
        if self.is_sqlite:
            with sqlite3.connect(self.database) as db:
                return db.execute("SELECT seq, data FROM journal ORDER BY seq").fetchall()
        async with aioredis.from_url(self.url) as client:
            entries = await client.xrange(self._key("j"))
            return [(int(number.split(b"-")[0]), fields[b"r"]) for number, fields in entries]

    async def snapshot(self) -> bytes:
        """Return the snapshot as it is stored."""
        if self.is_sqlite:
            with sqlite3.connect(self.database) as db:
                return db.execute("SELECT data FROM snapshot").fetchone()[0]
        async with aioredis.from_url(self.url) as client:
            return await client.get(self._key("s"))

    async def end_with(self, last: bytes) -> None:
        """Put another record in the place of the last one."""
        seq, _ = (await self.journal())[-1]
        crc = int.from_bytes(last[HEADER_BYTES - 4 : HEADER_BYTES], "big")
        if self.is_sqlite:
            with sqlite3.connect(self.database) as db:
                db.execute("UPDATE journal SET data = ? WHERE seq = ?", (last, seq))
                db.execute("UPDATE head SET last = ?", (crc,))
            return
        async with aioredis.from_url(self.url) as client:
            entries = (await client.xrange(self._key("j")))[:-1]
            await client.delete(self._key("j"))
            for number, fields in entries:
                await client.xadd(self._key("j"), fields, id=number)
            await client.xadd(self._key("j"), {"r": last}, id=f"{seq}-0")
            await client.hset(self._key("m"), "last", crc)

    async def replace_snapshot(self, data: bytes) -> None:
        """Put another snapshot in the place of the stored one."""
        if self.is_sqlite:
            with sqlite3.connect(self.database) as db:
                db.execute("UPDATE snapshot SET data = ?", (data,))
            return
        async with aioredis.from_url(self.url) as client:
            await client.set(self._key("s"), data)

    def _key(self, name: str) -> str:
        return f"fk1:{{{NAMESPACE}:{SESSION}}}:{name}"


@pytest.fixture(params=SESSION_FILES, ids=lambda path: path.name)
async def golden(request, tmp_path, own_redis) -> Golden:
    is_sqlite = request.param.name.endswith(".sql")
    url = f"sqlite:///{tmp_path}/sessions.db" if is_sqlite else own_redis().url
    golden = Golden(request.param, url)
    await golden.put()
    return golden


@pytest.fixture
async def lab(golden: Golden) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        yield Lab(golden.url, NAMESPACE, stack)


async def pass_gate() -> None:
    await asyncio.sleep(0)


async def start_worker(lab: Lab, seen: list[str]) -> Worker:
    return await lab.worker(make_agent(seen, pass_gate), "new", keep_journals=True)


ANSWER = {
    "found": ["PLAN-TWO", "PART0-TWO", "PART1-TWO", 1_100_009, "PAY-TWO", {"by": "me"}, "LAST-TWO"],
    "topics": ["one", "two"],
    "messages": 2,
}


async def test_a_session_from_the_middle_of_a_turn_is_resumed_by_todays_code(golden, lab):
    seen: list[str] = []
    worker = await start_worker(lab, seen)
    assert await worker.answer("job-2", **TURN_2) == ANSWER
    assert seen == ["last-two"]
    first = await worker.answer("job-1", session_id=SESSION, q="one")  # the answer that was stored then
    assert (first["found"][0], first["topics"], seen) == ("PLAN-ONE", ["one"], ["last-two"])
    third = await worker.answer("job-4", session_id=SESSION, q="three")
    assert (third["topics"], third["messages"]) == (["one", "two", "three"], 3)


@pytest.mark.parametrize("newer", ["format", "kind"])
async def test_a_record_of_a_newer_flashkit_is_refused_and_the_session_left_untouched(golden, lab, newer):
    seq, old = (await golden.journal())[-1]
    await golden.end_with(changed(old, at={"format": 2, "kind": 4}[newer], to=200))
    before = (await golden.journal(), await golden.snapshot())
    seen: list[str] = []
    worker = await start_worker(lab, seen)
    for _ in range(7):  # more often than a session may fail
        assert (await worker.error("job-2", **TURN_2)).code == "record_too_new"
    head = await lab.head(SESSION)
    assert (await golden.journal(), await golden.snapshot()) == before
    assert (head.seq, head.is_held, head.status, seen) == (seq, False, "running", [])
    await golden.end_with(old)  # and whoever can read it goes on
    assert await worker.answer("job-2", **TURN_2) == ANSWER
    assert seen == ["last-two"]


async def test_a_snapshot_with_content_of_a_newer_flashkit_is_refused_and_left_untouched(golden, lab):
    old = await golden.snapshot()
    incarnation = (await lab.head(SESSION)).incarnation
    place = Place(NAMESPACE, SESSION, incarnation)
    opened = unseal(place, old)
    line, _, content = opened.body.partition(b"\n")
    newer = orjson.dumps({**orjson.loads(content), "format": runner._SNAPSHOT_FORMAT + 1})
    sealed = seal(place, Kind.SNAPSHOT, line + b"\n" + newer, seq=opened.seq, previous=opened.previous)
    await golden.replace_snapshot(sealed.data)
    seen: list[str] = []
    worker = await start_worker(lab, seen)
    error = await worker.error("job-2", **TURN_2)
    assert (error.code, seen) == ("record_too_new", [])
    assert await golden.snapshot() == sealed.data
    assert not (await lab.head(SESSION)).is_held
    await golden.replace_snapshot(old)
    assert await worker.answer("job-2", **TURN_2) == ANSWER


def changed(data: bytes, *, at: int, to: int) -> bytes:
    """Return a record with another byte in its header and the checksum of that."""
    header = bytearray(data[: HEADER_BYTES - 4])
    header[at] = to
    body = data[HEADER_BYTES:]
    return bytes(header) + pack(">I", zlib.crc32(body, zlib.crc32(header))) + body

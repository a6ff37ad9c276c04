"""Write what this version stores, so that every later one is held to reading it: see test_golden.py.

Run it when `records.FORMAT` or the content of snapshots gets a new number, or there is a new kind of record, and
commit the files:

    .venv/bin/python -m tests.sessions.golden.make

`records-N.json` has sealed bytes of every kind with the values that they hold. `session-N.redis.json` and
`session-N.sqlite.sql` are all keys and tables of a session whose worker died in the middle of its second turn. What is
there already stays as it is: what was released once does not change.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import redis.asyncio as aioredis
from pydantic import BaseModel

from flashkit import Session, orchestrator_endpoint
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime
from flashkit.worker.sessions import records, runner
from flashkit.worker.sessions.records import Keyring, Kind, Place, Record, Sealed, encode_record, seal
from tests.sessions.servers import RedisServer, require_binary
from tests.sessions.session_lab import until

FOLDER: Final = Path(__file__).parent
PLACE: Final = Place("golden", "s1", "00112233445566ff")
KEYRING: Final = Keyring({7: bytes(range(32))}, active=7)
NAMESPACE: Final = "golden"
SESSION: Final = "s1"
TURN_2: Final = {"session_id": SESSION, "q": "two"}

JOURNAL: Final = [
    Record(Kind.TURN, "turn:2", b'{"q":"zwei \xe2\x82\xac"}', digest="d0", started_ms=1_795_270_000_123, code="c0de",
           extra={"request": "job-2", "given_up": ["job-1"], "endpoint": "agent"}),
    Record(Kind.RESULT, "plan", b'[1,2.5,null,true,"x"]', digest="0123456789abcdef", started_ms=1_795_270_000_200,
           seconds=0.125, code="c0de", extra={"path": "", "n": 0}),
    Record(Kind.INTENT, "gather1[0]/pay#2", started_ms=1_795_270_000_300, attempt=2,
           extra={"path": "gather1[0]", "n": 1}),
    Record(Kind.ATTACH, "gather1[1]/call", b'{"id":"job-9","endpoint":"tool"}', extra={"path": "gather1[1]", "n": 0}),
    Record(Kind.ERROR, "gather1[0]/pay#2", b'{"code":"handler_error","message":"no"}', attempt=3),
    Record(Kind.INTERRUPT, "approve", b'{"timeout":60}'),
    Record(Kind.ANSWER, "approve", b'{"yes":true}'),
    Record(Kind.RESULT, "large", blob="ab" * 32, seconds=1.5, extra={"path": "", "n": 1}),
    Record(Kind.NOTE, "plan", b'{"code":"replay_changed"}', started_ms=1_795_270_000_400),
]  # fmt: skip
"""A record of every kind that the journal has, with every field in use somewhere."""
APART: Final = {
    Kind.SNAPSHOT: [(b'{"turn":1}\n{"state":{"n":1}}', 1), (b'{"turn":2}\n', 8_000)],
    Kind.BLOB: [(b'"a large value"', 1), (b"the same words ", 8_000)],
    Kind.MESSAGE: [(b'{"name":"approve","value":true}', 1)],
}
"""Bodies of what is kept beside it, each as a text and how often it is repeated; long ones are compressed."""
CHAINED_TO: Final = 0xDEADBEEF


class Notes(BaseModel):
    """The state of the agent below."""

    topics: list[str] = []


def make_agent(seen: list[str], gate: Callable[[], Awaitable[None]]) -> Callable[..., Any]:
    """Return the agent of the golden sessions. What it asks for stays as it is: old files have to fit it."""

    def work(name: str, size: int = 0) -> str:
        seen.append(name)
        return name.upper() + "x" * size

    async def last(name: str) -> str:
        seen.append(name)
        await gate()
        return name.upper()

    async def agent(session: Session[Notes], q: str) -> dict[str, Any]:
        plan = await session.step("plan", work, f"plan-{q}")
        parts = await session.gather(*(session.step("part", work, f"part{n}-{q}") for n in range(2)))
        large = await session.step("large", work, f"large-{q}", 1_100_000)
        paid = await session.effect("pay", work, f"pay-{q}", once=False)
        approved = await session.wait_for("approve") if q == "two" else None
        end = await session.step("last", last, f"last-{q}")
        session.state.topics.append(q)
        session.history.add("user", q)
        found = [plan, *parts, len(large), paid, approved, end]
        return {"found": found, "topics": session.state.topics, "messages": len(session.history)}

    return agent


def sealed_entries() -> Iterator[dict[str, Any]]:
    """Give every kind of stored bytes, with what reads them and what they hold."""
    for how, keyring in (("plain", None), ("encrypted", KEYRING)):
        previous = 0
        for seq, record in enumerate(JOURNAL, 1):
            sealed = seal(PLACE, record.kind, *encode_record(record), seq=seq, previous=previous, keyring=keyring)
            yield entry(how, record.kind, sealed, seq, previous, record=_readable(record, seq))
            previous = sealed.crc
        for kind, bodies in APART.items():
            for text, times in bodies:
                for packing in ("zstd", "zlib") if times > 1 else ("",):
                    sealed = _seal_with(packing, kind, text * times, keyring)
                    holds = {"body": text.decode(), "times": times}
                    yield entry(f"{how} {packing}".strip(), kind, sealed, 8, CHAINED_TO, **holds)


def entry(how: str, kind: Kind, sealed: Sealed, seq: int, previous: int, **holds: Any) -> dict[str, Any]:
    """Return one line of the file."""
    stored = base64.b64encode(sealed.data).decode()
    return {"how": how, "kind": kind.name, "seq": seq, "previous": previous, **holds, "stored": stored}


def _seal_with(packing: str, kind: Kind, body: bytes, keyring: Keyring | None) -> Sealed:
    """Seal with a compression; without zstd as a worker does that lacks it."""
    zstd = records.zstd
    if packing == "zstd" and zstd is None:
        sys.exit("golden files need zstd: pip install backports.zstd")
    records.zstd = None if packing == "zlib" else zstd
    try:
        return seal(PLACE, kind, body, seq=8, previous=CHAINED_TO, keyring=keyring)
    finally:
        records.zstd = zstd


def _readable(record: Record, seq: int) -> dict[str, Any]:
    return {**asdict(record), "kind": record.kind.name, "output": record.output.decode(), "seq": seq}


async def run_session(url: str, dump: Callable[[], Awaitable[str]]) -> str:
    """Return the dump of a session that is in the last step of its second turn."""
    gate = asyncio.Event()
    waits = False
    seen: list[str] = []

    async def pass_gate() -> None:
        if waits:
            await gate.wait()

    settings = Settings(
        state_url=url, state_namespace=NAMESPACE, worker_id="dead", base_url="http://127.0.0.1:1/v2", lease_seconds=2
    )
    runtime = Runtime(orchestrator_endpoint()(make_agent(seen, pass_gate)).definition, settings)
    await runtime.start()

    async def drop(chunk: bytes) -> None: ...

    async def run(job_id: str, data: dict[str, Any]) -> None:
        outcome = await runtime.run({"id": job_id, "input": data}, emit=drop)
        if outcome.error is not None:
            sys.exit(outcome.error.render())

    try:
        await run("job-1", {"session_id": SESSION, "q": "one"})
        event = {"session_id": SESSION, "event": {"name": "approve", "value": {"by": "me"}, "id": "m1"}}
        await run("job-2", TURN_2)  # waits for the event
        waits = True
        running = asyncio.create_task(run("job-3", event))
        await until(lambda: seen and seen[-1] == "last-two", seconds=30)
        dumped = await dump()
        gate.set()
        await running
    finally:
        await runtime.stop()
    return dumped


async def dump_redis(url: str) -> str:
    """Return all keys of the session as JSON."""
    keys: dict[str, Any] = {}
    async with aioredis.from_url(url) as client:
        async for key in client.scan_iter(f"fk1:{{{NAMESPACE}:{SESSION}}}:*"):
            match await client.type(key):
                case b"string":
                    keys[key.decode()] = _text(await client.get(key))
                case b"hash":
                    keys[key.decode()] = {name.decode(): _text(v) for name, v in (await client.hgetall(key)).items()}
                case b"stream":
                    entries = await client.xrange(key)
                    keys[key.decode()] = [
                        [number.decode(), {name.decode(): _text(v) for name, v in fields.items()}]
                        for number, fields in entries
                    ]
    return json.dumps(dict(sorted(keys.items())), indent=1) + "\n"


def dump_sqlite(path: Path) -> str:
    """Return all tables as SQL."""
    with sqlite3.connect(path) as db:
        return "\n".join(db.iterdump()) + "\n"


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


async def make_sessions(scratch: Path) -> dict[str, str]:
    """Return the texts of the session files by what stands after their number."""
    path = scratch / "sessions.db"

    async def from_sqlite() -> str:
        return await asyncio.to_thread(dump_sqlite, path)

    texts = {"sqlite.sql": await run_session(f"sqlite:///{path}", from_sqlite)}
    server = RedisServer(scratch / "redis", require_binary("redis")).start()
    try:
        texts["redis.json"] = await run_session(server.url, lambda: dump_redis(server.url))
    finally:
        server.kill()
    return texts


def append_records(path: Path) -> None:
    """Write the entries that the file lacks behind those that it has."""
    kept = json.loads(path.read_text()) if path.exists() else []
    known = {(each["kind"], each["how"]) for each in kept}
    new = [each for each in sealed_entries() if (each["kind"], each["how"]) not in known]
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in [*kept, *new])
    path.write_text(f"[\n{lines}\n]\n")
    print(f"{path.name}: {len(kept)} entries stay, {len(new)} are new")


def main() -> None:
    """Write the files of the present formats."""
    append_records(FOLDER / f"records-{records.FORMAT}.json")
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in asyncio.run(make_sessions(Path(scratch))).items():
            path = FOLDER / f"session-{runner._SNAPSHOT_FORMAT}.{name}"
            if path.exists():
                print(f"{path.name} stays")
            else:
                path.write_text(text)
                print(f"{path.name} is new")


if __name__ == "__main__":
    main()

"""What a deployed endpoint's worker prints, as `/serverless/{id}/workers/{workerId}/logs` streams it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request

from flashkit.emulator.bodies import encode_json
from flashkit.emulator.events import LogLine
from flashkit.emulator.management.problems import Problem, bad_request
from flashkit.emulator.recorder import Filter, Recorded, Recorder

DEFAULT_TAIL: Final = 100
_MOST_LINES: Final = 5_000
_HEARTBEAT_SECONDS: Final = 15.0
_CONTAINER: Final = "container"


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines are wanted first."""

    tail: int = DEFAULT_TAIL
    since: float | None = None
    """Seconds since 1970, instead of a number of lines."""
    after: int | None = None
    """The number of the last line that the reader has."""
    has_container: bool = True
    """False for the host's lines only, of which there are none here."""


def read_log_query(request: Request) -> LogQuery:
    """Return what the request asks for."""
    query = request.query_params
    source = query.get("source")
    if source not in (None, _CONTAINER, "system"):
        raise Problem(422, "source takes container, system")
    tail = query.get("tail", str(DEFAULT_TAIL))
    if not tail.isascii() or not tail.isdigit() or int(tail) > _MOST_LINES:
        raise Problem(422, f"tail takes 0 to {_MOST_LINES}")
    last, _, number = request.headers.get("last-event-id", "").partition("/")
    cursor = last or query.get("since")
    return LogQuery(
        int(tail),
        since=None if cursor is None else _read_time(cursor),
        after=int(number) if number.isascii() and number.isdigit() else None,
        has_container=source != "system",
    )


def _read_time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as exc:
        raise bad_request("since is no RFC 3339 time") from exc


async def follow_worker(recorder: Recorder, worker_id: str, query: LogQuery) -> AsyncGenerator[bytes]:
    """Yield a worker's lines as they come, beginning with the latest ones."""
    wanted = Filter(types=("log",), worker_id=worker_id)
    count = _MOST_LINES if query.since is not None else query.tail
    batch = recorder.latest(count, wanted=wanted) if count else recorder.after(recorder.count, limit=1, wanted=wanted)
    entries = [entry for entry in batch.entries if _is_wanted(entry, query)]
    yield b": lines of the worker\n\n"
    while True:
        if query.has_container:
            yield b"".join(_event(entry) for entry in entries)
        if recorder.is_closed and recorder.count == batch.next:
            return
        while not await recorder.wait(batch.next, seconds=_HEARTBEAT_SECONDS):
            yield b": still there\n\n"
        batch = recorder.after(batch.next, limit=_MOST_LINES, wanted=wanted)
        entries = batch.entries


def _is_wanted(entry: Recorded, query: LogQuery) -> bool:
    if query.after is not None:
        return entry.n > query.after
    return query.since is None or entry.at > query.since


def _event(entry: Recorded) -> bytes:
    ts = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    line = entry.event.text if isinstance(entry.event, LogLine) else ""
    data = encode_json({"source": _CONTAINER, "line": line, "ts": ts})
    return b"id: %b/%012d\ndata: %b\n\n" % (ts.encode(), entry.n, data)

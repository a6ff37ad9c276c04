"""Workers that die like in a power cut, right before or after a write of theirs.

A server without threads, which forks a worker for each line of JSON on its input and says how it ended:
starting Python for every death would take longer than all the rest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from flashkit import Session, orchestrator_endpoint
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime
from flashkit.worker.sessions import effect_key
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Lease

WRITES = frozenset({"commit", "release", "put_blob"})
DIES_AT_ONCE = 1000
LEASE_SECONDS = 0.5


class Notes(BaseModel):
    turns: int = 0


class Log:
    """What happened, in order, in a file that survives everybody."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def write(self, *words: str) -> None:
        with self.path.open("a") as file:
            file.write(" ".join(words) + "\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class DyingStore:
    """A store at whose n-th write the process dies: after it, or before it when n is negative."""

    def __init__(self, store: Any, dies_at: int, log: Log) -> None:
        self._store = store
        self._dies_at = dies_at
        self._log = log
        self._is_repeated = False
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._counted(found) if name in WRITES else found

    async def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Take the session; dies after it when it is to die after no write at all."""
        found = await self._store.acquire(*args, **kwargs)
        if isinstance(found, Lease) and self._dies_at == DIES_AT_ONCE:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def commit_soon(self, lease: Lease, records: Sequence[Record], change: Any, then: Callable[[Any], None]) -> bool:
        """Count it if it is sent; what `commit` has to see to afterwards is the same write still."""
        self._die_before(self.writes + 1)

        def end(moved: Lease | None) -> None:
            self._is_repeated = moved is None
            if moved is not None:
                self._die_after(number, records)
            then(moved)

        number = self.writes + 1
        is_sent: bool = self._store.commit_soon(lease, records, change, end)
        self.writes += is_sent
        return is_sent

    def _counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            is_repeated, self._is_repeated = self._is_repeated, False
            if not is_repeated:
                self._die_before(self.writes + 1)
                self.writes += 1
            number = self.writes
            result = await write(*args, **kwargs)
            self._die_after(number, args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
            return result

        return counted

    def _die_before(self, number: int) -> None:
        if number == -self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _die_after(self, number: int, records: Sequence[Record]) -> None:
        for record in records:
            if record.kind is Kind.RESULT:
                self._log.write("acknowledged", record.key)
        if number == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def make_agent(log: Log) -> Callable[..., Any]:
    """Return a handler with steps, a fan-out, a large result, an effect that happens once, and one of two ways."""

    def work(key: str, size: int = 0) -> str:
        log.write("ran", key)
        return key + "x" * size

    def search() -> str:
        if "searched in vain" in log.lines():
            return "found"
        log.write("searched", "in vain")
        raise LookupError("nothing found")

    def pay() -> str:
        log.write("paid", effect_key())
        return "receipt"

    def probe(key: str) -> str | None:
        return "receipt" if f"paid {key}" in log.lines() else None

    async def agent(session: Session[Notes], q: str) -> list[object]:
        plan = await session.step("plan", work, "plan")
        try:
            await session.step("found", str.upper, await session.step("search", search))
        except LookupError:
            await session.step("other way", str.upper, "other way")
        keys = ["part", *(f"part#{number}" for number in range(2, 9))]
        parts = await session.gather(*(session.step("part", work, key) for key in keys))
        large = await session.step("large", work, "large", 1_200_000)
        paid = await session.effect("pay", pay, probe=probe)
        rest = [await session.step(f"write{number}", work, f"write{number}") for number in range(4)]
        session.state.turns += 1
        session.history.add("assistant", q)
        return [plan, parts, len(large), paid, rest, session.state.turns, len(session.history)]

    return agent


async def run_worker(url: str, namespace: str, session: str, dies_at: int, path: str) -> dict[str, Any]:
    """Run the session's job and return how it ended."""
    log = Log(path)
    settings = Settings(
        state_url=url,
        state_namespace=namespace,
        worker_id=f"w{os.getpid()}",
        base_url="http://127.0.0.1:1/v2",
        lease_seconds=LEASE_SECONDS,
    )
    runtime = Runtime(orchestrator_endpoint()(make_agent(log)).definition, settings)
    await runtime.start()
    runner = runtime._sessions
    store = runner._store = DyingStore(runner._store, dies_at, log)
    job = {"id": f"job-{session}", "input": {"session_id": session, "q": "a"}}
    outcome = await asyncio.create_task(runtime.run(job, emit=_drop))
    await runtime.stop()
    error = outcome.error.render() if outcome.error else None
    return {"output": orjson.loads(outcome.output or b"null"), "error": error, "writes": store.writes}


async def _drop(chunk: bytes) -> None:
    """Nobody streams the job."""


def main() -> None:
    """Serve until the input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answer = asyncio.run(run_worker(**orjson.loads(line)))
            print(orjson.dumps(answer).decode(), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(orjson.dumps({"signal": os.WTERMSIG(status)}).decode(), flush=True)


if __name__ == "__main__":
    main()

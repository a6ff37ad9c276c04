"""One turn of a session taken out of its store, to be run again elsewhere from its journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from flashkit.errors import InputError, SessionError
from flashkit.settings import Settings
from flashkit.worker.sessions.forking import KEEPING_HINT, Plan, write_copy
from flashkit.worker.sessions.records import Snapshot
from flashkit.worker.sessions.store import Busy, Store, open_settings_store
from flashkit.worker.sessions.timeline import TurnRecords, split_turns
from flashkit.worker.sessions.turn import Memo

_OWNER = "replay"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A turn as it was recorded."""

    session: str
    endpoint: str
    turn: int
    steps: tuple[str, ...]
    """Keys of the steps that have an outcome."""
    output: Any
    has_output: bool
    plan: Plan

    @property
    def job_input(self) -> dict[str, Any]:
        """The input of a job that goes on with the turn."""
        return {"session_id": self.session, "event": None}

    async def copy_to(self, source: Store, settings: Settings) -> None:
        """Write the session as it was with this turn under way into the store of these settings."""
        store = open_settings_store(settings)
        try:
            lease = await store.acquire(self.session, _OWNER)
            if isinstance(lease, Busy):  # nobody else knows this store
                raise SessionError(f"the store for the replay of {self.session!r} is in use")
            await write_copy(store, lease, self.plan, source=source)
        finally:
            await store.close()


async def read_turn(store: Store, session: str, number: int | None) -> Recorded:
    """Return a turn of a session, the last one unless said.

    Raises:
        SessionNotFound: There is no such session.
        InputError: It has no such turn.
        SessionError: What the turn began with, or its steps, was not kept.
    """
    image = await store.load(session, strict=False)
    turns = split_turns(image.records)
    found = next((each for each in reversed(turns) if number in (None, each.number)), None)
    if found is None:
        what = "no turn" if number is None else f"no turn {number}"
        raise InputError(f"the journal of session {session!r} has {what}", hint=KEEPING_HINT)
    snapshots = [*await store.past(session), *([image.snapshot] if image.snapshot else [])]
    before = tuple(sorted((each for each in snapshots if each.seq < found.head.seq), key=lambda each: each.seq))
    if not before and found.number > 1:
        raise SessionError(f"the state before turn {found.number} of session {session!r} is gone", hint=KEEPING_HINT)
    end = max((record.seq for record in found.records), default=found.head.seq)
    kept = tuple(record for record in image.records if record.seq <= end)
    output, has_output = await _output_of(store, session, found, snapshots)
    memo = Memo.from_records(found.records)
    steps = tuple(key for key, step in memo.steps.items() if step.result or step.error)
    plan = Plan(image.head, kept, before, found, is_whole=False)
    return Recorded(session, str(found.head.extra.get("endpoint", "")), found.number, steps, output, has_output, plan)


async def _output_of(store: Store, session: str, turn: TurnRecords, snapshots: list[Snapshot]) -> tuple[Any, bool]:
    """Return the turn's output, and whether it has one."""
    request = turn.head.extra.get("request")
    for snapshot in snapshots:
        for result in orjson.loads(snapshot.data).get("results", ()):
            if request in (result.get("request"), result.get("began_by")):
                if "blob" in result:
                    return orjson.loads(await store.get_blob(session, result["blob"])), True
                return result.get("output"), True
    return None, False

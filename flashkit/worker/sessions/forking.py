"""Copies of sessions: all of one, or what it was before a step or turn, which then runs again in the copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from flashkit.errors import InputError, SessionError
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.store import KEPT_SNAPSHOTS, Change, Head, Image, Lease, Status, Store
from flashkit.worker.sessions.timeline import FORK_KEY, TurnRecords, is_fork_marker, split_turns
from flashkit.worker.sessions.turn import Memo

KEEPING_HINT: Final = "steps and states of past turns are kept under `flashkit dev`, or with FLASHKIT_KEEP_JOURNALS=1"
_RECORDS_PER_COMMIT: Final = 16
"""They may have a megabyte each."""


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a copy ends; without a step and a turn it is a copy of everything."""

    step: str | None = None
    """The first step that runs again."""
    turn: int | None = None
    """Of this turn; alone, the whole turn runs again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a copy has."""

    source: Head
    records: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...]
    """In order; the last one is the state with which the copied turn begins."""
    turn: TurnRecords | None
    """The one that goes on in the copy; None when all of them are over."""
    is_whole: bool
    state_version: int = 1
    """Of the state after the session's first turn, if that is known; the turn itself begins without one."""

    def with_state(self, state: Any) -> Plan:
        """Let the turn begin with another state."""
        *earlier, last = self.snapshots or (Snapshot(orjson.dumps(self._beginning()), turn=0),)
        edited = replace(last, data=orjson.dumps({**orjson.loads(last.data), "state": state}))
        return replace(self, snapshots=(*earlier, edited))

    def _beginning(self) -> dict[str, Any]:
        """Return what a snapshot before the first turn has in it."""
        return {"format": 1, "state_version": self.state_version, "history": [], "results": [], "events": []}


async def plan_copy(store: Store, session: str, at: ForkPoint) -> Plan:
    """Return what a copy of a session has when it ends at a point.

    Raises:
        InputError: There is no such step or turn.
        SessionError: The state before it was not kept.
    """
    image = await store.load(session)
    plan = _cut(image, at)
    snapshots = [*await store.past(session), *([image.snapshot] if image.snapshot else [])]
    end = image.head.seq + 1 if plan.turn is None else plan.turn.head.seq
    kept = tuple(sorted((each for each in snapshots if each.seq < end), key=lambda each: each.seq))
    if plan.turn is not None and not _leads_to(plan.turn, image.records, kept):
        raise SessionError(
            f"the state before turn {plan.turn.number} of session {session!r} is gone", hint=KEEPING_HINT
        )
    versions = [orjson.loads(each.data).get("state_version", 1) for each in snapshots]
    return replace(plan, snapshots=kept, state_version=versions[0] if versions else 1)


async def write_copy(store: Store, lease: Lease, plan: Plan, *, source: Store | None = None) -> None:
    """Write what a plan has into the new session of this lease, in the order in which it came about.

    Args:
        store: Where the copy goes.
        lease: Of the copy.
        plan: What it has.
        source: Where the original is, if that is another store.
    """
    original = source or store
    rest = [_marker(plan), *(record for record in plan.records if not is_fork_marker(record))]
    for name in _blob_names(plan):
        await store.put_blob(lease.session, await original.get_blob(plan.source.session, name))
    for snapshot in plan.snapshots:
        part = [record for record in rest if record.seq <= snapshot.seq]
        rest = rest[len(part) :]
        change = Change(snapshot=Snapshot(snapshot.data, snapshot.turn), trim=False, history=KEPT_SNAPSHOTS)
        lease = await _append(store, lease, part, change)
    await _append(store, lease, rest, _last_change(plan))


def _blob_names(plan: Plan) -> set[str]:
    """Return the blobs that a copy needs: large outputs of steps, and large answers beside snapshots.

    Of an earlier snapshot that is its own turn's answer: those before it are gone once the last snapshot has no use
    for them.
    """
    *earlier, last = [orjson.loads(each.data).get("results", []) for each in plan.snapshots] or [[]]
    results = [*(result for each in earlier for result in each[-1:]), *last]
    names = [record.blob for record in plan.records] + [result.get("blob") for result in results]
    return {name for name in names if name}


async def _append(store: Store, lease: Lease, records: Sequence[Record], change: Change) -> Lease:
    fresh = [replace(record, seq=0) for record in records]
    while len(fresh) > _RECORDS_PER_COMMIT:
        lease = await store.commit(lease, fresh[:_RECORDS_PER_COMMIT])
        fresh = fresh[_RECORDS_PER_COMMIT:]
    return await store.commit(lease, fresh, change)


def _cut(image: Image, at: ForkPoint) -> Plan:
    turns = split_turns(image.records)
    if at.step is None and at.turn is None:
        return Plan(image.head, image.records, (), turn_under_way(image), is_whole=True)
    found = _find_turn(image.head.session, turns, at)
    before = [record for record in image.records if record.seq <= found.head.seq]
    if at.step is None:
        return Plan(image.head, tuple(before), (), found, is_whole=False)
    end = next(record.seq for record in found.records if _is_step(record, at.step))
    kept = [record for record in found.records if record.seq < end]
    done = {key for key, step in Memo.from_records(kept).steps.items() if step.result or step.error}
    # A branch that was still under way at this point has no outcome here: it runs again, as a step of the copy.
    kept = [record for record in kept if record.kind is Kind.ANSWER or record.key in done]
    return Plan(image.head, (*before, *kept), (), found, is_whole=False)


def _find_turn(session: str, turns: Sequence[TurnRecords], at: ForkPoint) -> TurnRecords:
    for turn in reversed(turns):
        has_step = at.step is None or any(_is_step(record, at.step) for record in turn.records)
        if has_step and at.turn in (None, turn.number):
            return turn
    parts = (at.step and f"step {at.step!r}", f"turn {at.turn}" if at.turn is not None else None)
    what = " in ".join(part for part in parts if part)
    raise InputError(
        f"the journal of session {session!r} has no {what}",
        hint=f"see its steps: flashkit sessions show {session}; {KEEPING_HINT}",
    )


def _is_step(record: Record, key: str) -> bool:
    return record.key == key and record.kind not in (Kind.ANSWER, Kind.TURN)


def turn_under_way(image: Image) -> TurnRecords | None:
    """Return the turn that a job would resume, None when the last one is over."""
    turns = split_turns(image.records)
    is_open = bool(turns) and (image.snapshot is None or turns[-1].head.seq > image.snapshot.seq)
    return turns[-1] if is_open else None


def _leads_to(turn: TurnRecords, records: Sequence[Record], snapshots: Sequence[Snapshot]) -> bool:
    """True when the last of these snapshots is the state with which the turn began."""
    after = snapshots[-1].seq if snapshots else 0
    if not snapshots and records[0].seq != 1:
        return False  # the journal was trimmed, and the snapshot that it was trimmed for is gone
    between = [each for each in split_turns(records) if after < each.head.seq < turn.head.seq]
    given_up = turn.head.extra.get("given_up", ())
    return all(each.head.extra.get("request") in given_up for each in between)


def _marker(plan: Plan) -> Record:
    place = "" if plan.is_whole or plan.turn is None else f", turn {plan.turn.number}"
    return Record(Kind.ANSWER, FORK_KEY, extra={"fork": f"{plan.source.session}{place}"})


def _last_change(plan: Plan) -> Change:
    """Return the status with which the copy begins: the original's, or that of a turn that nobody runs."""
    head = plan.source
    if plan.is_whole and head.status is not Status.RUNNING:
        return Change(status=head.status, reason=head.reason, code=head.code, release=True)
    status = Status.IDLE if plan.turn is None else Status.RUNNING
    return Change(status=status, reason="", code=head.code, release=True)

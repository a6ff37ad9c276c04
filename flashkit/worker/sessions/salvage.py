"""What of a session's stored data is whole, and the data of the session once it ends there.

A session is whole up to the first record that is damaged, missing or of another chain. A damaged snapshot is
replaced by that of an earlier turn, where one was kept: the records after it lead to the same place. Nothing
is thrown away here: `admin.rewind` keeps all the bytes under another id first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from flashkit.errors import InputError, RecordCorrupt, RecordKeyMissing, SessionError
from flashkit.worker.sessions.forking import KEEPING_HINT
from flashkit.worker.sessions.records import (
    Keyring,
    Kind,
    Place,
    Record,
    Snapshot,
    decode_record,
    decode_snapshot,
    seal,
    unseal,
)
from flashkit.worker.sessions.store import Raw, Status

_NO_CHAIN: Final = 0
"""What the first record of a journal has for the checksum of the one before it."""


@dataclass(frozen=True, slots=True)
class RewindPoint:
    """Where a session is to end; without a step and a turn, where it stops being whole."""

    step: str | None = None
    """The last step that stays."""
    turn: int | None = None
    """Of this turn; alone, the end of this turn."""


class _Link(NamedTuple):
    """A record of the journal that is whole."""

    record: Record
    data: bytes
    crc: int


class _Base(NamedTuple):
    """A state from which records lead on."""

    snapshot: Snapshot | None
    """None for the beginning of the session."""
    data: bytes | None
    crc: int
    """Checksum of the last record that it stands for."""

    @property
    def seq(self) -> int:
        return self.snapshot.seq if self.snapshot else 0


class Salvage:
    """The data of one session, and what of it is whole."""

    def __init__(self, raw: Raw, *, namespace: str, keyring: Keyring | None) -> None:
        self._raw = raw
        self._place = Place(namespace, raw.head.session, raw.head.incarnation)
        self._keyring = keyring

    def end_at(self, point: RewindPoint) -> Raw:
        """Return the session's data when it ends at a point.

        Raises:
            InputError: There is no such step or turn in what is whole.
            SessionError: Nothing is whole.
            RecordTooNew: A newer flashkit wrote it.
            RecordKeyMissing: It is encrypted with a key that is not in the keyring.
        """
        bases = list(self._bases())
        for base in bases:
            links = _one_turn(self._follow(base.seq, base.crc, whole_blobs=True))
            kept = _cut(base, links, point)
            if kept is not None:
                return self._rebuilt(base, kept, [each for each in bases if each.seq < base.seq])
        session = self._raw.head.session
        if point == RewindPoint():
            raise SessionError(
                f"nothing of session {session!r} is whole: neither a snapshot nor the beginning of its journal",
                hint=f"keep its bytes with `flashkit sessions quarantine {session}`, or delete it",
            )
        parts = (point.step and f"step {point.step!r}", point.turn is not None and f"turn {point.turn}")
        raise InputError(
            f"session {session!r} has no {' in '.join(part for part in parts if part)} that is done and whole",
            hint=f"see its steps: flashkit sessions show {session}; {KEEPING_HINT}",
        )

    def moved_to(self, session: str, incarnation: str) -> Raw:
        """Return the data for another session; encrypted data is encrypted anew, as it is bound to its session.

        Bytes that do not open stay as they are.
        """
        head = replace(self._raw.head, session=session)
        if self._keyring is None:
            return replace(self._raw, head=head)
        place = self._place._replace(session=session, incarnation=incarnation)
        crcs: dict[int, int] = {}
        journal = tuple((seq, self._sealed_again(data, place, crcs)) for seq, data in self._raw.journal)
        return Raw(
            head=replace(head, last_crc=crcs.get(head.last_crc, head.last_crc)),
            journal=journal,
            snapshot=None if self._raw.snapshot is None else self._sealed_again(self._raw.snapshot, place, crcs),
            history={turn: self._sealed_again(data, place, crcs) for turn, data in self._raw.history.items()},
            blobs={name: self._blob_again(data, place) for name, data in self._raw.blobs.items()},
        )

    def _bases(self) -> Iterator[_Base]:
        """Give the states that are whole, the latest first."""
        past = [self._raw.history[turn] for turn in sorted(self._raw.history, reverse=True)]
        for data in filter(None, [self._raw.snapshot, *past]):
            try:
                opened = unseal(self._place, data, keyring=self._keyring)
                yield _Base(decode_snapshot(opened), data, opened.previous)
            except RecordCorrupt:
                continue
        yield _Base(None, None, _NO_CHAIN)

    def _follow(self, after: int, crc: int | None, *, whole_blobs: bool) -> list[_Link]:
        """Return the records that follow one without a gap."""
        links: list[_Link] = []
        for seq, data in self._raw.journal:
            if seq <= after:
                continue
            try:
                opened = unseal(self._place, data, keyring=self._keyring)
                if not opened.seq == seq == after + len(links) + 1 or crc not in (None, opened.previous):
                    break
                record = decode_record(opened)
                if whole_blobs and record.blob is not None:
                    self._require_blob(record.blob)
            except RecordCorrupt:
                break
            links.append(_Link(record, data, opened.crc))
            crc = opened.crc
        return links

    def _require_blob(self, name: str) -> None:
        opened = unseal(self._place._replace(incarnation=""), self._raw.blobs.get(name, b""), keyring=self._keyring)
        if hashlib.sha256(opened.body).hexdigest() != name:
            raise RecordCorrupt(f"large value {name[:12]}… is another one")

    def _rebuilt(self, base: _Base, links: Sequence[_Link], earlier: Sequence[_Base]) -> Raw:
        older = self._records_up_to(base)
        is_open = any(link.record.kind is Kind.TURN for link in links)
        head = replace(
            self._raw.head,
            seq=links[-1].record.seq if links else base.seq,
            last_crc=links[-1].crc if links else base.crc,
            snapshot_seq=base.seq,
            turn=base.snapshot.turn if base.snapshot else 0,
            status=Status.RUNNING if is_open else Status.IDLE,
            reason="",
        )
        return Raw(
            head=head,
            journal=tuple((link.record.seq, link.data) for link in [*older, *links]),
            snapshot=base.data,
            history={each.snapshot.turn: each.data for each in earlier if each.snapshot and each.data},
            blobs={},
        )

    def _records_up_to(self, base: _Base) -> list[_Link]:
        """Return the records that a snapshot stands for, for timelines; none when not all of them are whole."""
        first = self._raw.journal[0][0] if self._raw.journal else base.seq + 1
        links = self._follow(first - 1, _NO_CHAIN if first == 1 else None, whole_blobs=False)[: base.seq - first + 1]
        return links if links and links[-1].record.seq == base.seq and links[-1].crc == base.crc else []

    def _sealed_again(self, data: bytes, place: Place, crcs: dict[int, int]) -> bytes:
        try:
            opened = unseal(self._place, data, keyring=self._keyring)
        except (RecordCorrupt, RecordKeyMissing):
            return data
        previous = crcs.get(opened.previous, opened.previous)
        sealed = seal(place, opened.kind, opened.body, seq=opened.seq, previous=previous, keyring=self._keyring)
        crcs[opened.crc] = sealed.crc
        return sealed.data

    def _blob_again(self, data: bytes, place: Place) -> bytes:
        try:
            opened = unseal(self._place._replace(incarnation=""), data, keyring=self._keyring)
        except (RecordCorrupt, RecordKeyMissing):
            return data
        return seal(place._replace(incarnation=""), opened.kind, opened.body, keyring=self._keyring).data


def _cut(base: _Base, links: Sequence[_Link], point: RewindPoint) -> Sequence[_Link] | None:
    """Return the records that stay after a base; None when the point is not there."""
    if point.step is None:
        is_end_of_turn = base.snapshot is not None and base.snapshot.turn == point.turn
        if point.turn is not None:
            return () if is_end_of_turn else None
        return links if base.snapshot or links else None
    turn, found = 0, None
    for index, (record, _, _) in enumerate(links):
        if record.kind is Kind.TURN:
            turn = int(record.key.partition(":")[2])
        is_done = record.key == point.step and record.kind is Kind.RESULT
        if is_done and point.turn in (None, turn):
            found = index
    return None if found is None else links[: found + 1]


def _one_turn(links: Sequence[_Link]) -> Sequence[_Link]:
    """Return the records of the first turn, and of those that only took the place of one that was given up."""
    requests: list[object] = []
    for index, link in enumerate(links):
        if link.record.kind is Kind.TURN:
            if requests and requests[-1] not in link.record.extra.get("given_up", ()):
                return links[:index]
            requests.append(link.record.extra.get("request"))
    return links

"""Random lives of a session, on every store, against a model (row 6 of the test matrix)."""

import asyncio
import itertools
import time
import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flashkit.errors import SessionFenced
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.store import NO_CHANGE, Busy, Change, Status, open_store
from tests.sessions.session_lab import commit_soon

WORKERS = ("w1", "w2", "w3")
PARTS = ("snapshot", "trim", "release")
KINDS = st.sampled_from([Kind.RESULT, Kind.INTENT, Kind.ERROR])


class SessionMachine(RuleBasedStateMachine):
    """Workers with leases, old ones among them, take turns in one session."""

    url = ""
    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = open_store(self.url, namespace=uuid.uuid4().hex, budget_s=5)
        self.keys = (f"k{number}" for number in itertools.count())
        self.fence = 0
        self.holder = None
        self.valid_fence = None
        self.journal = []
        self.seq = 0
        self.snapshot = None
        self.posted = []
        self.consumed = 0
        self.present = None
        self.last_commit = None

    def do(self, call):
        return self.runner.run(call)

    def teardown(self):
        self.do(self.store.close())
        self.runner.close()

    def keeper(self, lease):
        """Return who has the session after a renewal: nobody, soon after a short one."""
        if lease.ttl_s > 1:
            return lease.owner
        time.sleep(0.003)
        return None

    @rule(target=leases, worker=st.sampled_from(WORKERS), steal=st.booleans())
    def acquire(self, worker, steal):
        witness = None
        if steal and self.holder is not None:
            head = self.do(self.store.head("s"))
            witness = head.heartbeat
        outcome = self.do(self.store.acquire("s", worker, ttl_s=600, witness=witness, max_attempts=10**6))
        if self.holder not in (None, worker) and witness is None:
            assert isinstance(outcome, Busy)
            assert outcome.owner == self.holder
            return multiple()
        self.fence += 1
        assert (outcome.fence, outcome.seq) == (self.fence, self.seq)
        assert outcome.pending == len(self.posted) - self.consumed
        self.holder, self.valid_fence, self.last_commit = worker, self.fence, None
        return outcome

    @rule(target=leases, worker=st.sampled_from(WORKERS))
    def acquire_for_a_moment(self, worker):
        """The lease has run out when the next one asks; its owner may write as long as nobody did."""
        outcome = self.do(self.store.acquire("s", worker, ttl_s=0.001, max_attempts=10**6))
        if self.holder not in (None, worker):
            assert isinstance(outcome, Busy)
            return multiple()
        time.sleep(0.003)
        self.fence += 1
        assert (outcome.fence, outcome.seq) == (self.fence, self.seq)
        self.holder, self.valid_fence, self.last_commit = None, self.fence, None
        return outcome

    @rule(lease=leases, kinds=st.lists(KINDS, max_size=3), soon=st.booleans())
    def append(self, lease, kinds, soon):
        """Write records and nothing else, as steps do."""
        current = self.present if self.present is not None and self.present.fence == lease.fence else lease
        records = [Record(kind, next(self.keys)) for kind in kinds]
        commit = commit_soon if soon else type(self.store).commit
        if lease.fence != self.valid_fence:
            with pytest.raises(SessionFenced):
                self.do(commit(self.store, current, records, NO_CHANGE))
            return
        self.present = self.do(commit(self.store, current, records, NO_CHANGE))
        self.note_records(records)
        self.last_commit = (current, records, NO_CHANGE)
        self.holder = self.keeper(lease)

    def note_records(self, records):
        self.seq += len(records)
        self.journal += [record.key for record in records]
        assert (self.present.seq, self.present.pending) == (self.seq, len(self.posted) - self.consumed)

    @rule(lease=leases, kinds=st.lists(KINDS, max_size=3), what=st.sets(st.sampled_from(PARTS)), take=st.integers(0, 2))
    def commit(self, lease, kinds, what, take):
        snapshot, trim, release = (part in what for part in PARTS)
        current = self.present if self.present is not None and self.present.fence == lease.fence else lease
        records = [Record(kind, next(self.keys)) for kind in kinds]
        consumed = min(len(self.posted), self.consumed + take)
        data = b'"%d"' % self.seq
        change = Change(
            snapshot=Snapshot(data, self.seq + 1) if snapshot else None, trim=trim, consumed=consumed, release=release,
            answers=tuple((name, b"to " + name.encode()) for name in self.posted[self.consumed : consumed]),
        )  # fmt: skip
        if lease.fence != self.valid_fence:
            with pytest.raises(SessionFenced):
                self.do(self.store.commit(current, records, change))
            return
        self.present = self.do(self.store.commit(current, records, change))
        self.consumed = consumed
        self.note_records(records)
        if snapshot:
            self.snapshot = (data, self.seq)
            self.journal = [] if trim else self.journal
        self.last_commit = (current, records, change)
        self.holder = None if release else self.keeper(lease)

    @precondition(lambda self: self.last_commit and self.last_commit[1])
    @rule()
    def lose_the_reply(self):
        lease, records, change = self.last_commit
        again = self.do(self.store.commit(lease, records, change))
        self.holder = None if change.release else self.keeper(lease)
        assert again.seq == self.seq

    @rule(lease=leases)
    def renew(self, lease):
        if lease.fence != self.valid_fence:
            with pytest.raises(SessionFenced):
                self.do(self.store.renew(lease))
        else:
            self.do(self.store.renew(lease))
            self.holder = self.keeper(lease)

    @rule(lease=leases)
    def release(self, lease):
        self.do(self.store.release(lease))
        if lease.fence == self.valid_fence:
            self.holder = None

    @rule(number=st.integers(0, 5))
    def post(self, number):
        posted = self.do(self.store.post("s", f"m{number}", b"x"))
        assert posted.duplicate == (f"m{number}" in self.posted)
        if not posted.duplicate:
            self.posted.append(f"m{number}")
        assert posted.position == self.posted.index(f"m{number}") + 1
        is_answered = posted.position <= self.consumed
        assert posted.answer == (f"to m{number}".encode() if is_answered else None)

    @rule()
    def load(self):
        if self.fence == 0:
            return
        image = self.do(self.store.load("s"))
        assert [record.key for record in image.records] == self.journal
        assert (image.snapshot and (image.snapshot.data, image.snapshot.seq)) == self.snapshot
        assert [message.id for message in self.do(self.store.inbox("s"))] == self.posted[self.consumed :]

    @invariant()
    def the_head_is_the_models(self):
        head = self.do(self.store.head("s"))
        if self.fence:
            assert (head.seq, head.fence, head.is_held) == (self.seq, self.fence, self.holder is not None)
            assert head.status is Status.RUNNING
        else:
            assert (head is not None) == bool(self.posted)


def test_every_store_behaves_as_the_model(store_url):
    machine = type("SessionMachineOn" + store_url.partition(":")[0], (SessionMachine,), {"url": store_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

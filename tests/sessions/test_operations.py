"""What several processes asked and were answered is checked as one history in real time (row 7)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tests.sessions.test_races import finish, start_worker


@dataclass(frozen=True)
class Operation:
    """One call that was acknowledged; the clock is the machine's, the same for all processes."""

    fence: int
    seq: int
    """Of the record that a commit wrote; what an acquisition found."""
    asked: float
    answered: float

    def is_before(self, other: Operation) -> bool:
        """Return whether it was over before the other one was asked for."""
        return self.answered < other.asked


def read_history(held: list[dict[str, Any]]) -> tuple[list[Operation], list[Operation]]:
    """Return acquisitions and commits."""
    acquisitions = [Operation(fence=lease["fence"], **lease["acquired"]) for lease in held]
    commits = [Operation(lease["fence"], int(seq), **times) for lease in held for seq, times in lease["times"].items()]
    return acquisitions, commits


def find_anomalies(acquisitions: list[Operation], commits: list[Operation]) -> list[str]:
    """Return what cannot happen with one writer at a time whose acknowledged writes stay."""
    found = []
    fences = [one.fence for one in acquisitions]
    if len(set(fences)) < len(fences):
        found.append("two owners had one fence")
    if sorted(one.seq for one in commits) != list(range(1, len(commits) + 1)):
        found.append("the acknowledged records are not numbered one by one")
    for first, second in itertools.permutations(acquisitions, 2):
        if first.is_before(second) and not first.fence < second.fence:
            found.append(f"fence {second.fence} was given after {first.fence}")
    for first, second in itertools.permutations(commits, 2):
        if first.is_before(second) and not first.seq < second.seq:
            found.append(f"record {second.seq} was written after {first.seq}")
    for acquired, commit in itertools.product(acquisitions, commits):
        if acquired.is_before(commit) and commit.fence < acquired.fence:
            found.append(f"fence {commit.fence} wrote record {commit.seq} after {acquired.fence} had the session")
        if commit.is_before(acquired) and acquired.seq < commit.seq:
            found.append(f"fence {acquired.fence} did not see the acknowledged record {commit.seq}")
    return found


async def test_the_history_of_racing_processes_has_no_anomaly(store, store_url, namespace):
    workers = [start_worker(store_url, namespace, f"w{number}", tries=30, ttl_s=0.02) for number in range(5)]
    acquisitions, commits = read_history([lease for worker in workers for lease in await finish(worker)])
    assert len(commits) > 10
    assert find_anomalies(acquisitions, commits) == []
    assert (await store.head("s")).seq == len(commits)


def test_the_checker_finds_what_it_is_for():
    def at(moment: int, fence: int, seq: int) -> Operation:
        return Operation(fence, seq, asked=moment, answered=moment + 0.5)

    sound = ([at(0, 1, 0), at(3, 2, 1)], [at(1, 1, 1), at(4, 2, 2)])
    assert find_anomalies(*sound) == []
    assert find_anomalies([at(0, 1, 0), at(1, 1, 0)], [])
    assert find_anomalies([at(0, 2, 0), at(1, 1, 0)], [])
    assert find_anomalies([at(0, 1, 0)], [at(1, 1, 2)])
    assert find_anomalies([at(0, 1, 0)], [at(1, 1, 2), at(2, 1, 1)])
    assert find_anomalies([at(0, 1, 0), at(1, 2, 0)], [at(2, 1, 1)])
    assert find_anomalies([at(0, 1, 0), at(2, 2, 0)], [at(1, 1, 1)])

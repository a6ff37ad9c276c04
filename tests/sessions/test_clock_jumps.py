"""A server whose clock jumps and drifts under workers with leases: Valkey under libfaketime (row 11)."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from flashkit.errors import SessionFenced
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Busy, Store
from tests.sessions.owner_process import make_agent
from tests.sessions.servers import FakeClock, RedisServer, require_binary, require_faketime
from tests.sessions.session_lab import Lab, until

LEASE_S = 0.15
PHASES = [
    {"hours": 1},
    {"hours": 0},
    {"hours": -1},
    {"hours": 1},
    {"hours": 1, "rate": 20},
    {"hours": -1, "rate": 0.05},
]


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> FakeClock:
    return FakeClock(require_faketime(), tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def server(clock: FakeClock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("clocked")
    server = RedisServer(folder, require_binary("valkey"), environ=clock.environ).start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def true_time(clock: FakeClock) -> None:
    clock.set()


@pytest.fixture
async def lab(server: RedisServer, namespace: str) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        yield Lab(server.url, namespace, stack)


@dataclass
class Log:
    """What the workers know of one session."""

    acknowledged: dict[int, str] = field(default_factory=dict)
    """The key of a record by its number."""
    fences: list[int] = field(default_factory=list)
    fenced: int = 0
    stolen: int = 0


async def live(store: Store, name: str, log: Log, seed: int) -> None:
    """Take the session again and again, write to it, stall with it, die with it without a word."""
    rng = random.Random(seed)
    heartbeat, since = None, 0.0
    while True:
        now = asyncio.get_running_loop().time()
        witness = heartbeat if heartbeat is not None and now - since > 2 * LEASE_S else None
        lease = await store.acquire("s", name, ttl_s=LEASE_S, witness=witness, max_attempts=10**6)
        if isinstance(lease, Busy):
            if lease.heartbeat != heartbeat:
                heartbeat, since = lease.heartbeat, now
            await asyncio.sleep(rng.uniform(0, LEASE_S / 4))
            continue
        log.stolen += witness is not None
        log.fences.append(lease.fence)
        heartbeat = None
        try:
            for _ in range(3):
                await asyncio.sleep(rng.choice([0, 0, 0, 3 * LEASE_S]))  # stalls for longer than its lease
                key = f"{name}:{lease.fence}:{lease.seq + 1}"
                lease = await store.commit(lease, [Record(Kind.RESULT, key)])
                assert lease.seq not in log.acknowledged
                log.acknowledged[lease.seq] = key
            if rng.random() < 0.5:
                await store.release(lease)
        except SessionFenced:
            log.fenced += 1
        # Else it dies with the lease, and comes back as another worker would.
        name = f"{name.partition('.')[0]}.{lease.fence}"


async def test_whatever_the_clock_does_one_worker_writes_and_nothing_acknowledged_is_lost(server, clock, make_store):
    log = Log()
    workers = [asyncio.create_task(live(make_store(server.url), f"w{n}", log, seed=n)) for n in range(4)]

    def has_grown(records: int, fences: int) -> bool:
        for worker in workers:
            if worker.done():
                worker.result()
        return len(log.acknowledged) >= records and len(log.fences) >= fences

    for phase in PHASES:
        clock.set(**phase)
        records, fences = len(log.acknowledged) + 10, len(log.fences) + 5
        await until(lambda records=records, fences=fences: has_grown(records, fences), seconds=60)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)

    stored = (await make_store(server.url).load("s")).records
    by_seq = {record.seq: record.key for record in stored}
    assert {seq: by_seq.get(seq) for seq in log.acknowledged} == log.acknowledged
    assert len(stored) - len(log.acknowledged) <= len(workers)  # those whose answer was under way at the end
    written_by = [int(record.key.split(":")[1]) for record in stored]
    assert written_by == sorted(written_by)  # nobody wrote once a later owner could
    assert len(set(log.fences)) == len(log.fences)
    assert log.stolen > 0
    assert log.fenced > 0


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_job_whose_worker_died_before_the_jump_goes_on_elsewhere(clock, lab, tmp_path, hours):
    """Another job than the dead worker's: nobody says that this one is dead but its silence."""
    log = tmp_path / "log"
    owner = start_owner(lab, log)
    try:
        await until(lambda: log.exists() and "slow owner" in log.read_text(), seconds=30)
        clock.set(hours=hours)
        owner.send_signal(signal.SIGKILL)
        heir = await lab.worker(make_agent("heir", log, stall=False), "heir", lease_seconds=0.5)
        assert await heir.answer("j2", session_id="s", q="a") == ["slow", "last"]
    finally:
        owner.kill()
        owner.communicate()
    assert log.read_text().split("\n")[:-1] == ["first owner", "slow owner", "slow heir", "last heir"]


async def test_an_owner_that_is_stopped_over_a_jump_forward_is_fenced_when_it_goes_on(clock, lab, tmp_path):
    log = tmp_path / "log"
    owner = start_owner(lab, log, lease_s=3)
    try:
        await until(lambda: log.exists() and "slow owner" in log.read_text(), seconds=30)
        owner.send_signal(signal.SIGSTOP)
        clock.set(hours=1)
        heir = await lab.worker(make_agent("heir", log, stall=False), "heir", lease_seconds=0.5)
        assert await heir.answer("j2", session_id="s", q="a") == ["slow", "last"]
        owner.send_signal(signal.SIGCONT)
        await until(lambda: owner.poll() is not None, seconds=60)
    finally:
        owner.kill()
        out, _ = owner.communicate()
    assert orjson.loads(out)["error"] == "session_fenced"
    assert log.read_text().split("\n")[:-1] == ["first owner", "slow owner", "slow heir", "last heir"]


async def test_a_worker_that_lives_keeps_its_session_over_a_jump_back(clock, lab, tmp_path):
    """Its renewals go on, so its heartbeat is no witness for anybody; the other job waits until the turn is over."""
    log = tmp_path / "log"
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "slow"

    async def agent(session, q: str) -> str:
        return await session.step("slow", slow)

    owner = await lab.worker(agent, "w1", lease_seconds=0.3)
    running = owner.start("j1", session_id="s", q="a")
    await until(lambda: bool(owner.runtime._sessions._turns), seconds=30)
    clock.set(hours=-1)
    before = (await lab.head("s")).heartbeat
    rival = await lab.worker(make_agent("rival", log, stall=False), "w2", lease_seconds=0.3)
    waiting = rival.start("j2", session_id="s", q="b")
    while (await lab.head("s")).heartbeat < before + 12:  # four leases long
        await asyncio.sleep(0.02)
    head = await lab.head("s")
    assert (head.owner, head.fence, waiting.done()) == ("w1", 1, False)
    gate.set()
    assert (await running).output == b'"slow"'
    assert (await waiting).error is None


def start_owner(lab: Lab, log: Path, *, lease_s: float = 0.5) -> subprocess.Popen[bytes]:
    """Start a worker in a process of its own, which stalls in its second step."""
    command = [sys.executable, "-m", "tests.sessions.owner_process"]
    arguments = [lab.url, lab.namespace, "owner", str(log), str(lease_s), "stall"]
    return subprocess.Popen([*command, *arguments], cwd=Path(__file__).parents[2], env={}, stdout=subprocess.PIPE)

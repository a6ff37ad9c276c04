"""Several workers and one volume: one brings the model, whoever dies or sleeps meanwhile."""

import json
import os
import signal
import threading
import time

import pytest

from flashkit.worker.weights.leases import Lease, Pace, Watch, holder_facts, holder_is_gone, read_lease
from tests.weights.conftest import COMMIT, contents, safetensors

BIG = {"config.json": b"{}", "model.safetensors": safetensors(3_000_000)}
PARTS = 31
QUICK = Pace(beat_seconds=0.02, dead_seconds=0.3, poll_seconds=0.01)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.lease"


def test_a_lease_has_one_holder_and_is_free_after_it(file):
    first, second = Lease(file, pace=QUICK), Lease(file, pace=QUICK)
    assert first.try_acquire()
    with first:
        assert not second.try_acquire()
    assert not file.exists()
    assert second.try_acquire()


def test_a_lease_is_free_after_an_error_too(file):
    lease = Lease(file, pace=QUICK)
    assert lease.try_acquire()
    with pytest.raises(KeyError), lease:
        raise KeyError
    assert not file.exists()


def test_a_living_holder_shows_what_it_does_and_is_never_dead(file):
    lease = Lease(file, lambda: {"done": 3}, QUICK)
    assert lease.try_acquire()
    watch = Watch(QUICK)
    with lease:
        for _ in range(60):
            assert watch.look(file) is None
            time.sleep(0.01)
        facts = holder_facts(read_lease(file))
    assert facts["done"] == 3
    assert facts["beat"] > 3
    assert facts["pid"] == os.getpid()


def test_a_silent_holder_of_another_machine_is_dead_after_the_waiters_own_time(file):
    file.write_text(json.dumps({"token": "t", "host": "elsewhere", "pid": 1}))
    now = [100.0]
    watch = Watch(Pace(dead_seconds=20), clock=lambda: now[0])
    assert watch.look(file) is None
    now[0] += 19.9
    assert watch.look(file) is None
    now[0] += 0.2
    assert watch.look(file) == file.read_bytes()


def test_a_beat_starts_the_waiters_time_anew(file):
    now = [0.0]
    watch = Watch(Pace(dead_seconds=20), clock=lambda: now[0])
    for beat in range(5):
        file.write_text(json.dumps({"host": "elsewhere", "beat": beat}))
        now[0] += 15
        assert watch.look(file) is None


def test_a_dead_holder_of_this_machine_is_known_at_once(file):
    lease = Lease(file, pace=QUICK)
    assert lease.try_acquire()
    content = read_lease(file)
    assert not holder_is_gone(content)
    dead = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(dead, 0)
    gone = content.replace(f'"pid": {os.getpid()}'.encode(), f'"pid": {dead}'.encode())
    assert holder_is_gone(gone)
    assert not holder_is_gone(gone.replace(b'"host": "', b'"host": "another '))
    assert not holder_is_gone(b"{")
    assert not holder_is_gone(b"[]")


def test_of_many_that_take_over_one_gets_it(file):
    file.write_text("left behind")
    taken = []

    def take():
        lease = Lease(file, pace=QUICK)
        if lease.take_over(b"left behind"):
            taken.append(lease)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert holder_facts(read_lease(file))["token"] == taken[0].token


def test_a_taker_that_was_late_gives_a_living_lease_back(file):
    holder = Lease(file, pace=QUICK)
    assert holder.try_acquire()
    before = file.read_bytes()
    assert not Lease(file).take_over(b"what was there an hour ago")
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_holder_notices_that_its_lease_is_gone(file):
    lease = Lease(file, pace=QUICK)
    assert lease.try_acquire()
    with lease:
        other = Lease(file, pace=QUICK)
        assert other.take_over(read_lease(file)) or other.take_over(read_lease(file))
        wait_until(lambda: lease.is_lost)
    assert holder_facts(read_lease(file))["token"] == other.token


def test_a_holder_notices_that_its_lease_was_removed(file):
    lease = Lease(file, pace=QUICK)
    assert lease.try_acquire()
    with lease:
        file.unlink()
        wait_until(lambda: lease.is_lost)
    assert not file.exists()


def test_a_disk_that_fails_is_said_and_the_lease_goes_on(file, caplog):
    lease = Lease(file, pace=QUICK)
    assert lease.try_acquire()
    with lease:
        moved = file.rename(file.with_name("aside"))
        file.mkdir()
        wait_until(lambda: "cannot be renewed" in caplog.text)
        file.rmdir()
        moved.rename(file)
    assert not lease.is_lost


def wait_until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_workers_pull_into_one_volume_and_one_downloads(hub, start_puller, tmp_path):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "slow", times=1000, value=0.02)
    workers = [start_puller(hub), start_puller(hub)]
    for worker in workers:
        worker.wait_for("org/model")
    wait_until(lambda: finished_parts(tmp_path / "volume") >= 2)
    hub.faults.clear()
    assert [worker.end() for worker in workers] == [0, 0]
    assert len(hub.asked("/cdn/")) == PARTS
    assert all(f"org/model/{COMMIT}" in worker.text for worker in workers)


def finished_parts(volume):
    journals = list(volume.rglob("*.done"))
    return sum(len(journal.read_text().split()) - 1 for journal in journals)


def test_a_killed_worker_is_followed_by_another_that_goes_on_where_it_was(hub, start_puller, tmp_path):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "slow", times=1000, value=0.02)
    shelf = tmp_path / "volume/flashkit-weights"
    first = start_puller(hub)
    first.wait_for("begun")
    second = start_puller(hub)
    second.wait_for("waiting for another worker's download")
    wait_until(lambda: finished_parts(shelf) >= 4)
    hub.faults.clear()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    (journal,) = (shelf / ".staging").rglob("model*.done")
    there = {int(part) * 100_000 for part in journal.read_text().split()[1:]}
    assert not (shelf / "org/model" / COMMIT).exists()  # nothing looks complete
    before = len(hub.asked("/cdn/"))
    assert second.end() == 0
    assert "is gone; going on where it was" in second.text
    assert contents(shelf / "org/model" / COMMIT) == BIG
    asked = {int(headers["Range"][6:].partition("-")[0]) for _, _, headers in hub.asked("/cdn/")[before:]}
    assert len(there) >= 4
    assert asked & there == set()
    assert [path.name for path in (shelf / ".staging").iterdir()] == []


def test_a_killed_worker_of_another_machine_is_followed_after_its_silence(hub, start_puller, tmp_path):
    hub.add("org/model", BIG)
    shelf = tmp_path / "volume/flashkit-weights"
    (shelf / ".staging").mkdir(parents=True)
    lease = shelf / ".staging" / f"org--model--{COMMIT}.lease"
    lease.write_text(json.dumps({"token": "t", "host": "elsewhere", "pid": 1, "done": 1, "total": 2}))
    worker = start_puller(hub, dead=0.5)
    assert worker.end() == 0
    assert "waiting for another worker's download (elsewhere process 1, 50 %)" in worker.text
    assert "is gone" in worker.text


def test_a_worker_that_was_frozen_wakes_up_to_a_finished_download_and_harms_nothing(hub, start_puller, tmp_path):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "slow", times=12, value=0.01)
    shelf = tmp_path / "volume/flashkit-weights"
    sleeper = start_puller(hub, dead=0.5)
    sleeper.wait_for("begun")
    wait_until(lambda: finished_parts(shelf) >= 2)
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    try:
        second = start_puller(hub, dead=0.5)
        assert second.end() == 0
        assert contents(shelf / "org/model" / COMMIT) == BIG
    finally:
        os.kill(sleeper.process.pid, signal.SIGCONT)
    assert sleeper.end() == 0
    assert f"org/model/{COMMIT}" in sleeper.text
    assert contents(shelf / "org/model" / COMMIT) == BIG


def test_a_worker_that_wakes_up_during_the_others_download_waits_for_it(hub, start_puller, tmp_path):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "slow", times=1000, value=0.005)
    shelf = tmp_path / "volume/flashkit-weights"
    sleeper = start_puller(hub, dead=0.5)
    sleeper.wait_for("begun")
    wait_until(lambda: finished_parts(shelf) >= 1)
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    try:
        second = start_puller(hub, dead=0.5)
        second.wait_for("is gone; going on where it was")
        second.wait_for("begun")
    finally:
        os.kill(sleeper.process.pid, signal.SIGCONT)
    assert (second.end(), sleeper.end()) == (0, 0)
    assert "another worker took this download over" in sleeper.text
    assert contents(shelf / "org/model" / COMMIT) == BIG


def test_an_interrupted_pull_leaves_nothing_that_looks_complete_and_goes_on(hub, start_puller, tmp_path):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "slow", times=60, value=0.01)
    shelf = tmp_path / "volume/flashkit-weights"
    worker = start_puller(hub)
    worker.wait_for("begun")
    worker.process.send_signal(signal.SIGINT)
    assert worker.end() != 0
    assert not (shelf / "org/model").exists()
    assert not list((shelf / ".staging").glob("*.lease"))
    hub.faults.clear()
    assert start_puller(hub).end() == 0
    assert contents(shelf / "org/model" / COMMIT) == BIG

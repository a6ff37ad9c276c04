"""A worker that dies at any write loses nothing and repeats nothing, when another one goes on with its job."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from tests.sessions.crash_server import DIES_AT_ONCE, Log

ANSWER = [
    "plan",
    ["part", *(f"part#{number}" for number in range(2, 9))],
    1_200_005,
    "receipt",
    [f"write{number}" for number in range(4)],
    1,
    1,
]
STEPS = 15


class Crashes:
    """Runs jobs in processes that die where they are told to."""

    def __init__(self, server: subprocess.Popen[bytes], lab, folder: Path) -> None:
        self._server = server
        self._lab = lab
        self._folder = folder

    def log(self, session: str) -> Log:
        return Log(str(self._folder / f"{session}.log"))

    def run(self, session: str, *, dies_at: int = 0) -> dict[str, object]:
        """Run the session's job in a process of its own and return how that ended."""
        order = {
            "url": self._lab.url, "namespace": self._lab.namespace, "session": session, "dies_at": dies_at,
            "path": str(self.log(session).path),
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(orjson.dumps(order) + b"\n")
        self._server.stdin.flush()
        return orjson.loads(self._server.stdout.readline())

    def finish(self, session: str) -> None:
        """Run the job to its end, and check what was promised."""
        done = self.run(session)
        assert (done["error"], done["output"]) == (None, ANSWER), session
        lines = self.log(session).lines()
        assert sum(line.startswith("paid") for line in lines) == 1, lines
        assert repeated_steps(lines) == [], lines
        assert len({line for line in lines if line.startswith("ran")}) == STEPS - 1
        assert len({"acknowledged found", "acknowledged other way"} & set(lines)) == 1, "it went one way"


def repeated_steps(lines: list[str]) -> list[str]:
    """Return the steps that ran although the store had acknowledged their results."""
    acknowledged: set[str] = set()
    repeated = []
    for line in lines:
        what, _, key = line.partition(" ")
        if what == "acknowledged":
            acknowledged.add(key)
        elif what == "ran" and key in acknowledged:
            repeated.append(key)
    return repeated


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-m", "tests.sessions.crash_server"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def crashes(server, lab, tmp_path) -> Crashes:
    return Crashes(server, lab, tmp_path)


def test_a_run_without_a_crash_takes_every_step_once(crashes):
    crashes.finish("calm")
    lines = crashes.log("calm").lines()
    assert sum(line.startswith("ran") for line in lines) == STEPS - 1
    assert sum(line.startswith("acknowledged") for line in lines) == STEPS + 1
    assert "acknowledged other way" in lines


@pytest.mark.parametrize("side", ["after", "before"])
def test_a_death_at_any_write_loses_no_step_and_repeats_none(crashes, side):
    count = crashes.run("count")["writes"]
    assert count >= 10
    for number in range(1, count + 1):
        session = f"{side}-{number}"
        died = crashes.run(session, dies_at=number if side == "after" else -number)
        if "signal" not in died:  # fewer writes than in the first run: results that shared one
            assert died["output"] == ANSWER
        else:
            assert died["signal"] == signal.SIGKILL
        crashes.finish(session)


@pytest.mark.parametrize("seed", range(6))
def test_a_session_survives_several_deaths_in_a_row(crashes, seed):
    rng = random.Random(seed)
    for _ in range(rng.randint(2, 4)):
        crashes.run("s", dies_at=rng.choice([-1, 1]) * rng.randint(1, 9))
    crashes.finish("s")


def test_a_session_whose_workers_die_again_and_again_without_progress_is_blocked(crashes):
    for _ in range(5):
        assert crashes.run("s", dies_at=DIES_AT_ONCE)["signal"] == signal.SIGKILL
    error = str(crashes.run("s")["error"])
    assert "workers in a row ended without progress" in error

"""Single keys as commands, in a real terminal."""

import re
import sys

import pexpect
import pytest

BUSY = """
import os

from flashkit import cpu_endpoint


@cpu_endpoint(name="pid", workers=(1, 2))
def pid() -> int:
    return os.getpid()
"""

IDLE = BUSY.replace("(1, 2)", "(0, 2)")


@pytest.fixture
def terminal(tmp_path, environment):
    """Start `flashkit dev` in a terminal, and wait until it takes keys."""
    children = []

    def start(*arguments, code=BUSY, **variables):
        (tmp_path / "app.py").write_text(code)
        script = "from flashkit.cli import main; main()"
        child = pexpect.spawn(
            sys.executable, ["-c", script, "dev", "--port", "0", *arguments], cwd=str(tmp_path), encoding="utf-8",
            env=environment(NO_COLOR="1", TERM="xterm", **variables), dimensions=(50, 200), timeout=60,
        )  # fmt: skip
        children.append(child)
        child.expect_exact("? for keys · Ctrl-C stops")
        return child

    yield start
    for child in children:
        child.close(force=True)


def test_keys_restart_cool_and_replay_and_q_ends_it(terminal, flashkit, tmp_path):
    child = terminal()
    child.expect(r"worker (\S+) ready")
    child.send("p")
    child.expect_exact("there was no request to replay")
    first = flashkit("run", "pid", "{}", folder=tmp_path).out
    child.expect("COMPLETED")
    child.send("p")
    child.expect(r"replayed (\S+) as (\S+)")
    child.expect("COMPLETED")
    child.send("r")
    child.expect_exact("restarted pid: running jobs finish on the old workers")
    child.expect(r"worker \S+ ready")
    second = flashkit("run", "pid", "{}", folder=tmp_path).out
    child.send("c")
    child.expect_exact("killed ")
    child.expect_exact("the next job of each endpoint meets a cold start")
    third = flashkit("run", "pid", "{}", folder=tmp_path).out
    assert len({first, second, third}) == 3
    child.send("q")
    child.expect_exact("stopping: running jobs have 10 s to finish")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_keys_show_help_the_dashboard_and_change_the_log_level(terminal):
    child = terminal(code=IDLE)
    child.send("?")
    child.expect_exact("r restart  c cold start  o open the dashboard  l log level")
    child.send("o")
    child.expect(r"there is no display here; the dashboard is at http://127\.0\.0\.1:\d+/")
    child.send("l")
    child.expect_exact("log level error")
    child.send("l")
    child.expect_exact("log level debug")
    child.send("\x1b[A")  # an arrow is no command
    child.send("x")
    child.expect(re.escape("\x1b[2J"))
    child.send("f")
    child.expect_exact("there are no faults; start with --fault RULE")


def test_f_switches_faults_off_and_on(terminal):
    child = terminal("--fault", "latency=1ms", code=IDLE)
    child.send("f")
    child.expect_exact("faults off: *:latency=1ms")
    child.send("f")
    child.expect_exact("faults on: *:latency=1ms")


def test_t_moves_the_clock_on_by_what_is_typed(terminal):
    child = terminal(code=IDLE)
    child.send("t")
    child.expect_exact("move the clock on by")
    child.send("3x\x7fm\r")
    child.expect_exact("clock moved on by 3 min")
    child.send("t")
    child.expect_exact("move the clock on by")
    child.send("\r")
    child.expect_exact("clock moved on by 1 min")
    child.send("tsoon\r")
    child.expect_exact("'soon' is no time")
    child.send("t5\x1b")  # Escape, and nothing moves
    child.send("?")
    child.expect_exact("q quit")
    assert "clock moved" not in child.before


def test_the_terminal_is_as_before_at_the_end(terminal):
    import termios

    child = terminal(code=IDLE)
    while termios.tcgetattr(child.child_fd)[3] & termios.ICANON:
        child.expect(pexpect.TIMEOUT, timeout=0.1)
    child.sendintr()
    child.expect_exact("stopped")
    assert termios.tcgetattr(child.child_fd)[3] & termios.ICANON
    child.expect(pexpect.EOF)


def test_without_a_terminal_there_are_no_keys(project, start_dev):
    assert "for keys" not in start_dev(project).text

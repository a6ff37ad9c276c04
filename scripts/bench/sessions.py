"""Durable sessions: flashkit against raw redis-py and against other libraries, all in the same run.

A session of ten steps with empty bodies; each step replaces a tenth of a state of 4 KB or 256 KB and is durable
before the next one begins; 1 session after the other, and 32 at once. Every cell is measured in a process of its
own on a fresh server or file, and lasts some four seconds: shorter ones end before the server writes its file to disk
for the first time, which it does every second. Rounds take turns; the best of a contender's counts, for all alike.

Contenders (see session_peers/):
- flashkit: a job per request through the worker's runtime, with lease, replay check, checksums, snapshot and
  release; on Redis over TCP (AOF every second), and on its embedded store.
- raw: redis-py and one Lua script a step that checks a sequence number and appends the new tenth; no lease, no
  snapshot, no end of turn. "raw fenced" checks and renews a lease in the script too, and sets lifetimes.
- LangGraph with its SQLite and Postgres savers and a plain-Redis saver, each with the state as one list and
  "split" into a channel for each tenth; DBOS, which keeps step results only, on SQLite and Postgres. Their
  databases are set not to wait for the disk at each commit, which is what AOF every second is worth.
  `scripts/setup --peers` installs them; what is missing is left out with a word.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from measure import print_result
from servers import MissingServer, PostgresServer, RedisServer

HERE = Path(__file__).parent / "session_peers"
PEERS_PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
CELLS = {"4k_x1": (4096, 1), "4k_x32": (4096, 32), "256k_x1": (262_144, 1), "256k_x32": (262_144, 32)}
IDLE_SESSIONS = 50
_LONGEST_S = 180


@dataclass(frozen=True)
class Contender:
    name: str
    script: str
    store: str
    sessions: Mapping[str, int]
    """How many sessions each cell has: as many as make some four seconds' work."""
    form: str = ""

    @property
    def is_peer(self) -> bool:
        return not self.name.startswith(("flashkit", "raw"))

    @property
    def python(self) -> str:
        return str(PEERS_PYTHON) if self.is_peer else sys.executable


_OURS = {"4k_x1": 1_000, "4k_x32": 3_600, "256k_x1": 600, "256k_x32": 1_200}
_RAW = {"4k_x1": 2_400, "4k_x32": 6_400, "256k_x1": 1_600, "256k_x32": 3_200}
_PEERS = {"4k_x1": 320, "4k_x32": 512, "256k_x1": 160, "256k_x32": 256}
CONTENDERS = (
    Contender("flashkit, Redis", "flashkit_sessions.py", "redis", _OURS),
    Contender("flashkit, SQLite", "flashkit_sessions.py", "sqlite", _OURS),
    Contender("raw, Redis", "raw_redis.py", "redis", _RAW),
    Contender("raw fenced, Redis", "raw_redis.py", "redis", _RAW, "fenced"),
    Contender("LangGraph, SQLite", "langgraph_graph.py", "sqlite", _PEERS, "one"),
    Contender("LangGraph split, SQLite", "langgraph_graph.py", "sqlite", _PEERS, "split"),
    Contender("LangGraph, plain Redis", "langgraph_graph.py", "redis", _PEERS, "one"),
    Contender("LangGraph split, plain Redis", "langgraph_graph.py", "redis", _PEERS, "split"),
    Contender("LangGraph, Postgres", "langgraph_graph.py", "postgres", _PEERS, "one"),
    Contender("LangGraph split, Postgres", "langgraph_graph.py", "postgres", _PEERS, "split"),
    Contender("DBOS, SQLite", "dbos_workflow.py", "sqlite", _PEERS),
    Contender("DBOS, Postgres", "dbos_workflow.py", "postgres", _PEERS),
)

Best = dict[tuple[str, str], dict[str, float]]


@contextmanager
def open_place(kind: str) -> Iterator[str]:
    """Give the URL of a new, empty store."""
    with tempfile.TemporaryDirectory(prefix="bench-sessions-") as text:
        folder = Path(text)
        folder.chmod(0o711)  # Postgres does not run as root, and has to pass
        if kind == "sqlite":
            yield f"sqlite:///{folder}/sessions.db"
            return
        server = {"redis": RedisServer, "postgres": PostgresServer}[kind](folder / kind)
        with server:
            yield server.url


def run_cell(contender: Contender, cell: str, store: str, *, sessions: int | None = None) -> dict[str, float]:
    """Return one measurement. Raises `CalledProcessError`."""
    state_bytes, at_once = CELLS[cell]
    command = [contender.python, str(HERE / contender.script), "--store", store]
    command += ["--state-bytes", str(state_bytes), "--at-once", str(at_once)]
    command += ["--sessions", str(sessions or contender.sessions[cell]), "--form", contender.form]
    environ = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR", "PYTHONPATH") if key in os.environ}
    environ["LANGSMITH_TRACING"] = "false"
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False, env=environ)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(rounds: int, wanted: str) -> Best:
    """Run every contender in turn, `rounds` times; a contender that cannot run is left out of the rest."""
    best: Best = {}
    left_out: set[str] = set()
    for number in range(rounds):
        for contender in CONTENDERS:
            if wanted not in contender.name or contender.name in left_out:
                continue
            try:
                for cell in CELLS:
                    with open_place(contender.store) as store:
                        keep_best(best.setdefault((contender.name, cell), {}), run_cell(contender, cell, store))
            except (MissingServer, RuntimeError, FileNotFoundError, subprocess.SubprocessError) as exc:
                left_out.add(contender.name)
                print(f"left out: {contender.name}: {exc}", file=sys.stderr)
            print(f"round {number + 1}: {contender.name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return {key: value for key, value in best.items() if value and key[0] not in left_out}


def keep_best(best: dict[str, float], new: Mapping[str, float]) -> None:
    for name, value in new.items():
        choose = max if name == "steps_per_s" else min
        best[name] = choose(best.get(name, value), value)


def idle_bytes() -> float:
    """Return what Redis holds for an idle session of 4 KB, in bytes, indexes included."""
    with open_place("redis") as store:
        run_cell(CONTENDERS[0], "4k_x1", store, sessions=IDLE_SESSIONS)
        with redis.Redis.from_url(store) as client:
            keys = list(client.scan_iter("fk1:*", count=1000))
            used = sum(int(client.memory_usage(key, samples=0) or 0) for key in keys)
    return used / IDLE_SESSIONS


def make_figures(best: Best) -> dict[str, float]:
    figures: dict[str, float] = {}
    ours = "flashkit, Redis"
    peers = {contender.name for contender in CONTENDERS if contender.is_peer}
    for cell in ("4k_x32", "256k_x32"):
        rate = best[ours, cell]["steps_per_s"]
        rates = {name: value["steps_per_s"] for (name, at), value in best.items() if at == cell and name in peers}
        if rates:
            figures[f"vs_best_peer_{cell}"] = rate / max(rates.values())
            figures[f"vs_best_peer_state_as_one_{cell}"] = rate / max(
                value for name, value in rates.items() if "split" not in name
            )
        for label, name in (("vs_raw", "raw, Redis"), ("vs_raw_fenced", "raw fenced, Redis")):
            if (name, cell) in best:
                figures[f"{label}_{cell}"] = rate / best[name, cell]["steps_per_s"]
    figures["step_p50_ms_4k"] = best[ours, "4k_x1"]["p50_ms"]
    figures["step_p50_ms_256k"] = best[ours, "256k_x1"]["p50_ms"]
    figures["idle_bytes_4k"] = idle_bytes()
    for (name, cell), value in best.items():
        label = name.lower().replace(", ", "_").replace(" ", "_")
        figures[f"{label}_{cell}_steps_per_s"] = value["steps_per_s"]
    return figures


def print_table(best: Best) -> None:
    """Print p50 and p99 of a step in ms, steps/s, and this process's CPU ms a step."""
    print(f"{'p50/p99 ms, steps/s, CPU ms':30}", *(f"{cell:>31}" for cell in CELLS))
    for contender in CONTENDERS:
        cells = [best.get((contender.name, cell)) for cell in CELLS]
        if any(cells):
            print(f"{contender.name:30}", *(_show(value) for value in cells))


def _show(value: Mapping[str, float] | None) -> str:
    if value is None:
        return f"{'-':>31}"
    latency = f"{value['p50_ms']:.2f}/{value['p99_ms']:.1f}"
    return f"{latency:>13} {value['steps_per_s']:9,.0f} {value['cpu_ms']:7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="only contenders whose name has this in it")
    options = parser.parse_args()
    best = measure(options.rounds, options.only)
    print_table(best)
    print_result("sessions", make_figures(best) if ("flashkit, Redis", "4k_x32") in best else {})


if __name__ == "__main__":
    main()

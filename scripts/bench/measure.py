"""What every benchmark here needs: CPU seconds of a command, the machine, and the closing JSON line."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence


def median_cpu_seconds(command: Sequence[str], *, runs: int = 7) -> float:
    """Return the median of user and system CPU seconds of a command and its children, after a warm-up run."""
    return statistics.median([_cpu_seconds(command) for _ in range(runs + 1)][1:])


def _cpu_seconds(command: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def python(code: str) -> list[str]:
    """Return the command that runs a line of Python in a fresh interpreter."""
    return [sys.executable, "-c", code]


def print_result(name: str, figures: Mapping[str, float]) -> None:
    """Print the benchmark's result as one JSON object on the last line."""
    machine = {
        "cpus": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    rounded = {key: round(value, 4) for key, value in figures.items()}
    print(json.dumps({"name": name, "figures": rounded, "machine": machine}))

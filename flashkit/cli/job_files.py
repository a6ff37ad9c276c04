"""Jobs as files: what a run exports at its end, and another sends again.

`jobs.jsonl` has a JSON object on each line: endpoint, input, status, and output or error. Ids and times are left
out, so two runs that did the same have the same file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator
from flashkit.errors import ConfigurationError, InputError

FILE = "jobs.jsonl"


def export_jobs(emulator: Emulator, folder: Path) -> int:
    """Write the jobs that the platform still has, in the order in which they came, and return their number.

    Raises:
        ConfigurationError: They cannot be written there.
    """
    rows = list(_rows(emulator))
    draft = folder / f".{FILE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        draft.replace(folder / FILE)
    except OSError as exc:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise ConfigurationError(
            f"the jobs cannot be exported to {folder}: {exc.strerror}",
            hint="make room on the disk, or name another folder",
        ) from exc
    return len(rows)


def _rows(emulator: Emulator) -> Iterator[dict[str, Any]]:
    jobs = [job for name in emulator.platform.specs for job in emulator.platform.jobs(name)]
    for job in sorted(jobs, key=lambda job: job.submitted_at):
        row = {"endpoint": job.endpoint, "input": job.input, "status": job.status.value}
        if job.has_output:
            row["output"] = job.output
        if job.error is not None:
            row["error"] = job.error
        yield row


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return the exported jobs.

    Raises:
        InputError: The folder has no such file, or it is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {FILE}", hint="name a folder that --export-on-exit has written")
    return [_read_row(file, number, line) for number, line in enumerate(file.read_bytes().splitlines(), 1) if line]


def _read_row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise InputError(f"line {number} of {file} is not JSON: {exc.msg}") from exc
    if not isinstance(row, dict) or not isinstance(row.get("endpoint"), str) or "input" not in row:
        raise InputError(f"line {number} of {file} is no job", hint='each line is {"endpoint": "…", "input": …}')
    return row


def send_jobs(emulator: Emulator, rows: Iterable[dict[str, Any]]) -> int:
    """Submit the jobs in their order, and return their number.

    Raises:
        InputError: One is for an endpoint that there is not.
    """
    count = 0
    for row in rows:
        emulator.submit(row["endpoint"], JobRequest(row["input"]))
        count += 1
    return count

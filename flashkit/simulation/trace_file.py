"""Load from a file: JSON lines or CSV, a job a line, as `flashkit dev --record` and simple scripts write them.

A line has `at`, the seconds of its arrival on any clock, and `seconds`, for which it ran; `endpoint` picks the lines of
one endpoint where there are several. A recording of `flashkit dev` has no `seconds`: its jobs all get the same.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from flashkit.catalog import nearest_names
from flashkit.errors import InputError
from flashkit.simulation.load import Load

_EXAMPLE = 'write {"at": 1.25, "seconds": 2.5} on each line, or CSV with the columns at,seconds'


def read_trace(file: Path, *, endpoint: str | None = None, seconds: float | None = None) -> Load:
    """Return the load that a file has.

    Args:
        file: JSON lines, or CSV with a header.
        endpoint: Take its jobs only; lines that name no endpoint are everybody's.
        seconds: How long jobs run whose lines do not say it.

    Raises:
        InputError: It cannot be read, is empty, or a line is wrong: the message has its number.
    """
    arrivals, durations = array("d"), array("d")
    passed_over: set[str] = set()
    for where, row in _read_rows(file):
        name = row.get("endpoint")
        if endpoint is not None and name not in (None, "", endpoint):
            passed_over.add(str(name))
            continue
        at = _number(where, row, "at")
        if arrivals and at < arrivals[-1]:
            raise InputError(
                f"{where}: the job arrives at {at:g}, before the one above it at {arrivals[-1]:g}",
                hint="sort the lines by `at`",
            )
        arrivals.append(at)
        durations.append(_duration(where, row, seconds))
    if not arrivals:
        raise _empty(file, endpoint, passed_over)
    first = arrivals[0]
    arrivals = array("d", (at - first for at in arrivals))
    return Load(arrivals, durations, arrivals[-1], f"load of {file.name}")


def _empty(file: Path, endpoint: str | None, passed_over: set[str]) -> InputError:
    if passed_over:
        near = nearest_names(str(endpoint), sorted(passed_over)) or sorted(passed_over)
        return InputError(f"{file} has no job of endpoint {endpoint!r}", hint=f"it has those of {', '.join(near)}")
    return InputError(f"{file} has no job", hint=_EXAMPLE)


def _read_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            read = _read_csv if file.suffix.lower() == ".csv" else _read_json
            yield from read(file, lines)
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text in UTF-8"
        raise InputError(f"{file} cannot be read: {reason}", hint=_EXAMPLE) from exc


def _read_json(file: Path, lines: Iterator[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as exc:
            raise InputError(f"{where} is no JSON: {exc}", hint=_EXAMPLE) from exc
        if not isinstance(row, dict):
            raise InputError(f"{where} is no JSON object", hint=_EXAMPLE)
        yield where, row


def _read_csv(file: Path, lines: Iterator[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = csv.DictReader(lines, skipinitialspace=True)
    if "at" not in (rows.fieldnames or ()):
        raise InputError(f"{file}:1 names no column `at`", hint=_EXAMPLE)
    try:
        for row in rows:
            yield f"{file}:{rows.line_num}", row
    except csv.Error as exc:
        raise InputError(f"{file}:{rows.line_num} is no CSV: {exc}", hint=_EXAMPLE) from exc


def _duration(where: str, row: Mapping[str, Any], default: float | None) -> float:
    if row.get("seconds") in (None, "") and default is not None:
        return default
    if row.get("seconds") in (None, ""):
        raise InputError(f"{where} does not say how long the job ran", hint="add `seconds`, or give --seconds for all")
    seconds = _number(where, row, "seconds")
    if seconds < 0:
        raise InputError(f"{where}: the job ran for {seconds:g} s", hint="a duration is 0 or more")
    return seconds


def _number(where: str, row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {name}={value!r} is no number of seconds", hint=_EXAMPLE)
    return number

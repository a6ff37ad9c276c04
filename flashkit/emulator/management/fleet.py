"""What runs here of a deployed endpoint: the endpoint of the local app that it stands for, and its workers.

A deployed endpoint stands for a local one when `flashkit deploy` made it for that endpoint (FLASHKIT_DEPLOYMENT in its
environment), or when it has the name of one. Its jobs are then that endpoint's; bounds, hardware and image of the
deployed one are not emulated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from flashkit.emulator.management.account import EndpointRecord
from flashkit.protocol import DEPLOYMENT_VARIABLE

_STATUSES = {"RUNNING": "RUNNING", "IDLE": "IDLE", "INITIALIZING": "INITIALIZING", "UNHEALTHY": "UNHEALTHY"}
"""Those of local workers that the API shows; a frozen or leaving one is not active."""


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """One worker process of the local platform."""

    id: str
    state: str
    started_at: float
    """In seconds since 1970."""


class LocalFleet(Protocol):
    """The workers of the local platform."""

    def names(self) -> Collection[str]:
        """Return the local endpoints."""

    def workers(self, name: str) -> Sequence[LocalWorker]:
        """Return the workers of a local endpoint."""

    def restart(self, name: str) -> None:
        """Let new workers of a local endpoint take over."""


def local_name(record: EndpointRecord, names: Collection[str]) -> str | None:
    """Return the local endpoint that a deployed one stands for."""
    configuration = record.configuration
    candidates = (_deployed_as(configuration["env"]), configuration["name"])
    return next((name for name in candidates if name in names), None)


def _deployed_as(env: Mapping[str, str]) -> str | None:
    try:
        marker = orjson.loads(env.get(DEPLOYMENT_VARIABLE, "{}"))
    except orjson.JSONDecodeError:
        return None
    name = marker.get("endpoint") if isinstance(marker, dict) else None
    return name if isinstance(name, str) else None


class Versions:
    """Which configuration each local worker was started with."""

    def __init__(self) -> None:
        self._version_of: dict[str, int] = {}

    def note_change(self, workers: Sequence[LocalWorker], version: int) -> None:
        """Remember that these workers have the version that is about to be replaced."""
        alive = {worker.id for worker in workers}
        self._version_of = {key: value for key, value in self._version_of.items() if key in alive} | {
            worker.id: self._version_of.get(worker.id, version) for worker in workers
        }

    def of(self, worker: LocalWorker, current: int) -> int:
        """Return a worker's version."""
        return self._version_of.get(worker.id, current)


def active(workers: Sequence[LocalWorker]) -> list[LocalWorker]:
    """Return the workers that the API shows: not those that leave or are frozen."""
    return [worker for worker in workers if worker.state in _STATUSES]


def describe_workers(
    workers: Sequence[LocalWorker], record: EndpointRecord, versions: Versions, *, now: float
) -> dict[str, Any]:
    """Return the answer of `/serverless/{id}/workers`."""
    shown = active(workers)
    counts = {status.lower(): 0 for status in ("RUNNING", "IDLE", "INITIALIZING", "THROTTLED", "UNHEALTHY")}
    for worker in shown:
        counts[_STATUSES[worker.state].lower()] += 1
    return {
        "workers": [_describe_worker(worker, record, versions, now=now) for worker in shown],
        "summary": {**counts, "total": len(shown)},
        "endpointVersion": record.version,
    }


def _describe_worker(worker: LocalWorker, record: EndpointRecord, versions: Versions, *, now: float) -> dict[str, Any]:
    version = versions.of(worker, record.version)
    gpu = record.configuration["gpu"]
    return {
        "id": worker.id,
        "status": _STATUSES[worker.state],
        "isStale": version != record.version,
        "version": version,
        "gpuCount": gpu["count"] if gpu else 0,
        "image": record.configuration["image"],
        "uptimeSeconds": max(0, int(now - worker.started_at)),
        "gpuTypeId": None,
        "dataCenterId": None,
        "startedAt": datetime.fromtimestamp(worker.started_at, UTC)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z"),
    }


def describe_rollout(workers: Sequence[LocalWorker], record: EndpointRecord, versions: Versions) -> dict[str, Any]:
    """Return how many workers have the present configuration."""
    shown = active(workers)
    latest = sum(versions.of(worker, record.version) == record.version for worker in shown)
    return {
        "inProgress": latest < len(shown),
        "workersOnLatest": latest,
        "workersTotal": len(shown),
        "percentOnLatest": round(100 * latest / len(shown)) if shown else 0,
    }

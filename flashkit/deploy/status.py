"""What runs of an app on the platform: endpoints, their workers, and how far a rollout is. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.deploy.actual import Deployed, read_endpoints
from flashkit.deploy.api import ManagementApi
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.failures import NotThere
from flashkit.deploy.record import Record, read_record

WORKER_STATES: Final = ("running", "idle", "initializing", "throttled", "unhealthy")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """One endpoint and its workers."""

    deployed: Deployed
    version: int | None
    workers: Mapping[str, int]
    """Number of workers by state."""
    stale: int
    """Workers that still have an older configuration."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without its environment."""
        fields = self.deployed.fields
        return {
            "name": self.deployed.name,
            "id": self.deployed.id,
            "deployed_name": self.deployed.deployed_name,
            "type": fields.get("type"),
            "image": fields.get("image"),
            "hardware": hardware_of(fields),
            "min": fields.get("workers.min"),
            "max": fields.get("workers.max"),
            "workers": dict(self.workers),
            "version": self.version,
            "stale_workers": self.stale,
            "urls": dict(self.deployed.urls),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStatus:
    """An app in one environment."""

    config: DeployConfig
    endpoints: tuple[EndpointStatus, ...]
    record: Record
    doubles: tuple[str, ...] = field(default=())
    """Ids of endpoints that are there twice."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "app": self.config.app,
            "environment": self.config.environment,
            "endpoints": [item.to_dict() for item in self.endpoints],
            "deployments": [item.to_dict() for item in self.record.deployments],
            "doubles": list(self.doubles),
        }


async def read_status(api: ManagementApi, config: DeployConfig) -> AppStatus:
    """Return what runs of the app."""
    actual = await read_endpoints(api, config)
    found = []
    for deployed in actual.endpoints.values():
        try:
            workers = await api.get(f"/serverless/{deployed.id}/workers")
        except NotThere:  # it was deleted in this moment
            continue
        found.append(_read(deployed, workers))
    return AppStatus(
        config=config,
        endpoints=tuple(sorted(found, key=lambda item: item.deployed.name)),
        record=await read_record(api, config),
        doubles=tuple(item.id for item in actual.doubles),
    )


def _read(deployed: Deployed, data: Mapping[str, Any]) -> EndpointStatus:
    summary = data.get("summary") or {}
    return EndpointStatus(
        deployed=deployed,
        version=data.get("endpointVersion"),
        workers={state: int(summary.get(state, 0)) for state in WORKER_STATES},
        stale=sum(bool(worker.get("isStale")) for worker in data.get("workers") or ()),
    )


def hardware_of(fields: Mapping[str, Any]) -> str:
    """Return an endpoint's hardware in words."""
    if "cpu" in fields:
        return ", ".join(f"{item.rpartition('-')[0]}, {item.rpartition('-')[2]} vCPUs" for item in fields["cpu"])
    count = fields.get("gpu.count") or 1
    names = ", ".join(fields.get("gpu.order") or fields.get("gpu.pools") or ())
    return f"{count}x {names}" if count > 1 else names


@dataclass(frozen=True, slots=True)
class Rollout:
    """How many workers of an endpoint have its present configuration."""

    in_progress: bool
    latest: int
    total: int


async def read_rollout(api: ManagementApi, endpoint_id: str) -> Rollout:
    """Return how far the rollout of an endpoint is."""
    data = (await api.get(f"/serverless/{endpoint_id}/releases")).get("rollout") or {}
    return Rollout(bool(data.get("inProgress")), int(data.get("workersOnLatest", 0)), int(data.get("workersTotal", 0)))

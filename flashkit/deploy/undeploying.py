"""Taking an app off the platform: its endpoints, its record, and its volumes only where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashkit.deploy.actual import Deployed, Volume, read_endpoints, read_volume
from flashkit.deploy.api import ManagementApi
from flashkit.deploy.applying import STOPPING, OnStep, Progress
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.failures import DeployImpossible
from flashkit.deploy.record import remove_record


@dataclass(slots=True, kw_only=True)
class Removal:
    """What would be removed."""

    endpoints: list[Deployed] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    """Volumes that only these endpoints have."""
    shared: list[Volume] = field(default_factory=list)
    """Volumes that other endpoints have too: they stay."""
    removes_volumes: bool = False
    has_rest: bool = False
    """Endpoints of the app stay, and so does its record."""


async def plan_removal(
    api: ManagementApi, config: DeployConfig, names: Sequence[str], *, removes_volumes: bool
) -> Removal:
    """Return what removing these endpoints, or all of the app's, would remove.

    Raises:
        DeployImpossible: One of the names is no endpoint of the app there.
    """
    actual = await read_endpoints(api, config)
    mine = [*actual.endpoints.values(), *actual.doubles]
    known = {item.name for item in mine}
    missing = [name for name in names if name not in known]
    if missing:
        raise DeployImpossible(
            f"{', '.join(missing)} is not deployed to {config.environment}",
            hint=f"there is: {', '.join(sorted(known)) or 'none'}",
        )
    chosen = [item for item in mine if not names or item.name in names]
    removal = Removal(endpoints=chosen, removes_volumes=removes_volumes, has_rest=len(chosen) < len(mine))
    ids = {volume for item in chosen for volume in item.fields.get("networkVolumes") or ()}
    if ids:
        users = await _volume_users(api, excluding={item.id for item in chosen})
        volumes = [read_volume(item) for item in await api.list("/network-volumes", "networkVolumes")]
        removal.volumes = [volume for volume in volumes if volume.id in ids and volume.id not in users]
        removal.shared = [volume for volume in volumes if volume.id in ids and volume.id in users]
    return removal


async def apply_removal(
    api: ManagementApi, config: DeployConfig, removal: Removal, *, on_step: OnStep = lambda step: None
) -> list[str]:
    """Remove what was planned, and return the steps in words.

    Raises:
        DeployStopped: A step failed. `details` says what was done before, and what is left.
    """
    volumes = removal.volumes if removal.removes_volumes else []
    planned = [f"delete endpoint {item.name}" for item in removal.endpoints]
    planned += [f"delete volume {item.key.name}" for item in volumes]
    progress = Progress(planned, on_step)
    try:
        for endpoint in removal.endpoints:
            progress.begin("delete", "endpoint", endpoint.name, endpoint.id)
            await api.remove(f"/serverless/{endpoint.id}")
            progress.end()
        for volume in volumes:
            progress.begin("delete", "volume", volume.key.name, volume.id)
            await api.remove(f"/network-volumes/{volume.id}")
            progress.end()
        if not removal.has_rest:
            await remove_record(api, config)
    except STOPPING as exc:
        raise progress.stopped(exc) from exc
    return [step.words for step in progress.steps]


async def _volume_users(api: ManagementApi, *, excluding: set[str]) -> set[str]:
    """Return the volumes that other endpoints of the account have."""
    endpoints: Sequence[Mapping[str, Any]] = await api.list("/serverless", "endpoints")
    others = [item for item in endpoints if str(item["id"]) not in excluding]
    return {str(volume) for item in others for volume in item.get("networkVolumes") or ()}

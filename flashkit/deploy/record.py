"""The app's own numbering of its deployments, kept on the platform: one serverless template that nothing uses.

Each endpoint has releases of its own on the platform, which say what changed. Which of them belong to one deployment,
nothing on the platform says; so a template named `APP-ENVIRONMENT-releases` has it in its environment: for each
deployment its number, its time, and the release of every endpoint after it. Where it is missing, endpoints are rolled
back one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from flashkit.deploy.api import ManagementApi
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.once import make_once

RECORD_VARIABLE: Final = "FLASHKIT_RELEASES"
KEPT: Final = 20
"""Deployments that are remembered."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment that changed something."""

    number: int
    at: str
    releases: Mapping[str, str]
    """The release of each endpoint after it, by the endpoints' names in the app."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        data = {"number": self.number, "at": self.at, "releases": dict(self.releases)}
        return {**data, "note": self.note} if self.note else data


@dataclass(frozen=True, slots=True)
class Record:
    """All deployments that are remembered, oldest first."""

    template_id: str | None
    """None where there is no record yet."""
    deployments: tuple[Deployment, ...] = ()

    def find(self, number: int) -> Deployment | None:
        """Return the deployment of this number."""
        return next((item for item in self.deployments if item.number == number), None)

    @property
    def latest(self) -> Deployment | None:
        """The last one."""
        return self.deployments[-1] if self.deployments else None


async def read_record(api: ManagementApi, config: DeployConfig) -> Record:
    """Return the record of an app in one environment."""
    for template in await api.list("/templates", "templates"):
        if template.get("name") == _name(config):
            return Record(str(template["id"]), _read(template.get("env") or {}))
    return Record(None)


async def add_deployment(
    api: ManagementApi, config: DeployConfig, releases: Mapping[str, str], *, note: str = "", image: str
) -> Deployment:
    """Write down that a deployment left the endpoints with these releases, and return it."""
    record = await read_record(api, config)
    number = record.latest.number + 1 if record.latest else 1
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    deployment = Deployment(number, at, releases, note)
    env = {RECORD_VARIABLE: _write([*record.deployments, deployment][-KEPT:])}
    if record.template_id is not None:
        await api.change(f"/templates/{record.template_id}", {"env": env})
        return deployment
    body = {
        "name": _name(config),
        "image": image,
        "serverless": True,
        "category": "CPU",
        "startSsh": False,
        "startJupyter": False,
        "env": env,
    }

    async def make() -> str:
        return str((await api.create("/templates", body))["id"])

    async def look() -> str | None:
        return (await read_record(api, config)).template_id

    await make_once(api, make, look)
    return deployment


async def remove_record(api: ManagementApi, config: DeployConfig) -> None:
    """Delete the record."""
    record = await read_record(api, config)
    if record.template_id is not None:
        await api.remove(f"/templates/{record.template_id}")


def _name(config: DeployConfig) -> str:
    return f"{config.app}-{config.environment}-releases"


def _write(deployments: Sequence[Deployment]) -> str:
    return json.dumps([item.to_dict() for item in deployments], separators=(",", ":"))


def _read(env: Mapping[str, str]) -> tuple[Deployment, ...]:
    try:
        items = json.loads(env.get(RECORD_VARIABLE, "[]"))
        return tuple(
            Deployment(int(item["number"]), str(item["at"]), dict(item["releases"]), str(item.get("note", "")))
            for item in items
        )
    except (ValueError, KeyError, TypeError):
        return ()

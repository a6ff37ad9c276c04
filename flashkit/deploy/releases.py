"""Putting an earlier configuration back: what the platform's releases say changed, undone from the newest one back.

A release lists the fields that it changed with their values before. The vendor names these fields in two ways, as
REST v2 does (`workers.max`) and as GraphQL does (`workersMax`, `template.imageName`); both are read. A release that
changed something else cannot be undone, and is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.deploy.actual import Actual, Deployed
from flashkit.deploy.api import ManagementApi
from flashkit.deploy.applying import STOPPING, OnStep, Outcome, Progress, is_rolling, write_down
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.failures import DeployImpossible
from flashkit.deploy.fields import GPU_ORDER, MODELS, Fields, has_idle_timeout
from flashkit.deploy.identity import ENDPOINTS_VARIABLE, endpoints_value, read_marker
from flashkit.deploy.planning import Action, Change, plan_update
from flashkit.deploy.record import Record
from flashkit.deploy.sending import update_endpoint
from flashkit.protocol import DEPLOYMENT_VARIABLE

_SAME_NAME: Final = (
    *("image", "args", "disk", "timeout", "flashboot", "registry", "workers.min", "workers.max"),
    *("workers.idleTimeout", "scaling.type", "scaling.value", "gpu.count", "gpu.minCudaVersion"),
)
_OTHER_NAMES: Final = {
    "template.imageName": "image",
    "template.dockerArgs": "args",
    "template.containerDiskInGb": "disk",
    "template.containerRegistryAuthId": "registry",
    "executionTimeoutMs": "timeout",
    "flashBootType": "flashboot",
    "workersMin": "workers.min",
    "workersMax": "workers.max",
    "idleTimeout": "workers.idleTimeout",
    "scalerType": "scaling.type",
    "scalerValue": "scaling.value",
    "scaling.queueDelay": "scaling.value",
    "scaling.requestCount": "scaling.value",
    "gpuCount": "gpu.count",
    "minCudaVersion": "gpu.minCudaVersion",
}
_LISTS: Final = {
    **{name: name for name in ("ports", "dataCenterIds", "networkVolumes", "gpu.pools", "gpu.excludedTypes")},
    "gpu.allowedCudaVersions": "gpu.allowedCudaVersions",
    "template.ports": "ports",
    "locations": "dataCenterIds",
    "networkVolumeIds": "networkVolumes",
    "networkVolumeId": "networkVolumes",
    "allowedCudaVersions": "gpu.allowedCudaVersions",
    "modelReferences": MODELS,
}
_GROUPS: Final = ("workers", "scaling", "gpu")
_ONE_OF_TWO: Final = ("scaling.queueDelay", "scaling.requestCount")
_ENV_NAMES: Final = ("env", "template.env")
_IGNORED: Final = ("name",)


@dataclass(slots=True)
class Restoration:
    """An endpoint as it was after an earlier release."""

    fields: Fields
    env: dict[str, str]
    unknown: list[str] = field(default_factory=list)
    """Fields that releases changed and that are not understood."""


def restore(deployed: Deployed, releases: Sequence[Mapping[str, Any]]) -> Restoration:
    """Return what an endpoint was before these releases, newest first."""
    found = Restoration(dict(deployed.fields), dict(deployed.env))
    for release in releases:
        for item in release.get("diff") or ():
            _undo(found, str(item.get("field")), item.get("old"))
    if not has_idle_timeout(found.fields):
        found.fields.pop("workers.idleTimeout", None)
    marker = read_marker(found.env)
    if marker is not None:
        found.fields[MODELS] = list(marker.models)
        if "gpu.pools" in found.fields:
            found.fields[GPU_ORDER] = list(marker.gpu)
    return found


def _undo(found: Restoration, name: str, old: Any) -> None:
    if name in _GROUPS and isinstance(old, Mapping):
        for key, value in old.items():
            _undo(found, f"{name}.{key}", value)
    elif name in _ONE_OF_TWO and old is None:
        return  # the scaler before had the other one
    elif name in _ENV_NAMES:
        found.env = _read_env(old)
    elif name in _OTHER_NAMES or name in _SAME_NAME:
        found.fields[_OTHER_NAMES.get(name, name)] = old
    elif name in _LISTS:
        found.fields[_LISTS[name]] = _read_list(old)
    elif name == "gpuIds":
        tokens = _read_list(old)
        found.fields["gpu.pools"] = [token for token in tokens if not token.startswith("-")]
        found.fields["gpu.excludedTypes"] = [token[1:] for token in tokens if token.startswith("-")]
    elif name in ("cpu", "instanceIds"):
        found.fields["cpu"] = [_read_cpu(item) for item in old or ()]
    elif name not in _IGNORED:
        found.unknown.append(name)


def _read_env(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    return {str(item["key"]): str(item["value"]) for item in value or ()}


def _read_list(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(item.get("networkVolumeId")) if isinstance(item, Mapping) else str(item) for item in value or ()]


def _read_cpu(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"{item['id']}-{item['vcpuCount']}"
    return str(item).rpartition("-")[0]  # cpu5c-2-4: what is last is memory


@dataclass(slots=True, kw_only=True)
class Rollback:
    """What has to be done to have an earlier state again."""

    config: DeployConfig
    title: str
    """What is put back, in words."""
    changes: list[Change] = field(default_factory=list)
    restored: dict[str, Restoration] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """True when everything is so already."""
        return all(change.action is Action.UNCHANGED for change in self.changes)


async def plan_rollback(
    api: ManagementApi,
    actual: Actual,
    record: Record,
    config: DeployConfig,
    *,
    endpoint: str | None = None,
    to: int | None = None,
) -> Rollback:
    """Return what has to be done to undo the last deployment, or to go back to an earlier one.

    Args:
        api: The platform, which is only read.
        actual: The app's endpoints.
        record: The app's deployments.
        config: Names of app and environment.
        endpoint: Only this endpoint; `to` is then a version of its own.
        to: The deployment to go back to.

    Raises:
        DeployImpossible: There is nothing to go back to.
    """
    if not actual.endpoints:
        raise DeployImpossible(
            f"nothing of {config.app} is deployed to {config.environment}", hint="flashkit status shows what is there"
        )
    histories = {name: await _releases(api, item) for name, item in actual.endpoints.items()}
    if endpoint is not None:
        return _plan_one(actual, histories, config, endpoint=endpoint, to=to)
    target = _choose(record, histories, to, config)
    plan = Rollback(config=config, title=f"deployment {target.number} of {target.at}")
    for name, deployed in actual.endpoints.items():
        if name not in target.releases:
            plan.notes.append(f"{name} was made later: it is kept (flashkit undeploy {name} removes it)")
            continue
        _add(plan, deployed, histories[name], target.releases[name], actual)
    gone = sorted(target.releases.keys() - actual.endpoints.keys())
    if gone:
        plan.problems.append(f"{', '.join(gone)} was deleted since: deploy the code of that time again")
    return plan


async def apply_rollback(
    api: ManagementApi,
    plan: Rollback,
    actual: Actual,
    *,
    on_step: OnStep = lambda step: None,
) -> Outcome:
    """Put the earlier state back, and write it down as a deployment of its own.

    Raises:
        DeployStopped: A step failed. `details` says what was done before, and what is left.
    """
    changes = [item for item in plan.changes if item.action is not Action.UNCHANGED]
    progress = Progress([f"update endpoint {item.name}" for item in changes], on_step)
    outcome = Outcome(steps=progress.steps, endpoints=dict(actual.endpoints))
    try:
        for change in changes:
            deployed, restored = actual.endpoints[change.name], plan.restored[change.name]
            progress.begin("update", "endpoint", change.name, deployed.id)
            outcome.endpoints[change.name] = await update_endpoint(
                api, plan.config, deployed, change, fields=restored.fields, env=restored.env
            )
            if is_rolling(change):
                outcome.rolling.append(change.name)
            progress.end()
    except STOPPING as exc:
        raise progress.stopped(exc) from exc
    if progress.steps:
        await write_down(api, plan.config, outcome, note=f"rollback to {plan.title}")
    return outcome


async def _releases(api: ManagementApi, deployed: Deployed) -> list[Mapping[str, Any]]:
    return list((await api.get(f"/serverless/{deployed.id}/releases")).get("releases") or ())


def _plan_one(
    actual: Actual,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    config: DeployConfig,
    *,
    endpoint: str,
    to: int | None,
) -> Rollback:
    deployed = actual.endpoints.get(endpoint)
    if deployed is None:
        known = ", ".join(actual.endpoints) or "none"
        raise DeployImpossible(f"there is no deployed endpoint {endpoint!r}", hint=f"there is: {known}")
    history = histories[endpoint]
    versions = [item.get("version") for item in history]
    found = history[1:2] if to is None else [item for item in history if item.get("version") == to]
    if not found:
        raise DeployImpossible(
            f"{endpoint} has no version {to}" if to is not None else f"{endpoint} has no earlier version",
            hint=f"it has: {', '.join(map(str, versions))}",
        )
    plan = Rollback(config=config, title=f"version {found[0].get('version')} of {endpoint}")
    _add(plan, deployed, history, str(found[0]["id"]), actual)
    return plan


def _choose(
    record: Record, histories: Mapping[str, Sequence[Mapping[str, Any]]], to: int | None, config: DeployConfig
) -> Any:
    """Return the deployment to go back to: the one before the last, or the last where something changed after it."""
    known = [str(item.number) for item in record.deployments]
    if to is not None:
        found = record.find(to)
        if found is None:
            raise DeployImpossible(
                f"there is no deployment {to} of {config.app} to {config.environment}",
                hint=f"there is: {', '.join(known) or 'none'}",
            )
        return found
    if not record.deployments:
        raise DeployImpossible(
            f"nobody wrote down the deployments of {config.app} to {config.environment}",
            hint="roll back one endpoint: flashkit rollback NAME [--to VERSION]",
        )
    now = {name: str(history[0]["id"]) for name, history in histories.items() if history}
    last = record.deployments[-1]
    if any(last.releases.get(name) != release for name, release in now.items()):
        return last
    if len(record.deployments) < 2:  # noqa: PLR2004
        raise DeployImpossible(
            f"deployment {last.number} is the first one of {config.app} to {config.environment}",
            hint="there is nothing to go back to; flashkit undeploy removes it",
        )
    return record.deployments[-2]


def _add(
    plan: Rollback, deployed: Deployed, history: Sequence[Mapping[str, Any]], release: str, actual: Actual
) -> None:
    """Add what becomes of one endpoint."""
    ids = [str(item["id"]) for item in history]
    if release not in ids:
        plan.problems.append(
            f"the platform does not remember the release of {deployed.name} any more, or it was made anew since"
        )
        return
    restored = restore(deployed, history[: ids.index(release)])
    if restored.unknown:
        plan.problems.append(
            f"{deployed.name} changed in a way that flashkit cannot undo: {', '.join(sorted(set(restored.unknown)))}"
        )
        return
    restored.env = _own_env(restored.env, deployed, {name: item.id for name, item in actual.endpoints.items()})
    plan.restored[deployed.name] = restored
    plan.changes.append(plan_update(deployed, restored.fields, restored.env, plan.config))


def _own_env(env: Mapping[str, str], deployed: Deployed, ids: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that were flashkit's then, with the ids that endpoints have now."""
    marker = read_marker(env) or deployed.marker
    own = {name: value for name, value in env.items() if name in (*marker.keys, DEPLOYMENT_VARIABLE)}
    if ENDPOINTS_VARIABLE in own:
        own[ENDPOINTS_VARIABLE] = _present_ids(own[ENDPOINTS_VARIABLE], ids)
    return own


def _present_ids(text: str, ids: Mapping[str, str]) -> str:
    try:
        then: Mapping[str, str] = json.loads(text)
        return endpoints_value({name: ids.get(name, value) for name, value in then.items()})
    except (ValueError, AttributeError):
        return text

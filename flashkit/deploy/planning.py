"""The difference between what is wanted and what is there, as a plan: pure, so that looking at it changes nothing.

Every reason why a plan cannot be carried out is found before anything is sent, and all of them are told at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from flashkit.deploy.actual import Actual, Deployed, Volume
from flashkit.deploy.calls import dependency_order
from flashkit.deploy.confidential import shown
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.fields import Fields, family_of, same
from flashkit.deploy.identity import ENDPOINTS_VARIABLE, deployed_name, endpoints_value
from flashkit.deploy.prices import Cost, cost_of, volume_cost
from flashkit.deploy.problems import Problem, find_problems, scarcity_notes
from flashkit.deploy.wishes import (
    EndpointWish,
    Known,
    VolumeKey,
    merged_env,
    volume_keys,
    wanted_env,
    wanted_fields,
)
from flashkit.protocol import DEPLOYMENT_VARIABLE
from flashkit.spec import Kind

AFTER_APPLY: Final = "(known after apply)"


class Action(StrEnum):
    """What becomes of a thing."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    """Deleted and made anew, with another id: the platform cannot change it in place."""
    DELETE = "delete"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, before and after, as it may be shown."""

    field: str
    before: Any
    after: Any

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"field": self.field, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one endpoint or volume."""

    action: Action
    kind: str
    """`endpoint` or `volume`."""
    name: str
    id: str | None = None
    fields: tuple[FieldChange, ...] = ()
    names: tuple[str, ...] = ()
    """Fields that are sent."""
    sends_env: bool = False
    volume: VolumeKey | None = None
    """Of a volume: what tells it from others of its name."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "action": self.action.value,
            "kind": self.kind,
            "name": self.name,
            "id": self.id,
            "fields": [item.to_dict() for item in self.fields],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeWish:
    """A network volume as it should be."""

    key: VolumeKey
    size: int


@dataclass(slots=True, kw_only=True)
class Plan:
    """Everything that a deployment would do, in order, and what it costs."""

    config: DeployConfig
    volumes: list[Change] = field(default_factory=list)
    endpoints: list[Change] = field(default_factory=list)
    """In the order in which they are made: callees first."""
    secrets: list[str] = field(default_factory=list)
    """Secrets that are stored first."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """Why it cannot be carried out."""
    costs: list[Cost] = field(default_factory=list)
    wishes: dict[str, EndpointWish] = field(default_factory=dict)
    volume_wishes: dict[VolumeKey, VolumeWish] = field(default_factory=dict)

    @property
    def changes(self) -> list[Change]:
        """Everything, volumes first."""
        return [*self.volumes, *self.endpoints]

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to do."""
        return not self.secrets and all(change.action is Action.UNCHANGED for change in self.changes)

    @property
    def removals(self) -> list[Change]:
        """What is deleted, for good or to be made anew."""
        return [change for change in self.changes if change.action in (Action.DELETE, Action.REPLACE)]

    def count(self, action: Action) -> int:
        """Return how many things this becomes of."""
        return sum(change.action is action for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, without anything secret."""
        return {
            "app": self.config.app,
            "environment": self.config.environment,
            "changes": [change.to_dict() for change in self.changes],
            "secrets": self.secrets,
            "costs": [cost.to_dict() for cost in self.costs],
            "notes": self.notes,
            "problems": [problem.to_dict() for problem in self.problems],
        }


def make_plan(
    wishes: Sequence[EndpointWish],
    actual: Actual,
    config: DeployConfig,
    *,
    new_secrets: Sequence[str] = (),
    keeps_others: bool = False,
    is_local: bool = False,
) -> Plan:
    """Return what has to be done so that the platform is as it is wished.

    Args:
        wishes: The app's endpoints as they should be.
        actual: The platform as it was found.
        config: Names of app and environment.
        new_secrets: Secrets that are to be stored unless the account has them.
        keeps_others: Endpoints that the app has no more are left as they are.
        is_local: The platform runs the app's own code on this machine.
    """
    by_name = {wish.name: wish for wish in wishes}
    plan = Plan(config=config, wishes=by_name)
    known = known_ids(actual)
    plan.secrets = [name for name in new_secrets if name not in (actual.secrets or frozenset())]
    plan.problems = find_problems(wishes, actual, config, new_secrets=new_secrets, is_local=is_local)
    for wish in _volume_wishes(wishes):
        plan.volume_wishes[wish.key] = wish
        plan.volumes.append(_plan_volume(wish, actual.volumes_of(wish.key), plan.notes))
    order = dependency_order({wish.name: wish.calls for wish in wishes})
    plan.endpoints = [_plan_endpoint(by_name[name], actual, known, config) for name in order]
    for name, deployed in actual.endpoints.items():
        if name not in by_name and keeps_others:
            plan.notes.append(f"{name} ({deployed.id}) is not in the app any more, and is kept")
        elif name not in by_name:
            plan.endpoints.append(Change(action=Action.DELETE, kind="endpoint", name=name, id=deployed.id))
    plan.notes += _notes_of(wishes, actual)
    if not is_local:
        plan.notes += _session_notes(wishes)
    plan.costs = [cost_of(wish, actual.prices, actual.pools) for wish in wishes]
    plan.costs += [volume_cost(wish.key.name, wish.size) for wish in plan.volume_wishes.values()]
    return plan


def known_ids(actual: Actual) -> Known:
    """Return the ids of what is there."""
    return Known(
        endpoint_ids={name: deployed.id for name, deployed in actual.endpoints.items()},
        volume_ids={volume.key: volume.id for volume in reversed(actual.volumes)},
        registry_ids=dict(actual.registries),
        pools=actual.pools,
    )


# ---------------------------------------------------------------------- volumes


def _volume_wishes(wishes: Sequence[EndpointWish]) -> list[VolumeWish]:
    """Return each volume once; where two endpoints want different sizes, the larger one."""
    sizes: dict[VolumeKey, int] = {}
    for wish in wishes:
        sizes_here = {volume.name: volume.size for volume in wish.volumes}
        for key in volume_keys(wish):
            sizes[key] = max(sizes.get(key, 0), sizes_here[key.name])
    return [VolumeWish(key=key, size=size) for key, size in sizes.items()]


def _plan_volume(wish: VolumeWish, found: Sequence[Volume], notes: list[str]) -> Change:
    place = FieldChange("dataCenter", None, wish.key.datacenter)
    if not found:
        size = FieldChange("size", None, wish.size)
        return Change(action=Action.CREATE, kind="volume", name=wish.key.name, volume=wish.key, fields=(size, place))
    present = found[0]
    if present.size < wish.size:
        size = FieldChange("size", present.size, wish.size)
        return Change(
            action=Action.UPDATE, kind="volume", name=wish.key.name, volume=wish.key, id=present.id, fields=(size,)
        )
    if present.size > wish.size:
        notes.append(f"volume {wish.key.name} keeps its {present.size} GB: volumes cannot shrink to {wish.size} GB")
    return Change(action=Action.UNCHANGED, kind="volume", name=wish.key.name, volume=wish.key, id=present.id)


# ---------------------------------------------------------------------- endpoints


def _plan_endpoint(wish: EndpointWish, actual: Actual, known: Known, config: DeployConfig) -> Change:
    fields, env = wanted_fields(wish, known), wanted_env(wish, known, config)
    deployed = actual.endpoints.get(wish.name)
    if deployed is None:
        changes = [FieldChange(name, None, value) for name, value in fields.items() if value not in (None, [])]
        changes += _env_changes(env, {}, config)
        return Change(
            action=Action.CREATE,
            kind="endpoint",
            name=wish.name,
            fields=(*changes, *_late_ids(wish, known)),
        )
    change = plan_update(deployed, fields, env, config)
    late = tuple(_late_ids(wish, known))
    if not late:
        return change
    action = Action.UPDATE if change.action is Action.UNCHANGED else change.action
    fields_shown = tuple(item for item in change.fields if item.field != f"env.{ENDPOINTS_VARIABLE}")
    return Change(
        action=action,
        kind="endpoint",
        name=wish.name,
        id=deployed.id,
        fields=(*fields_shown, *late),
        names=change.names,
        sends_env=True,
    )


def plan_update(deployed: Deployed, fields: Fields, env: Mapping[str, str], config: DeployConfig) -> Change:
    """Return what has to be sent so that an endpoint has these fields and variables."""
    changed = [name for name, value in fields.items() if not same(name, value, deployed.fields.get(name))]
    whole = merged_env(env, deployed.env, deployed.marker.keys)
    env_changes = _env_changes(whole, deployed.env, config)
    sends_env = bool(env_changes)
    shown_fields = [FieldChange(name, deployed.fields.get(name), fields[name]) for name in changed]
    name = deployed_name(config.app, config.environment, deployed.name)
    if deployed.deployed_name != name:
        changed.append("name")
        shown_fields.append(FieldChange("name", deployed.deployed_name, name))
    if shown_fields:
        env_changes = [item for item in env_changes if item.field != f"env.{DEPLOYMENT_VARIABLE}"]
    return Change(
        action=_action(deployed, fields, is_changed=bool(changed) or sends_env),
        kind="endpoint",
        name=deployed.name,
        id=deployed.id,
        fields=(*shown_fields, *env_changes),
        names=tuple(changed),
        sends_env=sends_env,
    )


def _action(deployed: Deployed, fields: Fields, *, is_changed: bool) -> Action:
    if not is_changed:
        return Action.UNCHANGED
    is_other = fields["type"] != deployed.fields["type"] or family_of(fields) != family_of(deployed.fields)
    return Action.REPLACE if is_other else Action.UPDATE


def _env_changes(wanted: Mapping[str, str], present: Mapping[str, str], config: DeployConfig) -> list[FieldChange]:
    """Return the variables that change; secret ones without their values, flashkit's own note last, if alone."""
    names = sorted({*wanted, *present} - {DEPLOYMENT_VARIABLE})
    changes = [
        FieldChange(f"env.{name}", _shown(name, present, config), _shown(name, wanted, config))
        for name in names
        if wanted.get(name) != present.get(name)
    ]
    if not changes and present and wanted.get(DEPLOYMENT_VARIABLE) != present.get(DEPLOYMENT_VARIABLE):
        changes.append(FieldChange(f"env.{DEPLOYMENT_VARIABLE}", "flashkit's note of before", "flashkit's note"))
    return changes


def _shown(name: str, env: Mapping[str, str], config: DeployConfig) -> str | None:
    return shown(name, env.get(name), plain=config.plain)


def _late_ids(wish: EndpointWish, known: Known) -> Iterator[FieldChange]:
    """Yield the change of ids that only the making of other endpoints brings."""
    missing = [name for name in wish.calls if name not in known.endpoint_ids]
    if missing and ENDPOINTS_VARIABLE not in wish.env:
        present = {name: known.endpoint_ids[name] for name in wish.calls if name in known.endpoint_ids}
        after = endpoints_value({**present, **dict.fromkeys(missing, AFTER_APPLY)})
        yield FieldChange(f"env.{ENDPOINTS_VARIABLE}", endpoints_value(present) if present else None, after)


def _session_notes(wishes: Sequence[EndpointWish]) -> Iterator[str]:
    for wish in wishes:
        if wish.spec.kind is Kind.ORCHESTRATOR and "FLASHKIT_STATE" not in wish.env:
            yield (
                f"{wish.name} has no FLASHKIT_STATE: its sessions are in its worker's own file, and are lost with it; "
                "docs/production.md says how to use Redis"
            )


def _notes_of(wishes: Sequence[EndpointWish], actual: Actual) -> Iterator[str]:
    """Yield what a person should know, and what changes nothing."""
    yield from scarcity_notes(wishes, actual)
    for wish in wishes:
        deployed = actual.endpoints.get(wish.name)
        if deployed is None:
            continue
        foreign = sorted(deployed.env.keys() - {*deployed.marker.keys, DEPLOYMENT_VARIABLE, *wish.env})
        if foreign:
            yield f"{wish.name} keeps variables that flashkit did not set: {', '.join(foreign)}"
    for double in actual.doubles:
        first = actual.endpoints[double.name]
        yield f"{double.name} is there twice: {first.id} is used, {double.id} is not; delete it in Runpod's console"

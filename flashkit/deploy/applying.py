"""Carrying a plan out: secrets, volumes, endpoints that are called, their callers, what is deleted; then the record.

Each step can be done again without harm, and every one is found again by what it made: a deployment that stopped goes
on when the same command is run again. What was made before it stopped is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from flashkit.deploy.actual import Actual, Deployed, read_secrets, read_volume
from flashkit.deploy.api import ManagementApi, Uncertain
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.failures import DeployStopped
from flashkit.deploy.fields import ROLLING, Fields
from flashkit.deploy.once import make_once
from flashkit.deploy.planning import Action, Change, Plan, known_ids, plan_update
from flashkit.deploy.record import Deployment, add_deployment
from flashkit.deploy.sending import create_endpoint, update_endpoint
from flashkit.deploy.wishes import EndpointWish, wanted_env, wanted_fields
from flashkit.errors import FlashkitError

STORE_MUTATION: Final = "mutation secret($input: SecretCreateInput!) { secretCreate(input: $input) { id } }"


class Moment(StrEnum):
    """How far a step is."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done."""

    action: str
    """A verb that ends in e: `create`, `update`, `replace`, `delete`, `store`."""
    kind: str
    name: str
    moment: Moment
    id: str | None = None

    @property
    def words(self) -> str:
        """The step when it is done: `created endpoint notes (4m7x2k9q)`."""
        known = f" ({self.id})" if self.id else ""
        return f"{self.action}d {self.kind} {self.name}{known}"


OnStep = Callable[[Step], None]


@dataclass(slots=True)
class Outcome:
    """What a deployment did."""

    steps: list[Step] = field(default_factory=list)
    endpoints: dict[str, Deployed] = field(default_factory=dict)
    """By their names in the app."""
    deployment: Deployment | None = None
    """Its number in the record; None where nothing was changed."""
    rolling: list[str] = field(default_factory=list)
    """Endpoints whose workers are replaced."""
    warning: str = ""
    """What a person should know, although everything was done."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "steps": [step.words for step in self.steps],
            "endpoints": {name: {"id": item.id, "urls": dict(item.urls)} for name, item in self.endpoints.items()},
            "deployment": None if self.deployment is None else self.deployment.to_dict(),
            "rolling": self.rolling,
            "warning": self.warning,
        }


class Progress:
    """The steps of a command as they begin and end, for whoever watches, and for the error that names them."""

    def __init__(self, planned: list[str], on_step: OnStep) -> None:
        self.steps: list[Step] = []
        self._planned = planned
        self._on_step = on_step
        self._present: Step | None = None

    def begin(self, action: str, kind: str, name: str, known_id: str | None = None) -> None:
        """Say that a step begins."""
        self._present = Step(action, kind, name, Moment.BEGUN, known_id)
        self._on_step(self._present)

    def end(self, known_id: str | None = None) -> None:
        """Say that the step that began is done."""
        begun = self._present
        if begun is None:
            raise RuntimeError("no step has begun")
        step = Step(begun.action, begun.kind, begun.name, Moment.DONE, known_id or begun.id)
        self.steps.append(step)
        self._present = None
        self._on_step(step)

    def stopped(self, cause: Exception) -> DeployStopped:
        """Return the error for a command that cannot go on: what was done, what failed, what is left."""
        error = _as_error(cause)
        done = [step.words for step in self.steps]
        did = {_plain(step) for step in self.steps}
        failed = "" if self._present is None else _plain(self._present)
        if self._present is not None:
            present = self._present
            self._on_step(Step(present.action, present.kind, present.name, Moment.FAILED, present.id))
        left = [item for item in self._planned if item not in did and item != failed]
        hint = error.report.hint or "correct what is wrong"
        return DeployStopped(
            f"could not {failed or 'go on'}: {error.report.message}",
            hint=f"{hint}. Done before: {'; '.join(done) or 'nothing'}. Left: {'; '.join(left) or 'nothing else'}. "
            "The same command goes on from here",
            details={"done": done, "failed": failed, "left": left, "cause": error.report.to_dict()},
        )


def _plain(step: Step) -> str:
    return f"{step.action} {step.kind} {step.name}"


def _as_error(exc: Exception) -> FlashkitError:
    if isinstance(exc, Uncertain):
        return exc.cause
    if isinstance(exc, FlashkitError):
        return exc
    raise exc


STOPPING: Final = (FlashkitError, Uncertain)
"""What ends a command half-way."""


async def apply_plan(
    api: ManagementApi,
    plan: Plan,
    actual: Actual,
    *,
    secrets: Mapping[str, str] | None = None,
    note: str = "",
    on_step: OnStep = lambda step: None,
) -> Outcome:
    """Carry out a plan and return what was done.

    Args:
        api: The platform.
        plan: What to do; one with problems is not carried out.
        actual: The platform as the plan found it.
        secrets: Values of secrets that are to be stored, by name.
        note: What the record says about this deployment.
        on_step: Told of each step as it begins and ends.

    Raises:
        DeployStopped: A step failed. `details` says what was done before, and what is left.
    """
    changes = [item for item in plan.changes if item.action is not Action.UNCHANGED]
    planned = [f"store secret {name}" for name in plan.secrets]
    planned += [f"{item.action.value} {item.kind} {item.name}" for item in changes]
    progress = Progress(planned, on_step)
    work = _Work(api, plan, actual, dict(secrets or {}), progress)
    try:
        await work.run()
    except STOPPING as exc:
        raise progress.stopped(exc) from exc
    if progress.steps:
        await write_down(api, plan.config, work.outcome, note=note)
    return work.outcome


async def write_down(api: ManagementApi, config: DeployConfig, outcome: Outcome, *, note: str) -> None:
    """Add a deployment to the record; where that fails, everything is deployed nevertheless."""
    try:
        releases = {name: await newest_release(api, item.id) for name, item in outcome.endpoints.items()}
        image = next((str(item.fields.get("image")) for item in outcome.endpoints.values()), "flashkit")
        outcome.deployment = await add_deployment(api, config, releases, note=note, image=image)
    except STOPPING as exc:
        words = _as_error(exc).report.message
        outcome.warning = f"this deployment could not be written down, so rollback does not know it: {words}"


async def newest_release(api: ManagementApi, endpoint_id: str) -> str:
    """Return the id of the release that is in force."""
    releases = (await api.get(f"/serverless/{endpoint_id}/releases")).get("releases") or ()
    return str(releases[0]["id"]) if releases else ""


class _Work:
    """One deployment under way."""

    def __init__(
        self, api: ManagementApi, plan: Plan, actual: Actual, secrets: dict[str, str], progress: Progress
    ) -> None:
        self.outcome = Outcome(steps=progress.steps, endpoints=dict(actual.endpoints))
        self._api = api
        self._plan = plan
        self._config = plan.config
        self._known = known_ids(actual)
        self._secrets = secrets
        self._progress = progress

    async def run(self) -> None:
        """Do everything in order."""
        for name in self._plan.secrets:
            await self._store_secret(name)
        for change in self._plan.volumes:
            await self._make_volume(change)
        made = [change for change in self._plan.endpoints if change.action is not Action.DELETE]
        for change in made:
            await self._make_endpoint(change)
        for change in made:  # callers get the ids of endpoints that were made after them
            await self._update_endpoint(self._plan.wishes[change.name])
        for change in self._plan.endpoints:
            if change.action is Action.DELETE:
                await self._delete_endpoint(change)

    # ------------------------------------------------------------------ secrets and volumes

    async def _store_secret(self, name: str) -> None:
        self._progress.begin("store", "secret", name)
        value = self._secrets[name]
        self._api.confidential.add(value)
        given = {"input": {"name": name, "value": value, "description": f"stored by flashkit for {self._config.app}"}}

        async def make() -> str:
            await self._api.mutate(STORE_MUTATION, given, is_repeatable=False)
            return name

        async def look() -> str | None:
            return name if name in await read_secrets(self._api) else None

        await make_once(self._api, make, look)
        self._progress.end()

    async def _make_volume(self, change: Change) -> None:
        if change.action is Action.UNCHANGED or change.volume is None:
            return
        wish = self._plan.volume_wishes[change.volume]
        self._progress.begin(change.action.value, "volume", change.name, change.id)
        if change.action is Action.UPDATE:
            await self._api.change(f"/network-volumes/{change.id}", {"size": wish.size})
            self._progress.end()
            return
        body = {"name": wish.key.name, "size": wish.size, "dataCenter": wish.key.datacenter}

        async def make() -> str:
            return str((await self._api.create("/network-volumes", body))["id"])

        async def look() -> str | None:
            found = [read_volume(item) for item in await self._api.list("/network-volumes", "networkVolumes")]
            return next((item.id for item in found if item.key == wish.key), None)

        volume_id = await make_once(self._api, make, look)
        self._known.volume_ids[wish.key] = volume_id
        self._progress.end(volume_id)

    # ------------------------------------------------------------------ endpoints

    async def _make_endpoint(self, change: Change) -> None:
        wish = self._plan.wishes[change.name]
        if change.action in (Action.UNCHANGED, Action.UPDATE):
            await self._update_endpoint(wish)
            return
        self._progress.begin(change.action.value, "endpoint", change.name, change.id)
        if change.action is Action.REPLACE:
            await self._api.remove(f"/serverless/{change.id}")
            del self.outcome.endpoints[change.name], self._known.endpoint_ids[change.name]
        fields, env = self._wanted(wish)
        made = await create_endpoint(self._api, self._config, wish.name, fields, env)
        self._take(made)
        self._progress.end(made.id)

    async def _update_endpoint(self, wish: EndpointWish) -> None:
        """Send what is still different, if anything is: ids may have become known since the plan."""
        deployed = self.outcome.endpoints[wish.name]
        fields, env = self._wanted(wish)
        change = plan_update(deployed, fields, env, self._config)
        if change.action is Action.UNCHANGED:
            return
        self._progress.begin("update", "endpoint", wish.name, deployed.id)
        self._take(await update_endpoint(self._api, self._config, deployed, change, fields=fields, env=env))
        if is_rolling(change) and wish.name not in self.outcome.rolling:
            self.outcome.rolling.append(wish.name)
        self._progress.end()

    async def _delete_endpoint(self, change: Change) -> None:
        self._progress.begin("delete", "endpoint", change.name, change.id)
        await self._api.remove(f"/serverless/{change.id}")
        self.outcome.endpoints.pop(change.name, None)
        self._progress.end()

    def _wanted(self, wish: EndpointWish) -> tuple[Fields, dict[str, str]]:
        return wanted_fields(wish, self._known), wanted_env(wish, self._known, self._config)

    def _take(self, deployed: Deployed) -> None:
        self._known.endpoint_ids[deployed.name] = deployed.id
        self.outcome.endpoints[deployed.name] = deployed


def is_rolling(change: Change) -> bool:
    """Return whether workers are replaced for a change."""
    return change.sends_env or any(name.partition(".")[0] in ROLLING for name in change.names)

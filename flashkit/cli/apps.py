"""What the user's app files define, found out in a process of its own.

The app is never imported here: `python -m flashkit.worker --describe APP.py` does it, so a module that
crashes, hangs or keeps state cannot hurt the command that asks. A plain `runpod.serverless.start` file
defines no endpoint; it runs as it is, as one endpoint named after the file, with the sample of its
`test_input.json` and the variables that `.runpod/hub.json` gives a worker.
"""

from __future__ import annotations

import re
import sys
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashkit.cli.describing import ask_app, no_endpoint_in, refuse_doubles
from flashkit.cli.hub import hub_environment
from flashkit.cli.projects import project_folder, read_sample
from flashkit.emulator.server import LocalEndpoint
from flashkit.errors import ConfigurationError, DefinitionError, FlashkitError, InputError
from flashkit.spec import EndpointSpec, Kind

_HANDLER_CPU = "cpu3c-2-4"


@dataclass(frozen=True, slots=True)
class AppEndpoint:
    """One endpoint of an app, ready to run here."""

    local: LocalEndpoint
    signature: str
    where: str
    routes: tuple[Mapping[str, Any], ...] = ()
    """Routes of a load-balanced endpoint: `method`, `path`, and an `example` that it takes."""
    attribute: str = ""
    """Variable that holds the endpoint; none in a plain handler file."""
    loaded: frozenset[Path] = frozenset()
    """Files of the project that importing the app brought in."""

    @property
    def spec(self) -> EndpointSpec:
        """The endpoint's description."""
        return self.local.spec

    @property
    def name(self) -> str:
        """The endpoint's name in URLs."""
        return self.local.spec.name

    @property
    def file(self) -> Path:
        """The app's file."""
        name = self.local.command[-1]
        return self.local.cwd / (name.rpartition(":")[0] if self.attribute else name)

    @property
    def example(self) -> Any:
        """An input that the handler takes."""
        return self.local.example

    @property
    def description(self) -> str:
        """The docstring of what the user wrote."""
        return self.local.description

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON schema of the handler's input."""
        return self.local.schema or {"type": "object"}


async def describe_apps(apps: Sequence[Path], *, env: MutableMapping[str, str]) -> list[AppEndpoint]:
    """Return the endpoints of all the apps.

    Raises:
        DefinitionError: An app does not import, defines nothing, or two endpoints have one name.
    """
    found = [endpoint for app in apps for endpoint in await describe_app(app, env=env)]
    check_names(found)
    return found


async def describe_app(app: Path, *, env: MutableMapping[str, str]) -> list[AppEndpoint]:
    """Return the endpoints of one app.

    Args:
        app: Its file.
        env: What its workers get on top of their environment; later changes of it reach later workers.

    Raises:
        DefinitionError: The app does not import, or defines nothing.
    """
    data = await ask_app(app)
    try:
        worker_env: Mapping[str, str] = ChainMap(env, hub_environment(project_folder(app)))
    except ConfigurationError as exc:
        raise DefinitionError.from_report(exc.report) from exc
    if data.get("runpod_handler"):
        return [_handler_endpoint(app, worker_env)]
    loaded = frozenset(map(Path, data.get("files", ())))
    endpoints = [_read_endpoint(app, item, worker_env, loaded) for item in data.get("endpoints", ())]
    if not endpoints:
        raise no_endpoint_in(app)
    return endpoints


def check_names(endpoints: Sequence[AppEndpoint]) -> None:
    """Refuse two endpoints with one name."""
    refuse_doubles((endpoint.name, endpoint.where) for endpoint in endpoints)


def _read_endpoint(app: Path, item: Mapping[str, Any], env: Mapping[str, str], loaded: frozenset[Path]) -> AppEndpoint:
    command = (sys.executable, "-m", "flashkit.worker", f"{app.name}:{item['attribute']}")
    return AppEndpoint(
        local=LocalEndpoint(
            EndpointSpec.from_dict(item["spec"]),
            command,
            app.parent,
            env,
            description=str(item.get("description") or ""),
            example=item.get("example", {}),
            schema=item.get("schema"),
        ),
        signature=str(item.get("signature", "")),
        where=str(item.get("where") or app.name),
        routes=tuple(item.get("routes", ())),
        attribute=str(item["attribute"]),
        loaded=loaded,
    )


def _handler_endpoint(app: Path, env: Mapping[str, str]) -> AppEndpoint:
    name = re.sub(r"[^a-z0-9]+", "-", app.stem.lower()).strip("-")[:63]
    try:
        spec = EndpointSpec(name=name, kind=Kind.CPU, cpu=_HANDLER_CPU)
    except FlashkitError as exc:
        raise DefinitionError(
            f"{app.name} gives no name for an endpoint",
            hint="rename the file to lower-case letters and digits",
        ) from exc
    command = (sys.executable, app.name)
    return AppEndpoint(LocalEndpoint(spec, command, app.parent, env, example=_sample_of(app)), "(job)", app.name)


def _sample_of(app: Path) -> Any:
    """Return an input for the banner; a sample file that cannot be read is complained about where it is used."""
    try:
        sample = read_sample(app)
    except InputError:
        sample = None
    return {"prompt": "hello"} if sample is None else sample

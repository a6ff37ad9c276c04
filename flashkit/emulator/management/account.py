"""What an account has: endpoints with their releases, templates, network volumes, registry credentials, secrets.

Every change goes through a method here, which checks it, and keeps the state in a file if there is one. Two processes
of one folder may share the file: it is read again when another one has written it.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from flashkit.emulator.management import rules
from flashkit.emulator.management.catalogue import Catalogue
from flashkit.emulator.management.configuration import Configuration, changed_configuration, new_configuration
from flashkit.emulator.management.problems import Problem, bad_request, not_found

_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 10
RELEASES_KEPT: Final = 100
"""Chosen: how many releases of an endpoint are remembered."""
_VOLUME_IN_USE: Final = 400
"""Undocumented: the status for deleting a volume that an endpoint has; that of a template in use."""


def random_id() -> str:
    """Return an id as the platform gives them."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


@dataclass(slots=True)
class Release:
    """One state of an endpoint's configuration."""

    id: str
    version: int
    created_at: str
    configuration: Configuration


@dataclass(slots=True)
class EndpointRecord:
    """One deployed endpoint."""

    id: str
    created_at: str
    releases: list[Release]
    """Oldest first; the last one is in force."""
    template_id: str | None = None
    """The template that GraphQL bound to it."""

    @property
    def configuration(self) -> Configuration:
        """What it is now."""
        return self.releases[-1].configuration

    @property
    def version(self) -> int:
        """The number of its present configuration."""
        return self.releases[-1].version


@dataclass(slots=True)
class State:
    """Everything that is kept."""

    endpoints: dict[str, EndpointRecord] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    registries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Ids and names; passwords are taken and forgotten."""
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Ids, names and descriptions; values are taken and forgotten."""


class Account:
    """The records of one account.

    Args:
        file: Where they are kept between runs; nowhere without one.
        catalogue: What can be had.
        now: Gives the time of day, in seconds since 1970.
        new_id: Makes an id that nothing has.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        catalogue: Catalogue,
        now: Callable[[], float],
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self.catalogue = catalogue
        self._file = file
        self._now = now
        self._new_id = new_id
        self._state = State()
        self._stamp: tuple[int, int] | None = None

    @property
    def state(self) -> State:
        """The records as they are now."""
        stamp = _stamp_of(self._file)
        if stamp != self._stamp and self._file is not None:
            self._state = State() if stamp is None else _read_state(self._file)
            self._stamp = stamp
        return self._state

    def save(self) -> None:
        """Keep the state as it is."""
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(f".{self._new_id()}")
        draft.touch(mode=0o600)  # environments may hold what is nobody's business
        draft.write_bytes(orjson.dumps(asdict(self._state), option=orjson.OPT_INDENT_2))
        draft.replace(self._file)
        self._stamp = _stamp_of(self._file)

    def timestamp(self) -> str:
        """Return the time as the API writes it."""
        return datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    # ------------------------------------------------------------------ endpoints

    def endpoint(self, endpoint_id: str) -> EndpointRecord:
        """Return an endpoint."""
        if endpoint_id not in self.state.endpoints:
            raise not_found("endpoint")
        return self.state.endpoints[endpoint_id]

    def create_endpoint(self, body: Mapping[str, Any]) -> EndpointRecord:
        """Make an endpoint of a body that fits the schema."""
        rules.check_compute_of_new(body)
        configuration = new_configuration(body, self._serverless_template(body))
        rules.check_idle_timeout(configuration, body)
        return self.add_endpoint(configuration)

    def add_endpoint(self, configuration: Configuration, *, template_id: str | None = None) -> EndpointRecord:
        """Make an endpoint of a whole configuration."""
        self._check(configuration)
        created_at = self.timestamp()
        first = Release(self._new_id(), 1, created_at, configuration)
        record = EndpointRecord(self._new_id(), created_at, [first], template_id)
        self.state.endpoints[record.id] = record
        self.save()
        return record

    def update_endpoint(self, endpoint_id: str, body: Mapping[str, Any]) -> EndpointRecord:
        """Change what a body names of an endpoint."""
        record = self.endpoint(endpoint_id)
        rules.check_compute_of_change(record.configuration, body)
        changed = changed_configuration(record.configuration, body, self._serverless_template(body))
        rules.check_idle_timeout(changed, body)
        return self.set_configuration(record, changed)

    def set_configuration(self, record: EndpointRecord, configuration: Configuration) -> EndpointRecord:
        """Put a configuration in force; one that changes something makes a release."""
        self._check(configuration)
        if configuration != record.configuration:
            release = Release(self._new_id(), record.version + 1, self.timestamp(), configuration)
            record.releases = [*record.releases, release][-RELEASES_KEPT:]
            self.save()
        return record

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Remove an endpoint, and the template that is bound to it."""
        record = self.endpoint(endpoint_id)
        del self.state.endpoints[endpoint_id]
        if record.template_id is not None:
            self.state.templates.pop(record.template_id, None)
        self.save()

    def _check(self, configuration: Configuration) -> None:
        homes = {volume["id"]: volume["dataCenter"] for volume in self.state.volumes.values()}
        rules.check_configuration(configuration, self.catalogue, homes, set(self.state.registries))

    def _serverless_template(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        template_id = body.get("templateId")
        if template_id is None:
            return None
        template = self.template(template_id)
        if not template["serverless"]:
            raise Problem(422, "the template is not a serverless template")
        return template

    # ------------------------------------------------------------------ templates

    def template(self, template_id: str) -> dict[str, Any]:
        """Return a template."""
        if template_id not in self.state.templates:
            raise not_found("template")
        return self.state.templates[template_id]

    def create_template(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a template of a body that fits the schema."""
        defaults = {
            "args": "",
            "disk": 50,
            "mounts": {},
            "ports": [],
            "env": {},
            "registry": None,
            "serverless": False,
            "public": False,
            "category": "NVIDIA",
            "startSsh": True,
            "startJupyter": True,
            "allowedCudaVersions": [],
        }
        return self._keep_template({**defaults, **body, "id": self._new_id()})

    def update_template(self, template_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change what a body names of a template."""
        return self._keep_template({**self.template(template_id), **body})

    def _keep_template(self, template: dict[str, Any]) -> dict[str, Any]:
        others = (item for item in self.state.templates.values() if item["id"] != template["id"])
        if template["name"] in {item["name"] for item in others}:
            raise bad_request("a template of this name exists already")  # chosen: names of templates are unique
        if template["registry"] and template["registry"] not in self.state.registries:
            raise bad_request("registry is not one of the account's credentials")
        self.state.templates[template["id"]] = template
        self.save()
        return template

    def delete_template(self, template_id: str) -> None:
        """Remove a template that nothing is bound to."""
        self.template(template_id)
        if any(record.template_id == template_id for record in self.state.endpoints.values()):
            raise bad_request("the template is bound to a serverless endpoint")
        del self.state.templates[template_id]
        self.save()

    # ------------------------------------------------------------------ network volumes

    def volume(self, volume_id: str) -> dict[str, Any]:
        """Return a network volume."""
        if volume_id not in self.state.volumes:
            raise not_found("network volume")
        return self.state.volumes[volume_id]

    def create_volume(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a volume of a body that fits the schema; names may be taken more than once."""
        if not self.catalogue.has_datacenter(body["dataCenter"]):
            raise bad_request(f"dataCenter {body['dataCenter']} is unknown")
        volume = {"type": "STANDARD", **body, "id": self._new_id()}
        self.state.volumes[volume["id"]] = volume
        self.save()
        return volume

    def update_volume(self, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Rename or enlarge a volume."""
        volume = self.volume(volume_id)
        if body.get("size", volume["size"]) < volume["size"]:
            raise bad_request(f"size must be at least {volume['size']}: volumes only grow")
        self.state.volumes[volume_id] = {**volume, **body}
        self.save()
        return self.state.volumes[volume_id]

    def delete_volume(self, volume_id: str) -> None:
        """Remove a volume that no endpoint has."""
        self.volume(volume_id)
        users = [
            record.configuration["name"]
            for record in self.state.endpoints.values()
            if volume_id in record.configuration["networkVolumes"]
        ]
        if users:
            raise Problem(_VOLUME_IN_USE, f"network volume is in use by endpoints: {', '.join(sorted(users))}")
        del self.state.volumes[volume_id]
        self.save()

    # ------------------------------------------------------------------ registries and secrets

    def registry(self, registry_id: str) -> dict[str, Any]:
        """Return a registry credential, without what is secret of it."""
        if registry_id not in self.state.registries:
            raise not_found("registry")
        return self.state.registries[registry_id]

    def create_registry(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the name of a registry credential."""
        registry = {"id": self._new_id(), "name": body["name"]}
        self.state.registries[registry["id"]] = registry
        self.save()
        return registry

    def delete_registry(self, registry_id: str) -> None:
        """Remove a registry credential; templates lose it silently, as documented."""
        self.registry(registry_id)
        del self.state.registries[registry_id]
        for template in self.state.templates.values():
            if template["registry"] == registry_id:
                template["registry"] = None
        self.save()

    def create_secret(self, name: str, description: str) -> dict[str, Any]:
        """Keep the name of a secret."""
        if name in {item["name"] for item in self.state.secrets.values()}:
            raise bad_request("a secret of this name exists already")  # chosen: it is referred to by its name
        secret = {"id": self._new_id(), "name": name, "description": description, "createdAt": self.timestamp()}
        self.state.secrets[secret["id"]] = secret
        self.save()
        return secret

    def delete_secret(self, secret_id: str) -> None:
        """Remove a secret."""
        if secret_id not in self.state.secrets:
            raise not_found("secret")
        del self.state.secrets[secret_id]
        self.save()


def _stamp_of(file: Path | None) -> tuple[int, int] | None:
    """Return what changes when somebody writes the file."""
    if file is None:
        return None
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read_state(file: Path) -> State:
    try:
        data = orjson.loads(file.read_bytes())
        endpoints = {item["id"]: _read_endpoint(item) for item in data.pop("endpoints").values()}
        return State(endpoints, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Problem(500, f"the state in {file} cannot be read; remove the file to begin anew") from exc


def _read_endpoint(data: Mapping[str, Any]) -> EndpointRecord:
    return EndpointRecord(**{**data, "releases": [Release(**item) for item in data["releases"]]})

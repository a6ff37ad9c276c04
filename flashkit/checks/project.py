"""What rules look at: an app's endpoints, its source, the files around it, and what is known of its models.

Plain values. `flashkit.cli.check_project` reads them from the disk; tests make them from texts. Endpoints are as the
app describes itself in a process of its own; what only the source tells (which options were written down, who calls
whom) is read from it as text and never imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from flashkit.spec import EndpointSpec, Kind


class Environment(StrEnum):
    """Where the app is going; production has the most rules."""

    PRODUCTION = "production"
    STAGING = "staging"
    DEV = "dev"


class LocalRun(StrEnum):
    """What is known of the endpoint's jobs on this machine."""

    SEEN = "seen"
    """One completed with the code as it is now."""
    OUTDATED = "outdated"
    """One completed, with other code."""
    NONE = "none"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file, as people are told of it."""

    file: str
    """Relative to the current folder, with forward slashes."""
    line: int = 1
    last_line: int = 0
    """Where a statement of several lines ends; a comment on any of them is about it."""

    @property
    def lines(self) -> range:
        """All its lines."""
        return range(self.line, max(self.line, self.last_line) + 1)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of another endpoint in the code of an endpoint."""

    callee: str
    """Name of the endpoint."""
    place: Place
    is_session_call: bool
    has_timeout: bool
    timeout: float | None = None
    """In seconds, where the source tells it."""


@dataclass(frozen=True, slots=True)
class FanOut:
    """Calls of one endpoint that one `gather` makes at the same time."""

    callee: str
    place: Place
    count: int
    """As many as the source tells."""
    is_open: bool = False
    """True when more follow from data."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """A call in async code that stops the worker's loop."""

    text: str
    place: Place
    instead: str


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that handles jobs or requests, as its source shows it."""

    name: str
    place: Place
    is_async: bool
    awaits: bool
    """It, or what it calls in the project, waits for something."""
    untyped: tuple[str, ...]
    """Parameters without annotation."""
    type_names: frozenset[str]
    """Names in its annotations."""


@dataclass(frozen=True, slots=True)
class Code:
    """What the source of an endpoint shows."""

    options: frozenset[str]
    """Options that the decorator's call names."""
    is_complete: bool
    """False where the call has `**options`: more may be given."""
    handlers: tuple[Handler, ...] = ()
    calls: tuple[Call, ...] = ()
    fan_outs: tuple[FanOut, ...] = ()
    blocking: tuple[Blocking, ...] = ()
    has_health: bool = False
    """A function of the user's answers for the worker's health."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint of the app."""

    spec: EndpointSpec
    place: Place
    code: Code | None = None
    """None where its decorator was not found in the source."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of its input."""
    routes: tuple[Mapping[str, Any], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of its workers: its own, the image's, those of `.runpod/hub.json` and of the deployment's settings."""
    plain: frozenset[str] = frozenset()
    """Variables whose names look secret and whose values are not, as the deployment's settings say."""
    has_model_cache: bool = False
    """The platform puts its weights onto the machines before workers start."""
    is_plain_handler: bool = False
    """A file that calls `runpod.serverless.start`."""
    local_run: LocalRun = LocalRun.NONE

    @property
    def name(self) -> str:
        """Its name in URLs."""
        return self.spec.name

    def names_option(self, option: str) -> bool:
        """Return whether the decorator's call names the option; True where nobody can tell."""
        return self.code is None or not self.code.is_complete or option in self.code.options


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose files are on this machine."""

    config: Mapping[str, Any]
    """Its `config.json`."""
    weights_bytes: int
    """Size of its weight files; 0 where there are none."""
    file: str
    """Where the config is, for messages."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """An app, or several in one folder, with everything that rules look at."""

    place: Place
    """The first line of the app, for what has no better place."""
    folder: str = "."
    """Of the project, relative to the current one."""
    environment: Environment = Environment.PRODUCTION
    endpoints: tuple[Endpoint, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of the project's files, by their paths as people are told of them."""
    models: Mapping[str, LocalModel] = field(default_factory=dict)
    """By the names of weights."""

    @cached_property
    def called(self) -> frozenset[str]:
        """Names of the endpoints that others of the app call."""
        return frozenset(call.callee for endpoint in self.endpoints if endpoint.code for call in endpoint.code.calls)

    @property
    def queues(self) -> Iterator[Endpoint]:
        """The endpoints with a queue."""
        return (endpoint for endpoint in self.endpoints if not endpoint.spec.load_balanced)

    def find(self, name: str) -> Endpoint | None:
        """Return the endpoint of this name."""
        return next((endpoint for endpoint in self.endpoints if endpoint.name == name), None)

    def is_entry(self, endpoint: Endpoint) -> bool:
        """Return whether clients send to this endpoint, as no other one of the app does."""
        return endpoint.name not in self.called

    def is_api(self, endpoint: Endpoint) -> bool:
        """Return whether people wait for this endpoint: an agent, or a model, that no other endpoint calls."""
        spec = endpoint.spec
        is_made_for_it = spec.kind is Kind.ORCHESTRATOR or (spec.engine is not None and spec.kind is Kind.GPU)
        return is_made_for_it and self.is_entry(endpoint)

    def path(self, name: str) -> str:
        """Return the path, as people are told of it, of a file in the project's folder."""
        return name if self.folder == "." else f"{self.folder}/{name}"

    def files_below(self, *prefixes: str) -> Iterator[tuple[str, str]]:
        """Yield path and text of the files whose path inside the project begins like one of these."""
        for path, text in self.files.items():
            if self.inside(path).startswith(prefixes):
                yield path, text

    def inside(self, path: str) -> str:
        """Return a file's path relative to the project's folder."""
        return path.removeprefix(f"{self.folder}/") if self.folder != "." else path

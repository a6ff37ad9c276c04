"""What was seen to work on this machine: for each endpoint, the code with which a job last completed.

`flashkit dev`, and pytest with the `platform` fixture, keep it in `.flashkit/local-runs.json`; `flashkit check`
compares it with the code as it is. The digest covers what `dependencies` says the endpoint depends on: its own
statements, decorator included, and the files of the project that they import. Packages that are installed are not in
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from flashkit.cli.dependencies import Dependencies, read_dependencies
from flashkit.cli.projects import project_folder
from flashkit.emulator.events import Event, JobEvent, ReloadEvent, RequestEvent
from flashkit.protocol import JobStatus

RUNS_FILE: Final = Path(".flashkit") / "local-runs.json"
_GOOD_STATUS: Final = range(200, 400)


class Runnable(Protocol):
    """An endpoint of an app, as `apps` describes it."""

    @property
    def name(self) -> str:
        """Its name in URLs."""

    @property
    def attribute(self) -> str:
        """Variable that holds it; none in a plain handler file."""

    @property
    def file(self) -> Path:
        """The app's file."""


class LocalRuns:
    """Notes completed jobs and answered requests, each endpoint and code once.

    Args:
        file: Where they are written.
        code_of: Gives the digest of an endpoint's code as it runs now, None where it is not known.
    """

    def __init__(self, file: Path, code_of: Callable[[str], str | None]) -> None:
        self._file = file
        self._code_of = code_of
        self._codes: dict[str, str | None] = {}
        """Digests since the last reload: a busy platform asks thousands of times a second."""
        self._begun: dict[str, str | None] = {}
        """Code that a running job began with, by job id: a file may be saved before the job ends."""
        self._noted: dict[str, str] = {}

    def notice(self, event: Event) -> None:
        """Take what the platform says; most of it is passed over."""
        match event:
            case ReloadEvent():
                self._codes.clear()
            case JobEvent(status=JobStatus.IN_PROGRESS):
                self._begun[event.job_id] = self._code(event.endpoint)
            case JobEvent() if event.status.is_final:
                code = self._begun.pop(event.job_id, None)
                if event.status is JobStatus.COMPLETED:
                    self._note(event.endpoint, code)
            case RequestEvent() if event.status in _GOOD_STATUS:
                self._note(event.endpoint, self._code(event.endpoint))

    def _code(self, endpoint: str) -> str | None:
        if endpoint not in self._codes:
            self._codes[endpoint] = self._code_of(endpoint)
        return self._codes[endpoint]

    def _note(self, endpoint: str, code: str | None) -> None:
        if code is None or self._noted.get(endpoint) == code:
            return
        self._noted[endpoint] = code
        run = {"code": code, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        record = _read(self._file) | {endpoint: run}  # another server of this folder may have written meanwhile
        with contextlib.suppress(OSError):  # a full disk takes the evidence, not the platform
            _make_folder(self._file.parent)
            draft = self._file.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps(record, indent=1))
            draft.replace(self._file)


def read_local_runs(file: Path) -> dict[str, str]:
    """Return the digests of the code with which jobs completed, by endpoint; empty where there is no record."""
    return {
        name: run["code"]
        for name, run in _read(file).items()
        if isinstance(run, dict) and isinstance(run.get("code"), str)
    }


def code_digest(dependencies: Dependencies, root: Path) -> str:
    """Return one digest of everything that an endpoint depends on, the same wherever the project's folder is."""
    files = sorted((_relative(path, root), digest) for path, digest in dependencies.files.items())
    return hashlib.blake2b(json.dumps([dependencies.own, files]).encode(), digest_size=16).hexdigest()


def watch_endpoints(endpoints: Iterable[Runnable]) -> Callable[[Event], None]:
    """Return what notes the runs of endpoints whose code stays as it is now, each in its project's folder."""
    by_app: dict[Path, dict[str, str]] = {}
    for endpoint in endpoints:
        if endpoint.attribute:
            by_app.setdefault(endpoint.file, {})[endpoint.attribute] = endpoint.name
    watchers = [_watch_app(app, names) for app, names in by_app.items()]

    def notice(event: Event) -> None:
        for watcher in watchers:
            watcher.notice(event)

    return notice


def _watch_app(app: Path, names: Mapping[str, str]) -> LocalRuns:
    folder = project_folder(app)
    now = read_dependencies(app, list(names), root=folder)
    codes = {names[attribute]: code_digest(each, folder) for attribute, each in now.items()}
    return LocalRuns(folder / RUNS_FILE, codes.get)


def _make_folder(folder: Path) -> None:
    """Make the folder of flashkit's own files, out of the way of git, below a project that is there."""
    if not folder.exists():
        folder.mkdir()
        (folder / ".gitignore").write_text("*\n")


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()

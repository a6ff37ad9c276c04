"""What a saved file changes: the app is described anew, and the endpoints whose code changed get new workers.

An endpoint is restarted when what it depends on (see `dependencies`) or its description differs from before, or
when nobody can tell. All others keep their workers, with whatever those have loaded. An app that stops importing
keeps the workers that run its last good code, or nothing, until it is fixed: new workers import the broken file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flashkit.cli.apps import AppEndpoint, check_names, describe_app
from flashkit.cli.dependencies import Dependencies, read_dependencies
from flashkit.cli.local_runs import code_digest
from flashkit.cli.projects import project_folder
from flashkit.cli.watching import FileKind, kind_of
from flashkit.emulator.events import ReloadEvent
from flashkit.emulator.server import Emulator
from flashkit.errors import DefinitionError, ErrorReport, FlashkitError, InputError, describe_exception


@dataclass(slots=True, eq=False)
class LoadedApp:
    """An app file, and its endpoints as they run."""

    path: Path
    folder: Path
    """Of the project."""
    endpoints: tuple[AppEndpoint, ...] = ()
    dependencies: Mapping[str, Dependencies] = field(default_factory=dict)
    """By the names of the endpoints."""
    problem: ErrorReport | None = None
    """Why it could not be imported when it was read last."""

    @property
    def names(self) -> set[str]:
        """Names of the endpoints."""
        return {endpoint.name for endpoint in self.endpoints}


class Apps:
    """The apps of one `flashkit dev`.

    Args:
        paths: Their files.
        env: What their workers get on top of their environment.
    """

    def __init__(self, paths: Sequence[Path], *, env: MutableMapping[str, str]) -> None:
        self.all = [LoadedApp(path, project_folder(path)) for path in paths]
        self._env = env

    @property
    def endpoints(self) -> list[AppEndpoint]:
        """The endpoints of all apps."""
        return [endpoint for app in self.all for endpoint in app.endpoints]

    @property
    def problems(self) -> dict[str, ErrorReport]:
        """Why apps do not import, by their files' names."""
        return {app.path.name: app.problem for app in self.all if app.problem is not None}

    def code_of(self, name: str) -> str | None:
        """Return a digest of the code that an endpoint runs, None where nobody can tell."""
        found = ((app.dependencies.get(name), app.folder) for app in self.all)
        return next((code_digest(dependencies, folder) for dependencies, folder in found if dependencies), None)

    async def load(self, app: LoadedApp) -> None:
        """Read an app anew.

        Raises:
            DefinitionError: It does not import; what was read before is kept.
        """
        try:
            endpoints, dependencies = await self._read(app)
        except DefinitionError as exc:
            app.problem = exc.report
            raise
        app.endpoints, app.dependencies, app.problem = endpoints, dependencies, None

    async def _read(self, app: LoadedApp) -> tuple[tuple[AppEndpoint, ...], dict[str, Dependencies]]:
        before = _read_state(app.path)  # first, so that a save during the import is seen as one
        found = await describe_app(app.path, env=self._env)
        others = [endpoint for other in self.all if other is not app for endpoint in other.endpoints]
        check_names([*others, *found])
        dependencies = _dependencies_of(app, found)
        if before != _read_state(app.path):
            dependencies = {}
        return tuple(found), dependencies

    async def reload(self, app: LoadedApp, saved: Sequence[Path], emulator: Emulator) -> ReloadEvent:
        """Bring what was saved into effect, and say what that was."""
        started = time.monotonic()
        files = tuple(_short_name(path, app.folder) for path in saved)
        before = {endpoint.name: endpoint for endpoint in app.endpoints}
        endpoints, earlier = app.endpoints, app.dependencies
        _forget_bytecode(saved)
        if not _may_matter(app, saved):
            return ReloadEvent(files, kept=tuple(sorted(before)))
        try:
            await self.load(app)
            restarted = {
                new.name
                for new in app.endpoints
                if (old := before.get(new.name)) and (is_other(old, new) or is_touched(app, old, earlier, saved))
            }
            added, removed = app.names - before.keys(), before.keys() - app.names
            changed = [endpoint.local for endpoint in app.endpoints if endpoint.name in restarted | added]
            await emulator.replace(changed, removed=removed)
        except (FlashkitError, OSError) as exc:
            app.endpoints, app.dependencies, app.problem = endpoints, earlier, describe_exception(exc)
            if isinstance(exc, DefinitionError):  # what the platform refuses imports well
                emulator.set_problem(before.keys(), app.problem)
            return ReloadEvent(files, kept=tuple(sorted(before)), error=app.problem)
        emulator.set_problem(app.names, None)
        return ReloadEvent(
            files,
            restarted=tuple(sorted(restarted)),
            added=tuple(sorted(added)),
            removed=tuple(sorted(removed)),
            kept=tuple(sorted(before.keys() - restarted - removed)),
            seconds=time.monotonic() - started,
        )


def _forget_bytecode(saved: Sequence[Path]) -> None:
    """Remove what Python compiled of these files: it takes a file of the same size and second for the same one."""
    for path in saved:
        if path.suffix == ".py":
            with contextlib.suppress(OSError):
                Path(importlib.util.cache_from_source(str(path))).unlink()


def is_other(old: AppEndpoint, new: AppEndpoint) -> bool:
    """True when the endpoint is described in another way than before."""
    return (old.local, old.signature, old.schema) != (new.local, new.signature, new.schema)


def is_touched(app: LoadedApp, old: AppEndpoint, earlier: Mapping[str, Dependencies], saved: Sequence[Path]) -> bool:
    """True when a saved file may change what the endpoint does."""
    before, now = earlier.get(old.name), app.dependencies.get(old.name)
    if before is None or now is None or before != now:
        return True
    kinds = {path: kind_of(path, below=app.folder) for path in saved}
    if FileKind.SETTINGS in kinds.values():
        return True
    code = {path for path, kind in kinds.items() if kind is FileKind.CODE}
    return bool(code) and (now.is_open or bool(code & _imported_by_nobody(app, old)))


def _imported_by_nobody(app: LoadedApp, endpoint: AppEndpoint) -> set[Path]:
    """Return the files that importing the app brought in, though the source of no endpoint says so."""
    known = {path for dependencies in app.dependencies.values() for path in dependencies.files}
    return set(endpoint.loaded) - known - {app.path}


def _may_matter(app: LoadedApp, saved: Sequence[Path]) -> bool:
    """True unless it is plain that no endpoint of the app depends on what was saved."""
    if not app.endpoints or app.problem or len(app.dependencies) < len(app.endpoints):
        return True
    kinds = {kind_of(path, below=app.folder) for path in saved}
    if FileKind.SETTINGS in kinds or app.path in saved:
        return True
    files = {path for dependencies in app.dependencies.values() for path in dependencies.files}
    files.update(*(endpoint.loaded for endpoint in app.endpoints))
    is_open = any(dependencies.is_open for dependencies in app.dependencies.values())
    return is_open or any(path in files or _may_be_new_module(path, app) for path in saved)


def _may_be_new_module(path: Path, app: LoadedApp) -> bool:
    """True for a file that takes the place of another module, as its dependencies would show."""
    try:
        now = _dependencies_of(app, app.endpoints)
    except DefinitionError:
        return True
    return any(path in dependencies.files for dependencies in now.values())


def _dependencies_of(app: LoadedApp, endpoints: Sequence[AppEndpoint]) -> dict[str, Dependencies]:
    names = {endpoint.attribute: endpoint.name for endpoint in endpoints}
    attributes = [attribute for attribute in names if attribute]
    try:
        found = read_dependencies(app.path, attributes, root=app.folder)
    except (OSError, SyntaxError, ValueError) as exc:
        raise DefinitionError(f"{app.path.name} cannot be read: {exc}") from exc
    return {names[attribute]: dependencies for attribute, dependencies in found.items()}


def _read_state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _short_name(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder)


def describe_reload(event: ReloadEvent) -> str:
    """Return in words what a save did."""
    done = "; ".join(_parts(event))
    return f"changed {', '.join(event.files)}: {done or 'no endpoint depends on it'}"


def _parts(event: ReloadEvent) -> Iterator[str]:
    if event.error is not None:
        what = "is refused" if event.error.type == InputError.__name__ else "does not import"
        yield f"{what}; running workers of {_quoted(event.kept)} keep the last good code" if event.kept else what
        return
    if event.restarted:
        yield f"restarted {_quoted(event.restarted)} ({event.seconds:.1f} s)"
    if event.added:
        yield f"added {_quoted(event.added)}"
    if event.removed:
        yield f"removed {_quoted(event.removed)}"
    if event.kept:
        verb = "does" if len(event.kept) == 1 else "do"
        yield f"{_quoted(event.kept)} kept warm ({verb} not use what changed)"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)

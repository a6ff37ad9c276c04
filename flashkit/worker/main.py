"""`python -m flashkit.worker app.py:name`: load the user's app and run one of its endpoints.

Without a name, FLASHKIT_ENDPOINT says which one, so that one image with one command serves every endpoint of an app;
an app with a single endpoint needs neither.

`--describe` prints what the app defines, as one line of JSON, and starts nothing; `flashkit dev` and
the deploy commands use it, so that user code is imported in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from flashkit.errors import (
    ConfigurationError,
    DefinitionError,
    FlashkitError,
    describe_exception,
    locate,
    user_traceback,
)
from flashkit.handler import Contract, Definition
from flashkit.http_routes import HttpDefinition
from flashkit.settings import Settings
from flashkit.worker.output import attribute_output
from flashkit.worker.phases import process_age_seconds

EXIT_USAGE: Final = 2
EXIT_IMPORT: Final = 3
"""The app could not be imported."""


class Defined(Protocol):
    """Anything that a decorator gave back."""

    @property
    def definition(self) -> Definition | HttpDefinition:
        """What the user wrote."""


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    match arguments:
        case ["--describe", app]:
            return describe(app)
        case [target, *_] if not target.startswith("-"):
            return _run(target)
    print("usage: python -m flashkit.worker APP.py[:NAME] | --describe APP.py", file=sys.stderr)  # noqa: T201
    return EXIT_USAGE


def serve(endpoint: Defined) -> None:
    """Run an endpoint as a worker of the platform this process was started by; returns when it stops it.

    Put it at the end of an app that an image starts with `python app.py`:

        if __name__ == "__main__":
            flashkit.serve(agent)
    """
    attribute_output()
    settings = Settings.from_environment()
    definition = endpoint.definition
    if settings.has_traces:
        from flashkit.telemetry.setup import start_traces

        start_traces(settings, service=definition.spec.name)
    if settings.has_metrics:
        from flashkit.telemetry.metrics_export import start_metrics

        start_metrics(settings, endpoint=definition.spec.name)
    if isinstance(definition, HttpDefinition):
        from flashkit.worker.http.server import serve_http

        if exit_code := serve_http(definition, settings):
            raise SystemExit(exit_code)
        return
    from flashkit.worker.runpod_sdk import serve_jobs
    from flashkit.worker.runtime import Runtime

    runtime = Runtime(definition, settings)
    if (age := process_age_seconds()) is not None:
        runtime.phases.add("imports", age)
    serve_jobs(runtime)


def load_app(app: str) -> ModuleType:
    """Import an app by file path or by module name, with its folder on the import path.

    Raises:
        ConfigurationError: There is no such file or module.
    """
    if not app.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return _import_module(app)
    path = Path(app).resolve()
    if not path.is_file():
        raise ConfigurationError(f"there is no file {app!r}", hint="name the Python file that defines your endpoints")
    sys.path.insert(0, str(path.parent))
    return _import_file(path)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
            raise  # it is there, but imports something that is not
        raise ConfigurationError(
            f"there is no module {name!r}", hint="name a Python file, or a module below the current folder"
        ) from exc


def _import_file(path: Path) -> ModuleType:
    """Import a file under its own name, or another one where that is taken: by `queue`, say, or `types`."""
    name = path.stem if path.stem not in sys.modules else f"app_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path.name} cannot be imported", hint="name a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_endpoint(app: str, name: str) -> Defined:
    """Return the endpoint with this attribute or endpoint name in the app.

    Raises:
        ConfigurationError: The app has no such endpoint.
    """
    endpoints = list_endpoints(load_app(app))
    by_name = {endpoint.definition.spec.name: endpoint for endpoint in endpoints.values()} | endpoints
    if name not in by_name:
        raise ConfigurationError(f"{app} has no endpoint {name!r}", hint=f"it has: {', '.join(endpoints) or 'none'}")
    return by_name[name]


def find_only_endpoint(app: str) -> Defined:
    """Return the endpoint of an app that has no other.

    Raises:
        ConfigurationError: The app has several, or none.
    """
    endpoints = list_endpoints(load_app(app))
    if len(endpoints) != 1:
        raise ConfigurationError(
            f"{app} has {len(endpoints)} endpoints, and none is named",
            hint=f"set FLASHKIT_ENDPOINT, or write {app}:NAME; it has: {', '.join(endpoints) or 'none'}",
        )
    return next(iter(endpoints.values()))


def list_endpoints(module: ModuleType) -> dict[str, Defined]:
    """Return the module's endpoints by attribute name, each once."""
    found: dict[int, tuple[str, Defined]] = {}
    for attribute, value in vars(module).items():
        definition = inspect.getattr_static(value, "definition", None)
        if isinstance(definition, Definition | HttpDefinition):  # runs no code of the user's
            found.setdefault(id(value), (attribute, value))
    return dict(found.values())


def describe(app: str) -> int:
    """Print the app's endpoints, or why it cannot be imported, as one line of JSON."""
    try:
        if _calls_runpod(app):
            _print_json({"endpoints": [], "runpod_handler": True})
            return 0
        endpoints = list_endpoints(load_app(app))
        described = [_describe_endpoint(*item) for item in endpoints.items()]
        _print_json({"endpoints": described, "runpod_handler": False, "files": _loaded_files(Path.cwd())})
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever the user's module raises is reported
        _print_json(describe_exception(exc, with_traceback=not _is_clear(exc)).to_dict())
        return EXIT_IMPORT
    return 0


def _is_clear(exc: BaseException) -> bool:
    """Return True for an error of ours that says enough: a wrong definition is told with the line that it is in.

    To the others a traceback adds something if it has a line of the user's and they name none.
    """
    return isinstance(exc, DefinitionError) or (
        isinstance(exc, FlashkitError) and (exc.report.where is not None or locate(exc.__traceback__) is None)
    )


def _loaded_files(folder: Path) -> list[str]:
    """Return the files below the folder that have been imported."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = {Path(file) for file in files if isinstance(file, str)}
    return sorted(str(path) for path in paths if path.is_relative_to(folder) and "site-packages" not in path.parts)


def _describe_endpoint(attribute: str, endpoint: Defined) -> dict[str, Any]:
    definition = endpoint.definition
    described = {
        "name": definition.spec.name,
        "attribute": attribute,
        "spec": definition.spec.to_dict(),
        "signature": definition.signature,
        "description": definition.description,
        "where": definition.where,
    }
    if isinstance(definition, HttpDefinition):
        from flashkit.worker.http.description import describe_routes

        return described | {"routes": describe_routes(definition)}
    contract = Contract(definition)
    return described | {"example": contract.example_input(), "schema": contract.input_schema()}


def _calls_runpod(app: str) -> bool:
    """True for a plain handler file: importing it would start the SDK's loop."""
    import ast

    path = Path(app)
    if path.suffix != ".py" or not path.is_file():
        return False
    nodes = list(ast.walk(ast.parse(path.read_bytes(), app)))
    imports = (node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "runpod.serverless")
    names = {alias.asname or alias.name for node in imports for alias in node.names if alias.name == "start"}
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    return any(call.endswith("serverless.start") or call in names for call in calls)


def _print_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, default=str) + "\n")


def _run(target: str) -> int:
    attribute_output()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    app, colon, name = target.rpartition(":") if ":" in target else (target, "", "")
    if not app or (colon and not name):
        print(f"{target!r} does not name an endpoint: write APP.py:NAME", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    try:
        named = name or Settings.from_environment().endpoint
        endpoint = find_endpoint(app, named) if named else find_only_endpoint(app)
    except FlashkitError as exc:
        print(exc.report.render(), file=sys.stderr)  # noqa: T201
        return EXIT_IMPORT
    except Exception as exc:  # noqa: BLE001 - whatever the user's module raises
        print(user_traceback(exc), file=sys.stderr)  # noqa: T201
        return EXIT_IMPORT
    try:
        serve(endpoint)
    except (ConfigurationError, DefinitionError) as exc:
        print(exc.report.render(), file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    return 0

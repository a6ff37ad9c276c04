"""What `flashkit check` reads: the apps' answers, the files around them, and the configs of models that are here.

All reading is here, once, at the start; the rules get values.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from flashkit.checks.images import image_env
from flashkit.checks.project import Environment, LocalModel, LocalRun, Place, Project
from flashkit.checks.reading import Described, read_endpoints
from flashkit.checks.source import Sources
from flashkit.cli.dependencies import read_dependencies
from flashkit.cli.describing import ask_app, no_endpoint_in, refuse_doubles
from flashkit.cli.hub import hub_environment
from flashkit.cli.local_runs import RUNS_FILE, code_digest, read_local_runs
from flashkit.cli.projects import project_folder
from flashkit.deploy.config import read_config
from flashkit.settings import Settings
from flashkit.spec import EndpointSpec, Kind, Weights, WorkerBounds

_SUFFIXES: Final = (".py", ".sh", ".ipynb", ".txt", ".toml", ".yaml", ".yml", ".json", ".cfg", ".ini", ".Dockerfile")
_NAMES: Final = (".env", ".dockerignore", ".gitignore", "Dockerfile")
"""How names begin that are read whatever follows."""
_LEFT_OUT: Final = frozenset({"node_modules", "__pycache__", "site-packages", "venv", "env", "build", "dist"})
_LARGEST_FILE: Final = 512_000
"""Larger files are data."""
MOST_FILES: Final = 5_000
_WEIGHT_FILES: Final = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_HANDLER_CPU: Final = "cpu3c-2-4"


@dataclass(frozen=True, slots=True)
class AppAnswer:
    """An app's file, and what it says of itself."""

    file: Path
    data: Mapping[str, Any]


def read_projects(apps: Sequence[Path], environment: Environment, *, here: Path, settings: Settings) -> list[Project]:
    """Return the projects of these apps, one for each folder.

    Args:
        apps: Their files.
        environment: Where they are going.
        here: The folder that places are told relative to.
        settings: Where models are on this machine.

    Raises:
        DefinitionError: An app does not import or defines no endpoint, or two endpoints have one name.
        ConfigurationError: `.runpod/hub.json` is not what the Hub takes.
    """
    return projects_of(asyncio.run(_ask_all(apps)), environment, here=here, settings=settings)


def projects_of(
    answers: Sequence[AppAnswer], environment: Environment, *, here: Path, settings: Settings
) -> list[Project]:
    """Return the projects of apps that have been asked, like `read_projects`."""
    names = [(item["name"], item.get("where") or each.file.name) for each in answers for item in each.data["endpoints"]]
    refuse_doubles(names)
    folders: dict[Path, list[AppAnswer]] = {}
    for answer in answers:
        folders.setdefault(project_folder(answer.file), []).append(answer)
    return [
        _read_project(folder, group, environment, here=here, settings=settings) for folder, group in folders.items()
    ]


def shown_path(path: Path, here: Path) -> str:
    """Return a path as people are told of it: relative where it is below the current folder, else whole."""
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def project_files(folder: Path) -> Iterator[Path]:
    """Yield the text files of a project that rules look at, not those of environments and caches below it."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_entered(Path(place, name)))
        for name in sorted(names):
            path = Path(place, name)
            if (name.endswith(_SUFFIXES) or name.startswith(_NAMES)) and not path.is_symlink():
                yield path


async def _ask_all(apps: Sequence[Path]) -> list[AppAnswer]:
    answers = await asyncio.gather(*map(ask_app, apps))
    found = [AppAnswer(app, answer) for app, answer in zip(apps, answers, strict=True)]
    for each in found:
        if not each.data["endpoints"] and not each.data.get("runpod_handler"):
            raise no_endpoint_in(each.file)
    return found


def _read_project(
    folder: Path, answers: Sequence[AppAnswer], environment: Environment, *, here: Path, settings: Settings
) -> Project:
    files = dict(_read_texts(folder, answers, here))
    shown = shown_path(folder, here)
    env = {**image_env(files, shown), **hub_environment(folder)}
    described = [each for answer in answers for each in _describe(answer, folder, environment, here=here, env=env)]
    return Project(
        place=Place(shown_path(answers[0].file, here)),
        folder=shown,
        environment=environment,
        endpoints=read_endpoints(described, Sources(files, folder=shown)),
        files=files,
        models=dict(_read_models(described, replace(settings, weights_dir=folder / settings.weights_dir), here)),
    )


def _read_texts(folder: Path, answers: Sequence[AppAnswer], here: Path) -> Iterator[tuple[str, str]]:
    own = [answer.file for answer in answers]
    loaded = [Path(file) for answer in answers for file in answer.data.get("files", ())]
    for number, path in enumerate(dict.fromkeys([*own, *loaded, *project_files(folder)])):
        if number >= MOST_FILES:
            return
        try:
            if path in own or path.stat().st_size <= _LARGEST_FILE:
                yield shown_path(path, here), path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # gone, or not ours to read: not ours to publish either
            continue


def _is_entered(path: Path) -> bool:
    if path.name.startswith("."):
        return path.name == ".runpod"
    return path.name not in _LEFT_OUT and not (path / "pyvenv.cfg").exists() and not path.is_symlink()


def _describe(
    answer: AppAnswer, folder: Path, environment: Environment, *, here: Path, env: Mapping[str, str]
) -> Iterator[Described]:
    app = shown_path(answer.file, here)
    if answer.data.get("runpod_handler"):
        yield Described(spec=EndpointSpec(name="handler", kind=Kind.CPU, cpu=_HANDLER_CPU), app=app, env=env)
        return
    seen = _local_runs(answer, folder, here)
    config = read_config(folder, environment)
    for item in answer.data["endpoints"]:
        spec, own = EndpointSpec.from_dict(item["spec"]), config.of(item["name"])
        yield Described(
            spec=spec if own.workers is None else replace(spec, workers=WorkerBounds.from_option(own.workers)),
            app=app,
            deployed_env=own.env,
            plain=config.plain,
            has_model_cache=own.model_cache,
            attribute=item["attribute"],
            where=str(item.get("where") or ""),
            schema=item.get("schema") or {},
            routes=item.get("routes", ()),
            env=env,
            local_run=seen.get(item["attribute"], LocalRun.NONE),
        )


def _local_runs(answer: AppAnswer, folder: Path, here: Path) -> dict[str, LocalRun]:
    """Return what is known of each endpoint's jobs here, by attribute."""
    names = {item["attribute"]: item["name"] for item in answer.data["endpoints"]}
    runs = {**read_local_runs(folder / RUNS_FILE), **read_local_runs(here / RUNS_FILE)}
    now = read_dependencies(answer.file, list(names), root=folder)
    codes = {names[attribute]: code_digest(each, folder) for attribute, each in now.items()}
    return {
        attribute: LocalRun.SEEN if runs[name] == codes.get(name) else LocalRun.OUTDATED
        for attribute, name in names.items()
        if name in runs
    }


def _read_models(described: Sequence[Described], settings: Settings, here: Path) -> Iterator[tuple[str, LocalModel]]:
    for weights in {each.spec.weights.name: each.spec.weights for each in described if each.spec.weights}.values():
        found = _find_config(weights, settings)
        if found is not None:
            path, config = found
            size = sum(file.stat().st_size for file in path.parent.iterdir() if file.suffix in _WEIGHT_FILES)
            yield weights.name, LocalModel(config, size, shown_path(path, here))


def _find_config(weights: Weights, settings: Settings) -> tuple[Path, dict[str, Any]] | None:
    """Return the model's config from the first place that has one, in the order in which workers look."""
    from flashkit.worker.weights.places import local_places

    for place in local_places(weights, settings):
        path = place.folder / "config.json" if place.folder else None
        if path is not None and path.is_file():
            try:
                config = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(config, dict):
                return path, config
    return None

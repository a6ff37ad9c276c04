"""Where `flashkit plan` finds a model: a folder or file, the places where workers look on this machine, then the hub.

Only the config and the sizes of files are read: nothing is downloaded but a `config.json`.
"""

from __future__ import annotations

import json
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flashkit.cli.plan import COMMANDS
from flashkit.errors import ConfigurationError, FlashkitError, WeightsError
from flashkit.plan.model_plan import ModelFacts
from flashkit.settings import Settings
from flashkit.spec import Weights

if TYPE_CHECKING:
    from flashkit.worker.weights.sources import Source

CONFIG: Final = "config.json"
_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FORMATS: Final = (".safetensors", ".bin", ".pt", ".pth")
"""Formats of weights, in the order in which engines prefer them: the first that is there is counted."""
_LARGEST_CONFIG: Final = 4_000_000


def read_model_folder(path: Path, *, name: str | None = None, place: str | None = None) -> ModelFacts:
    """Return a model from its folder, or from its config alone.

    Raises:
        ConfigurationError: There is no config, or it is no JSON object.
    """
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(
            f"there is no {CONFIG} in {path}", hint="name a model's folder, its config.json, or organisation/name"
        )
    return ModelFacts(
        name or (file.parent.name if file.name == CONFIG and file.parent.name else file.name),
        _read_json(file),
        _size_of_files(file.parent) if file.name == CONFIG else None,
        place or str(file),
    )


def find_model(weights: Weights, settings: Settings) -> ModelFacts:
    """Return a model by name: from this machine, else from the hub.

    Raises:
        ConfigurationError: It is nowhere; the message says where was looked and why not.
    """
    return _find_here(weights, settings) or _find_on_hub(weights, settings)


def weights_named(name: str, revision: str | None = None) -> Weights:
    """Return the weights of a name that was typed.

    Raises:
        ConfigurationError: It is no name of a model.
    """
    try:
        return Weights(name, revision)
    except FlashkitError as exc:
        near = get_close_matches(name, COMMANDS, n=1)
        raise ConfigurationError(
            f"there is no file or folder {name!r}, and it is no name of a model",
            hint=(f"did you mean flashkit plan {near[0]}? " if near else "")
            + "name a file that defines endpoints, a model's folder or config.json, or organisation/name",
        ) from exc


def _find_here(weights: Weights, settings: Settings) -> ModelFacts | None:
    from flashkit.worker.weights.places import local_places

    for place in local_places(weights, settings):
        if place.folder is not None and (place.folder / CONFIG).is_file():
            return read_model_folder(place.folder, name=weights.name, place=f"{place.name}: {place.folder}")
    return None


def _find_on_hub(weights: Weights, settings: Settings) -> ModelFacts:
    from flashkit.worker.weights.fetching import remote_sources

    problem = "HF_HUB_OFFLINE is set"
    for source in remote_sources(weights, settings):
        try:
            with closing(source):
                return _read_remote(weights, source)
        except WeightsError as exc:
            problem = f"{source.label}: {exc.report.message}"
    raise _nowhere(weights, settings, problem)


def _read_remote(weights: Weights, source: Source) -> ModelFacts:
    from flashkit.worker.weights.sources import TransientFailure

    listing = source.list_files()
    entry = next((each for each in listing.files if each.path == CONFIG), None)
    if entry is None or entry.size > _LARGEST_CONFIG:
        raise ConfigurationError(
            f"{weights.name} has no {CONFIG}, so it is no model that an engine here serves",
            hint="name a model in the format of the transformers library",
        )
    content = bytearray(entry.size)
    try:
        with source.open_range(entry, 0, entry.size) as body:
            done = 0
            while (count := body.readinto(memoryview(content)[done:])) > 0:
                done += count
    except TransientFailure as exc:
        raise WeightsError(f"its {CONFIG} did not arrive: {exc}", hint="try again") from exc
    sizes = {form: sum(each.size for each in listing.files if each.path.endswith(form)) for form in _FORMATS}
    return ModelFacts(
        weights.name,
        _parse(bytes(content), f"{CONFIG} of {weights.name}"),
        next((size for size in sizes.values() if size), None),
        f"{source.label}, commit {listing.commit}",
    )


def _nowhere(weights: Weights, settings: Settings, problem: str) -> ConfigurationError:
    from flashkit.catalog import nearest_names
    from flashkit.worker.weights.inventory import list_copies

    near = nearest_names(weights.name, {copy.name for copy in list_copies(settings)}, limit=1)
    return ConfigurationError(
        f"the model {weights.name} is not on this machine, and not to be had: {problem}",
        hint=(f"did you mean {near[0]}? " if near else "")
        + "check the name, or save the model's config.json and name the file",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return _parse(file.read_bytes(), str(file))
    except OSError as exc:
        raise ConfigurationError(f"{file} cannot be read: {exc.strerror}", hint="check its permissions") from exc


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"{where} is not JSON: {exc}", hint="download the model's config anew") from exc
    if not isinstance(data, dict):
        raise ConfigurationError(f"{where} holds no JSON object", hint="name the config.json of a model")
    return data


def _size_of_files(folder: Path) -> int | None:
    """Return the bytes of the weights: as an index says, else of the files of the preferred format; None: no files."""
    for name in _INDEXES:
        try:
            total = json.loads((folder / name).read_bytes())["metadata"]["total_size"]
            return int(total)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for form in _FORMATS:
        if size := sum(path.stat().st_size for path in folder.glob(f"*{form}")):
            return size
    return None

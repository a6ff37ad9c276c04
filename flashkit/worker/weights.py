"""Where a model's weights are on this worker.

Order: the weights folder (baked into the image, or `FLASHKIT_WEIGHTS_DIR`), then the Hugging Face cache,
then the hub. The folder holds each model as `<organisation>/<name>/`, so what an image carries needs no
network at all.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.spec import Weights

log = logging.getLogger(__name__)


def resolve_weights(weights: Weights, settings: Settings | None = None) -> Path:
    """Return the folder that holds the weights, downloading them from the hub where nothing else has them.

    Raises:
        ConfigurationError: They are nowhere to be found; the message names the places.
    """
    settings = settings or Settings.from_environment()
    folder = (settings.weights_dir / weights.name).resolve()
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("huggingface_hub") is None:
        raise _not_found(weights, [str(folder), "the Hugging Face hub (huggingface-hub is not installed)"])
    return _from_hub(weights, folder)


def _from_hub(weights: Weights, folder: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(weights.name, revision=weights.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        log.info("downloading %s", weights.name)
    try:
        return Path(snapshot_download(weights.name, revision=weights.revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as exc:
        raise _not_found(weights, [str(folder), "the Hugging Face cache", f"the hub ({exc})"]) from exc


def _not_found(weights: Weights, places: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"the weights of {weights.name!r} were not found",
        hint=f"looked in: {'; '.join(places)}. Put them into FLASHKIT_WEIGHTS_DIR/{weights.name}/",
        details={"weights": weights.name, "places": places},
    )

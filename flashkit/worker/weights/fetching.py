"""Bringing weights from the network: from where, and into which folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.downloading import Manner, download
from flashkit.worker.weights.hub import Hub
from flashkit.worker.weights.offline import is_offline_by_us
from flashkit.worker.weights.places import shelf_root
from flashkit.worker.weights.resolving import Found
from flashkit.worker.weights.s3 import S3, S3Place
from flashkit.worker.weights.shelves import in_folder, on_shelf
from flashkit.worker.weights.sources import Source

log = logging.getLogger("flashkit.weights")


def remote_sources(weights: Weights, settings: Settings) -> Iterator[Source]:
    """Yield where weights may be downloaded from, in order: S3 where one is named, then the hub."""
    if url := weights.s3 or settings.weights_s3:
        yield S3(S3Place.parse(url), weights, settings)
    if not settings.is_hub_offline or is_offline_by_us():
        yield Hub(weights, settings)


def fetch(
    source: Source,
    weights: Weights,
    settings: Settings,
    *,
    folder: Path | None = None,
    shelf: Path | None = None,
    manner: Manner = Manner(),  # noqa: B008
) -> Found:
    """Return the folder into which the weights were downloaded.

    Args:
        source: Where they come from; it is closed.
        weights: Which ones.
        settings: Where the shelf is.
        folder: A folder of one commit of each model, as images bring them, instead of a shelf.
        shelf: Another shelf than the network volume's or this machine's.
        manner: How it is done.

    Raises:
        WeightsSourceError: The source has them not, or fails.
        WeightsError: There is no room, the disk cannot be written, or what comes is damaged.
    """
    with closing(source):
        listing = source.list_files()
        log.info("weights %s: downloading commit %s from %s", weights.name, listing.commit, source.label)
        if folder is not None:
            target = in_folder(folder, weights.name, listing.commit)
        else:
            target = on_shelf(shelf or shelf_root(settings), weights.name, listing.commit)
        final = download(source, listing, target, weights, manner=manner)
    return Found(final, f"downloaded from {source.label}", listing.commit, listing.revision)

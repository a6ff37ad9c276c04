"""Where a model's weights are: the first place that has them, whole and of the right commit.

Folders of this machine are looked at first (`places`), then S3 where one is named, then the hub. What comes over
the network lands on the network volume, or in this machine's own folder where there is none, and is found there by
the next worker. Neither huggingface_hub nor boto3 is imported while a folder has the weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from flashkit.errors import WeightsDamaged, WeightsNotFound, WeightsSourceError
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.folders import Evidence, check_folder, read_evidence
from flashkit.worker.weights.manifest import Damage, check_sizes
from flashkit.worker.weights.offline import go_offline, is_offline_by_us
from flashkit.worker.weights.places import NOTHING, Place, fits_revision, local_places
from flashkit.worker.weights.selection import covers

log = logging.getLogger("flashkit.weights")

_SHOWN_DAMAGE: Final = 5


@dataclass(frozen=True, slots=True)
class Found:
    """A folder that has the weights."""

    folder: Path
    place: str
    """Where it is, in words."""
    commit: str | None = None
    """None where nothing tells."""
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Miss:
    """A place that has not the weights, and why."""

    place: str
    looked_at: str
    reason: str
    damage: tuple[Damage, ...] = ()

    def __str__(self) -> str:
        return f"{self.place} ({self.looked_at}): {self.reason}"


@dataclass(slots=True)
class _Search:
    """What a search has seen so far."""

    weights: Weights
    misses: list[Miss] = field(default_factory=list)
    hint: str | None = None

    def note(self, miss: Miss) -> None:
        """Remember a place that has not the weights; say so where it has something else."""
        self.misses.append(miss)
        if miss.damage:
            log.warning("weights %s: passing over %s", self.weights.name, miss)
        elif miss.reason != NOTHING:
            log.info("weights %s: passing over %s", self.weights.name, miss)


def resolve_weights(weights: Weights, settings: Settings | None = None) -> Path:
    """Return the folder that holds the weights, downloading them where no folder does.

    Raises:
        WeightsNotFound: They are nowhere; the message names every place.
        WeightsError: There is no room for them, they may not be read, or they do not arrive whole.
    """
    return find_weights(weights, settings or Settings.from_environment()).folder


def find_weights(weights: Weights, settings: Settings) -> Found:
    """Return where the weights are, downloading them where no folder has them, and keep the process off the hub then.

    Raises:
        WeightsNotFound: They are nowhere; the message names every place.
        WeightsError: There is no room for them, they may not be read, or they do not arrive whole.
    """
    search = _Search(weights)
    found = _find_locally(search, settings) or _fetch(search, settings)
    log.info("weights %s: %s (%s), %s", weights.name, found.place, found.folder, _commit_in_words(found.commit))
    go_offline()
    return found


def find_local_weights(weights: Weights, settings: Settings) -> Found:
    """Return the folder of this machine that has the weights.

    Raises:
        WeightsNotFound: None has.
    """
    search = _Search(weights)
    if found := _find_locally(search, settings):
        return found
    raise _not_found(search)


def _find_locally(search: _Search, settings: Settings) -> Found | None:
    for place in local_places(search.weights, settings):
        seen = examine(place, search.weights)
        if isinstance(seen, Found):
            return seen
        search.note(seen)
    return None


def examine(place: Place, weights: Weights) -> Found | Miss:
    """Return what a place has: the weights, whole as far as sizes tell, or the reason why not."""
    if place.folder is None:
        return Miss(place.name, str(place.looked_at), place.note)
    try:
        evidence = read_evidence(place.folder)
    except WeightsDamaged as exc:
        return Miss(place.name, str(place.folder), exc.report.message, (Damage(".", exc.report.message),))
    evidence = replace(evidence, revision=place.revision or evidence.revision)
    reason = mismatch(evidence, weights, needs_manifest=place.needs_manifest)
    if reason:
        return Miss(place.name, str(place.folder), reason)
    damage = _damage_of(place.folder, evidence)
    if damage:
        return Miss(place.name, str(place.folder), _in_words(damage), tuple(damage))
    return Found(place.folder, place.name, evidence.commit, evidence.revision)


def mismatch(evidence: Evidence, weights: Weights, *, needs_manifest: bool) -> str | None:
    """Say why a folder is not the one that is wanted, None when it is or nobody can tell."""
    manifest = evidence.manifest
    if manifest is None and needs_manifest:
        return "it has no manifest: its download or upload is not complete"
    if manifest is not None and manifest.name.casefold() != weights.name.casefold():
        return f"it holds {manifest.name}"
    if manifest is not None and not covers(manifest, weights):
        held = " or ".join(f"allow={each.allow!r}, ignore={each.ignore!r}" for each in manifest.selections)
        return f"it holds another part of the files: {held}"
    if weights.revision is None:
        return None
    fits = fits_revision(weights.revision, commit=evidence.commit, revision=evidence.revision)
    if fits is False:
        return f"it has {evidence.revision or 'commit'} {evidence.commit or ''}".rstrip() + f", not {weights.revision}"
    if fits is None:
        log.warning("weights %s: nothing tells whether a copy is of %s; taking it", weights.name, weights.revision)
    return None


def _damage_of(folder: Path, evidence: Evidence) -> list[Damage]:
    return check_sizes(folder, evidence.manifest.files) if evidence.manifest else check_folder(folder)


def _in_words(damage: list[Damage]) -> str:
    shown = "; ".join(map(str, damage[:_SHOWN_DAMAGE]))
    more = len(damage) - _SHOWN_DAMAGE
    return f"damaged: {shown}" + (f"; and {more} files more" if more > 0 else "")


def _commit_in_words(commit: str | None) -> str:
    return f"commit {commit}" if commit else "an unknown commit"


def _fetch(search: _Search, settings: Settings) -> Found:
    """Download the weights from the first place of the network that has them."""
    if search.weights.path is not None:
        raise _not_found(search)
    from flashkit.worker.weights.fetching import fetch, remote_sources  # which imports this module

    for source in remote_sources(search.weights, settings):
        try:
            return fetch(source, search.weights, settings)
        except (WeightsSourceError, WeightsDamaged) as exc:
            search.note(Miss(source.label, search.weights.name, exc.report.message))
            search.hint = exc.report.hint
    if settings.is_hub_offline and not is_offline_by_us():
        search.note(Miss("the hub", settings.hub_url, "not asked, as HF_HUB_OFFLINE is set"))
    raise _not_found(search)


def _not_found(search: _Search) -> WeightsNotFound:
    name = search.weights.name
    wanted = f"{name!r}" + (f" at {search.weights.revision}" if search.weights.revision else "")
    places = "; ".join(map(str, search.misses))
    return WeightsNotFound(
        f"the weights of {wanted} were not found in {len(search.misses)} places: {places}",
        hint=search.hint or f"bring them here: flashkit weights pull {name}",
        details={"weights": name, "places": [str(miss) for miss in search.misses]},
    )

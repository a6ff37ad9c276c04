"""FK403 to FK406 and FK411: network volumes that are where the workers are, and large enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flashkit.checks.images import VOLUME_FOLDER, images_of
from flashkit.checks.models import model_of
from flashkit.checks.project import Endpoint, Place, Project
from flashkit.checks.rule import Problem, Severity, endpoint_rule, rule
from flashkit.plan.figures import GB, format_bytes

_DOWNLOADS: Final = ("download", "weights pull", "cp ", "mv ", "curl ", "wget ")


@rule(
    "FK403",
    "baked-weights-visible",
    Severity.ERROR,
    what="The image keeps nothing where a volume is mounted.",
    why="A network volume is mounted over /runpod-volume, so whatever the image had there is gone for the worker: it "
    "downloads the weights anew, or ends because HF_HUB_OFFLINE forbids it.",
    fix="Bake weights into another folder, such as /models, and point FLASHKIT_WEIGHTS_DIR or HF_HOME to it.",
)
def baked_weights_visible(project: Project) -> Iterator[Problem]:
    """Dockerfiles that fill the volume's folder."""
    has_volume = [endpoint.name for endpoint in project.endpoints if endpoint.spec.volumes]
    hidden = f"hidden by the volume of {', '.join(f'`{name}`' for name in has_volume)}" if has_volume else "hidden"
    severity = None if has_volume else Severity.WARNING
    tail = "" if has_volume else " once an endpoint has a volume"
    for image in images_of(project):
        for each, _, target in image.copies():
            if _is_on_volume(target):
                yield Problem(
                    f"{each.word} puts files into {target}, which are {hidden}{tail}",
                    Place(image.path, each.line), severity=severity,
                )  # fmt: skip
        for each in image.instructions:
            if each.word == "RUN" and VOLUME_FOLDER in each.rest and any(word in each.rest for word in _DOWNLOADS):
                yield Problem(
                    f"RUN fills {VOLUME_FOLDER} while the image is built, which is {hidden}{tail}",
                    Place(image.path, each.line), severity=severity,
                )  # fmt: skip


@endpoint_rule(
    "FK404",
    "volume-where-workers-are",
    Severity.ERROR,
    what="Each data centre of an endpoint has a volume of it.",
    why="A volume can be reached in its own data centre only. Workers elsewhere start without it and find no "
    "weights, or "
    "do not start at all, and the endpoint has fewer machines to choose from than its list says.",
    fix="List the data centres of the volumes only, or add a volume for each of the others.",
)
def volume_where_workers_are(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Data centres in which the endpoint has no volume."""
    del project
    spec = endpoint.spec
    with_volume = {volume.datacenter for volume in spec.volumes if volume.datacenter}
    if not spec.volumes or not spec.datacenters:
        return
    missing = [name.value for name in spec.datacenters if name not in with_volume]
    if with_volume and missing:
        yield Problem(f"endpoint `{endpoint.name}` may run in {', '.join(missing)}, where it has no volume")
    elif not with_volume and len(spec.datacenters) > len(spec.volumes):
        yield Problem(
            f"endpoint `{endpoint.name}` may run in {len(spec.datacenters)} data centres, and nothing says in which of "
            f"them volume {spec.volumes[0].name!r} is",
            severity=Severity.WARNING,
            fix=f'Write NetworkVolume("{spec.volumes[0].name}", datacenter="{spec.datacenters[0].value}"), and that '
            "one alone "
            "in datacenter=.",
        )


@endpoint_rule(
    "FK405",
    "volumes-have-datacentres",
    Severity.ERROR,
    what="Where an endpoint has several volumes, each names a data centre of its own.",
    why="The platform takes one volume for each data centre, and gives a worker the one that is near. They are not "
    "copies: nothing keeps them in step.",
    fix='Write NetworkVolume("models", datacenter="EU-RO-1") for each, with different data centres, and fill each.',
)
def volumes_have_datacentres(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Several volumes without data centres, or with the same one."""
    del project
    volumes = endpoint.spec.volumes
    if len(volumes) < 2:  # noqa: PLR2004 - several
        return
    unpinned = [volume.name for volume in volumes if volume.datacenter is None]
    if unpinned:
        names = ", ".join(map(repr, unpinned))
        yield Problem(f"endpoint `{endpoint.name}` has {len(volumes)} volumes, and no data centre for {names}")
    elif len({volume.datacenter for volume in volumes}) < len(volumes):
        yield Problem(f"endpoint `{endpoint.name}` has two volumes in one data centre, and a worker gets one of them")


@rule(
    "FK406",
    "one-volume-one-place",
    Severity.WARNING,
    what="Endpoints that name the same volume mean the same one.",
    why="A volume is found by its name and data centre. Under one name in two places there are two volumes: one has "
    "the "
    "weights, the other is empty and paid.",
    fix="Give both endpoints the same NetworkVolume object, or two names.",
)
def one_volume_one_place(project: Project) -> Iterator[Problem]:
    """One name with several data centres or sizes, over endpoints."""
    first: dict[str, tuple[str, object]] = {}
    for endpoint in project.endpoints:
        for volume in endpoint.spec.volumes:
            facts = (volume.datacenter, volume.size)
            owner, known = first.setdefault(volume.name, (endpoint.name, facts))
            if owner != endpoint.name and known != facts:
                yield Problem(
                    f"volume {volume.name!r} of `{endpoint.name}` is {volume.size} GB in "
                    f"{volume.datacenter or 'no data centre'}, "
                    f"and `{owner}` names one that differs",
                    endpoint.place,
                    endpoint=endpoint.name,
                )


@endpoint_rule(
    "FK411",
    "volume-is-large-enough",
    Severity.ERROR,
    what="A volume has room for the weights that are meant to be on it.",
    why="A download that fills the volume fails at every start. A volume can be made larger, never smaller.",
    fix="Write a size about a fifth above the weights.",
)
def volume_is_large_enough(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Volumes smaller than the weights."""
    model = model_of(endpoint, project)
    if model is None or model.on_disk is None:
        return
    for volume in endpoint.spec.volumes:
        if volume.size * GB < model.on_disk.value:
            yield Problem(
                f"volume {volume.name!r} of `{endpoint.name}` has {volume.size} GB, and {model.weights.name} needs "
                f"{format_bytes(model.on_disk.value)} ({model.on_disk.formula})"
            )


def _is_on_volume(path: str) -> bool:
    return path == VOLUME_FOLDER or path.startswith(f"{VOLUME_FOLDER}/")

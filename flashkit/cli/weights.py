"""`flashkit weights`: bring models here, to a folder, a network volume or S3; check them; see what each place costs.

What a worker does by itself at its first start, done beforehand by a person or a build.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.cli.commands import Group
from flashkit.errors import ConfigurationError, FlashkitError, WeightsDamaged, WeightsError, WeightsSourceError
from flashkit.settings import Settings
from flashkit.spec import Weights

if TYPE_CHECKING:
    from flashkit.worker.weights.manifest import Manifest
    from flashkit.worker.weights.progress import Progress
    from flashkit.worker.weights.resolving import Found
    from flashkit.worker.weights.verifying import Verdict

VOLUME = "volume"
"""Names the mounted network volume, where a folder may stand."""

_revision_option = click.option("--revision", metavar="REV", help="A commit, tag or branch.")
_json_option = click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line.")
_allow_option = click.option("--allow", multiple=True, metavar="PATTERN", help="Only files that fit; may be repeated.")
_ignore_option = click.option("--ignore", multiple=True, metavar="PATTERN", help="No files that fit; may be repeated.")


@click.group("weights", cls=Group)
def command() -> None:
    """Bring, push, check and compare the weights of models.

    NAME is a repository of the Hugging Face hub, organisation/name.
    """


@command.command("pull")
@click.argument("name")
@_revision_option
@click.option(
    "--to", "to", metavar="DIR|s3://...|volume",
    help="A folder for an image, a place in S3, or the network volume that is mounted here. By default where "
    "workers of this machine look.",
)  # fmt: skip
@click.option("--from", "source", metavar="s3://...|hub", help="Where from: S3 (or FLASHKIT_WEIGHTS_S3), else the hub.")
@_allow_option
@_ignore_option
@_json_option
def pull_command(
    name: str,
    *,
    revision: str | None,
    to: str | None,
    source: str | None,
    allow: tuple[str, ...],
    ignore: tuple[str, ...],
    is_raw: bool,
) -> None:
    """Download the weights NAME. What came of an earlier try is used; nothing shows before all of it is there.

    With --to DIR they are in DIR/organisation/name, as an image needs them; elsewhere each commit has its folder.
    """
    with _messages() as progress:
        settings = _settings_from(source)
        weights = Weights(name, revision, allow=allow, ignore=ignore)
        found = _pull(weights, settings, to, progress)
        where = str(found.folder)
        if to is not None and to.startswith("s3://"):
            where = _push(found.folder, to, settings, progress)
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line({"name": name, "commit": found.commit, "revision": found.revision, "where": where})
    else:
        click.echo(where)


@command.command("push")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("to", metavar="s3://BUCKET/PREFIX")
@click.option("--name", metavar="NAME", help="organisation/name, for a folder that was not made by `pull`.")
@_revision_option
@_json_option
def push_command(folder: Path, to: str, *, name: str | None, revision: str | None, is_raw: bool) -> None:
    """Upload the weights in FOLDER to S3. What is there already stays; the last object makes them complete.

    A Runpod volume: s3://VOLUME_ID/flashkit-weights, with AWS_REGION=EU-RO-1 (its data centre) and the S3 keys of the
    account in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    """
    with _messages() as progress:
        where = _push(folder, to, Settings.from_environment(), progress, name=name, revision=revision)
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line({"where": where})
    else:
        click.echo(where)


@command.command("verify")
@click.argument("name")
@_revision_option
@click.option("--all", "is_all", is_flag=True, help="Every copy on this machine, not only the one that workers use.")
@click.option("--repair", "is_repairing", is_flag=True, help="Bring damaged files anew.")
@_json_option
def verify_command(name: str, *, revision: str | None, is_all: bool, is_repairing: bool, is_raw: bool) -> int:
    """Compare every byte of the weights NAME on this machine with their hashes.

    Workers compare sizes only when they start. The exit code is 1 where a copy is damaged, or nothing tells what its
    files should be.
    """
    from flashkit.worker.weights.verifying import verify

    weights, settings = Weights(name, revision), Settings.from_environment()
    verdicts: list[Verdict] = []
    with _messages() as progress, progress:
        for verdict in verify(weights, settings, progress=progress):
            verdicts.append(verdict)
            if not is_all:
                break
    if not verdicts:
        raise _nothing_here(name, revision, settings)
    _show_verdicts(verdicts, is_raw=is_raw)
    if is_repairing:
        return _repair([each for each in verdicts if each.damage], weights, settings)
    return int(not all(verdict.is_sound for verdict in verdicts))


@command.command("ls")
@_json_option
def ls_command(*, is_raw: bool) -> None:
    """List the weights on this machine: downloads, folders of images, network volume, caches."""
    from flashkit.worker.weights.inventory import list_copies

    settings = Settings.from_environment()
    copies = list(list_copies(settings))
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line([{**dataclasses.asdict(copy), "folder": str(copy.folder)} for copy in copies])
    elif not copies:
        click.echo("there are no weights on this machine; bring some with: flashkit weights pull organisation/name")
    else:
        from flashkit.cli.weights_text import copies_table, show_table

        show_table(copies_table(copies))


@command.command("plan")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_revision_option
@click.option("--size", metavar="16GB", help="Of all of them together, instead of asking for it.")
@click.option("--gpu", metavar="NAME", help="What workers run on: adds what they cost while they read the weights.")
@click.option(
    "--starts-per-day", default=50.0, show_default=True, type=click.FloatRange(min=0),
    help="Cold starts of workers, half of them on hosts that are new to the model.",
)  # fmt: skip
@_json_option
def plan_command(
    names: tuple[str, ...],
    *,
    revision: str | None,
    size: str | None,
    gpu: str | None,
    starts_per_day: float,
    is_raw: bool,
) -> None:
    """Compare time and cost of the weights NAME... in an image, on a network volume and in the platform's cache.

    The size is that of a copy on this machine, else what the hub says. Prices and rates are those of flashkit's dated
    catalogue; every estimate names its formula and source.
    """
    from flashkit.catalog import resolve_gpus
    from flashkit.worker.weights.plan import plan_weights

    models = [Weights(name, revision) for name in names]
    try:
        pinned = resolve_gpus([gpu])[0] if gpu else None
    except FlashkitError as exc:
        raise ConfigurationError(f"--{exc.report.message}", hint=exc.report.hint) from exc
    settings = Settings.from_environment()
    size_bytes = _read_size(size) if size else sum(_size_of(weights, settings) for weights in models)
    plan = plan_weights(names, size_bytes, starts_per_day=starts_per_day, gpu=pinned)
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line(plan.to_dict())
    else:
        from flashkit.cli.weights_text import show_plan

        show_plan(plan)


@contextmanager
def _messages() -> Iterator[Progress]:
    """Show what the weights' log says on standard error while the block lasts, and give the progress to use."""
    from flashkit.worker.weights.progress import BarProgress, LogProgress, make_progress

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("flashkit.weights")
    level, propagates = log.level, log.propagate
    progress = make_progress()
    log.setLevel(logging.WARNING if isinstance(progress, BarProgress) else logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield progress if isinstance(progress, BarProgress) else LogProgress()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


def _settings_from(source: str | None) -> Settings:
    settings = Settings.from_environment()
    if source is None:
        return settings
    if source == "hub":
        return dataclasses.replace(settings, weights_s3=None)
    if not source.startswith("s3://"):
        raise click.BadParameter(f"{source!r} is neither hub nor s3://bucket/prefix", param_hint="--from")
    return dataclasses.replace(settings, weights_s3=source, is_hub_offline=True)


def _pull(weights: Weights, settings: Settings, to: str | None, progress: Progress) -> Found:
    from flashkit.worker.weights.downloading import Manner
    from flashkit.worker.weights.fetching import fetch, remote_sources

    places: dict[str, Any] = {}
    if to == VOLUME:
        places["shelf"] = _volume_shelf(settings)
    elif to is None or to.startswith("s3://"):
        places["shelf"] = settings.weights_cache.expanduser()
    else:
        places["folder"] = Path(to).resolve()
    problem: WeightsError | None = None
    for source in remote_sources(weights, settings):
        try:
            return fetch(source, weights, settings, manner=Manner(make_progress=lambda: progress), **places)
        except (WeightsSourceError, WeightsDamaged) as exc:
            problem = type(exc)(f"{source.label}: {exc.report.message}", hint=exc.report.hint)
            click.echo(problem.report.message, err=True)
    raise problem or ConfigurationError(
        "there is nowhere to download from: HF_HUB_OFFLINE is set", hint="unset it, or name a place: --from s3://..."
    )


def _volume_shelf(settings: Settings) -> Path:
    from flashkit.worker.weights.places import VOLUME_FOLDER

    if not settings.volume_dir.is_dir():
        raise ConfigurationError(
            f"no network volume is mounted here: there is no {settings.volume_dir}",
            hint="on a Pod set FLASHKIT_VOLUME=/workspace; from elsewhere: --to s3://VOLUME_ID/flashkit-weights",
        )
    return settings.volume_dir / VOLUME_FOLDER


def _push(
    folder: Path,
    to: str,
    settings: Settings,
    progress: Progress,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> str:
    from flashkit.worker.weights.s3 import S3Place
    from flashkit.worker.weights.s3_push import describe_for_push, push

    if not to.startswith("s3://") or not to.removeprefix("s3://").strip("/"):
        raise click.BadParameter(f"{to!r} is no place in S3: write s3://bucket/prefix", param_hint="TO")
    manifest: Manifest = describe_for_push(folder, Weights(name).name if name else None, revision)
    with progress:
        return push(folder, S3Place.parse(to), manifest, settings, progress=progress)


def _nothing_here(name: str, revision: str | None, settings: Settings) -> WeightsError:
    from flashkit.catalog import nearest_names
    from flashkit.worker.weights.inventory import list_copies

    near = nearest_names(name, {copy.name for copy in list_copies(settings)} - {name}, limit=1)
    return WeightsError(
        f"there are no weights {name!r} on this machine" + (f" at {revision}" if revision else ""),
        hint=f"did you mean {near[0]}?" if near else f"bring them here: flashkit weights pull {name}",
    )


def _show_verdicts(verdicts: list[Verdict], *, is_raw: bool) -> None:
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line([_verdict_dict(verdict) for verdict in verdicts])
        return
    from flashkit.cli.weights_text import describe_verdict

    for verdict in verdicts:
        click.echo(describe_verdict(verdict))


def _verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "place": verdict.place.name,
        "folder": str(verdict.folder),
        "commit": verdict.commit,
        "files": len(verdict.files),
        "size_bytes": sum(entry.size for entry in verdict.files),
        "is_sound": verdict.is_sound,
        "damage": [each._asdict() for each in verdict.damage],
        "unchecked": list(verdict.unchecked),
    }


def _repair(damaged: list[Verdict], weights: Weights, settings: Settings) -> int:
    from flashkit.worker.weights.downloading import Manner
    from flashkit.worker.weights.verifying import repair

    for verdict in damaged:
        with _messages() as progress:
            found = repair(verdict, weights, settings, manner=Manner(make_progress=lambda: progress))
        click.echo(f"repaired: {found.folder}")
    return 0


def _size_of(weights: Weights, settings: Settings) -> int:
    """Return the bytes of a model: of a copy here, else as the hub says."""
    from flashkit.worker.weights.fetching import remote_sources
    from flashkit.worker.weights.folders import walk
    from flashkit.worker.weights.resolving import find_local_weights

    try:
        folder = find_local_weights(weights, settings).folder
        return sum(path.stat().st_size for path in walk(folder))
    except WeightsError:
        pass
    problem: FlashkitError | None = None
    for source in remote_sources(weights, settings):
        try:
            with closing(source):
                return source.list_files().size
        except WeightsError as exc:
            problem = exc
    raise WeightsError(
        f"the size of {weights.name} is not known: {problem.report.message if problem else 'HF_HUB_OFFLINE is set'}",
        hint="give it: --size 16GB",
    )


def _read_size(text: str) -> int:
    import re

    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size: write 16GB or 270MB", param_hint="--size")
    return round(float(match[1]) * units[match[2].upper()])

"""`flashkit build`: the images of an app, built with BuildKit, looked into, pushed, remembered for deployments."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from flashkit.cli.splitting import CommandWithTail

if TYPE_CHECKING:
    from flashkit.cli.apps import AppEndpoint
    from flashkit.cli.build_screen import BuildScreen
    from flashkit.images.docker import Docker
    from flashkit.images.planning import PlannedImage
    from flashkit.images.recipe import Base
    from flashkit.images.record import BuiltImage

_BUILD_FOLDER: Final = Path(".flashkit") / "build"
_HUB_TOKEN_ID: Final = "hf_token"  # noqa: S105
"""Under which Dockerfiles know the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The command line, checked."""

    platform: str
    secrets: tuple[str, ...]
    is_cached: bool
    is_pushed: bool
    keeps_bases: bool
    sbom_folder: Path | None
    extra: tuple[str, ...]
    """Options for `docker build` as they are."""


@click.command("build", cls=CommandWithTail)
@click.argument("app", required=False, metavar="[APP]", type=click.Path(exists=True, path_type=Path))
@click.option("--endpoint", metavar="NAME", help="Only the image of this endpoint.")
@click.option("--tag", metavar="NAME:TAG", help="Its name; by default the project's name and its git commit.")
@click.option("--push", "is_pushed", is_flag=True, help="Push it to the registry that --tag names.")
@click.option("--platform", default="linux/amd64", show_default=True, help="What it runs on; Runpod has linux/amd64.")
@click.option(
    "--secret", "secrets", multiple=True, metavar="id=NAME,src=FILE",
    help="For RUN --mount=type=secret, in no layer; id=hf_token,env=HF_TOKEN is added where that variable is set.",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Run every step anew, those of base images with --base.")
@click.option("--bake", is_flag=True, help="Bring the engines' weights into images that have no Dockerfile.")
@click.option(
    "--base", metavar="cpu|cuda|embedding|vllm", help="Only build this base image, for a plain `docker build`."
)
@click.option("--keep-bases", is_flag=True, help="Take base images that are here as they are, also in a checkout.")
@click.option("--print-dockerfile", is_flag=True, help="Print what would be built where there is no Dockerfile.")
@click.option(
    "--sbom", "sbom_folder", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Write the packages of each image there, as CycloneDX JSON.",
)  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="Print what was built as JSON on one line.")
def command(app: Path | None, **given: Any) -> int:
    """Build the images of an app's endpoints, and show what is in them.

    Without a Dockerfile, endpoints with the same ingredients share an image that is made by flashkit's own recipe. A
    project's `Dockerfile` goes before that, and `Dockerfile.NAME` for the endpoint NAME. What follows -- are options of
    docker build.
    """
    from flashkit import __version__
    from flashkit.cli.build_screen import BuildScreen
    from flashkit.images.docker import Docker
    from flashkit.images.recipe import Base

    if given["print_dockerfile"]:
        planned, project = _plan(app, given)
        for image in planned:
            click.echo(_dockerfile_text(image, project, __version__), nl=False)
        return 0
    options = _read_options(given)
    screen = BuildScreen(is_json=given["is_json"])
    if given["base"]:
        base = Base.parse(given["base"])
        _build_base(Docker.find(), base, options, screen, is_asked_for=True)
        return 0
    docker = Docker.find()
    planned, project = _plan(app, given)
    tags = _tags(planned, project, given["tag"])
    built = [
        _build_one(docker, image, tag, project=project, options=options, screen=screen)
        for image, tag in zip(planned, tags, strict=True)
    ]
    screen.finish(built)
    return 0


def _read_options(given: dict[str, Any]) -> BuildOptions:
    from flashkit.images.building import check_platform, check_tag, split_secret

    if given["tag"]:
        check_tag(given["tag"], is_pushed=given["is_pushed"])
    elif given["is_pushed"]:
        raise click.UsageError("--push needs to know where to: --tag USER/NAME:TAG")
    for secret in given["secrets"]:
        split_secret(secret)
    return BuildOptions(
        platform=check_platform(given["platform"]),
        secrets=given["secrets"],
        is_cached=not given["no_cache"],
        is_pushed=given["is_pushed"],
        keeps_bases=given["keep_bases"],
        sbom_folder=given["sbom_folder"],
        extra=given["tail"],
    )


def _plan(app: Path | None, given: dict[str, Any]) -> tuple[list[PlannedImage], Path]:
    """Return the images to build, and the project's folder."""
    from flashkit.cli.apps import describe_app
    from flashkit.cli.dev import locate_app
    from flashkit.cli.projects import project_folder
    from flashkit.images.planning import choose, plan_images

    file = locate_app(app or Path.cwd()).resolve()
    project = project_folder(file)
    endpoints: list[AppEndpoint] = asyncio.run(describe_app(file, env={}))
    planned = plan_images(
        [endpoint.spec for endpoint in endpoints],
        project=project,
        app=file,
        is_handler=not endpoints[0].attribute,
        bakes=given["bake"],
    )
    return choose(planned, given["endpoint"]), project


def _tags(planned: list[PlannedImage], project: Path, tag: str | None) -> list[str]:
    from flashkit.images.planning import code_version, tag_for

    version = code_version(project)
    is_only = len(planned) == 1
    return [tag_for(image, project=project, version=version, tag=tag, is_only=is_only) for image in planned]


def _dockerfile_text(image: PlannedImage, project: Path, version: str) -> str:
    from flashkit.images.recipe import REQUIREMENTS, render

    if image.dockerfile is not None:
        return image.dockerfile.read_text()
    assert image.ingredients is not None  # noqa: S101 - a planned image has one or the other
    return render(image.ingredients, version=version, has_requirements=(project / REQUIREMENTS).is_file())


def _write_recipe(image: PlannedImage, project: Path, text: str) -> Path:
    """Write the Dockerfile of an image that has none, and what its build leaves out."""
    from flashkit.images.recipe import IGNORED

    file = project / _BUILD_FOLDER / f"Dockerfile.{image.suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    ignored = file.with_name(f"{file.name}.dockerignore")
    ignored.unlink(missing_ok=True)
    if not (project / ".dockerignore").exists():
        ignored.write_text(IGNORED)
    return file


def _build_one(
    docker: Docker, image: PlannedImage, tag: str, *, project: Path, options: BuildOptions, screen: BuildScreen
) -> BuiltImage:
    from flashkit import __version__
    from flashkit.images.base import wanted_bases
    from flashkit.images.building import BuildRequest, build_image, push_image
    from flashkit.images.planning import check_size
    from flashkit.images.record import BuiltImage, write_images

    text = _dockerfile_text(image, project, __version__)
    for base in wanted_bases(text, version=__version__):
        _build_base(docker, base, options, screen)
    dockerfile = image.dockerfile or _write_recipe(image, project, text)
    request = BuildRequest(
        dockerfile=dockerfile, context=project, tag=tag, platform=options.platform,
        secrets=_with_hub_token(options.secrets, text), labels=_labels(project, tag), is_cached=options.is_cached,
        extra=options.extra,
    )  # fmt: skip
    with screen.building(tag, image.endpoints) as on_step:
        build_image(docker, request, on_step=on_step)
    facts = _look_into(docker, image, tag, options=options, screen=screen)
    for warning in check_size(image.specs, facts.size_bytes):
        screen.warn(warning)
    if options.is_pushed:
        with screen.pushing(tag) as on_line:
            push_image(docker, tag, on_line=on_line)
        facts = docker.inspect(tag)
    built = BuiltImage(
        endpoints=image.endpoints,
        reference=tag,
        image_id=facts.image_id,
        digest=facts.digest if options.is_pushed else None,
        platform=facts.platform,
        size_bytes=facts.size_bytes,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        dockerfile=str(dockerfile.relative_to(project)),
    )
    write_images(project, [built])
    return built


def _look_into(docker: Docker, image: PlannedImage, tag: str, *, options: BuildOptions, screen: BuildScreen) -> Any:
    """Show what an image is made of and what to cut, and return what the daemon says about it."""
    from flashkit.images.findings import find_secrets, find_waste
    from flashkit.images.layers import read_contents

    facts, history = docker.inspect(tag), docker.history(tag)
    with screen.waiting(f"looking into {tag}"), docker.saved(tag) as stream:
        contents = read_contents(stream, history)
    findings = [
        *find_secrets([line.instruction for line in history], facts.env),
        *find_waste(contents, work_dir=facts.working_dir, is_cpu=image.is_cpu),
    ]
    screen.show_contents(tag, facts, contents, findings)
    if options.sbom_folder is not None:
        _write_sbom(options.sbom_folder, tag, facts.image_id, contents)
    return facts


def _write_sbom(folder: Path, tag: str, image_id: str, contents: Any) -> None:
    import json

    from flashkit.images.sbom import bill_of_materials

    folder.mkdir(parents=True, exist_ok=True)
    name = tag.rpartition("/")[2].replace(":", "-")
    document = bill_of_materials(contents, reference=tag, image_id=image_id)
    (folder / f"{name}.cdx.json").write_text(json.dumps(document, indent=1) + "\n")


def _build_base(
    docker: Docker, base: Base, options: BuildOptions, screen: BuildScreen, *, is_asked_for: bool = False
) -> None:
    """Build a base image from a checkout, where it costs a second when nothing has changed; a release's only once."""
    from flashkit import __version__
    from flashkit.images.base import find_base_context
    from flashkit.images.building import BuildRequest, build_image

    tag = base.reference(__version__)
    context = find_base_context(__version__)
    may_be_kept = not is_asked_for and (options.keeps_bases or not context.is_checkout)
    if may_be_kept and docker.has_image(tag):
        return
    request = BuildRequest(
        dockerfile=context.dockerfile, context=context.folder, tag=tag, platform=options.platform,
        build_args=(*base.build_args, *context.build_args), is_cached=options.is_cached or not is_asked_for,
        extra=options.extra,
    )  # fmt: skip
    with screen.building(tag, ()) as on_step:
        build_image(docker, request, on_step=on_step)


def _with_hub_token(secrets: tuple[str, ...], dockerfile: str) -> tuple[str, ...]:
    """Add the hub's token where the Dockerfile asks for it and the environment has it."""
    from flashkit.images.building import split_secret
    from flashkit.settings import Settings

    is_given = any(split_secret(secret)["id"] == _HUB_TOKEN_ID for secret in secrets)
    is_wanted = f"id={_HUB_TOKEN_ID}" in dockerfile
    if is_given or not is_wanted or Settings.from_environment().hub_token is None:
        return secrets
    return (*secrets, f"id={_HUB_TOKEN_ID},env=HF_TOKEN")


def _labels(project: Path, tag: str) -> tuple[tuple[str, str], ...]:
    """Return the OCI labels; none has a time in it, so that the same code gives the same image."""
    from flashkit import __version__
    from flashkit.images.planning import code_version

    return (
        ("org.opencontainers.image.title", tag.rpartition("/")[2].partition(":")[0]),
        ("org.opencontainers.image.revision", code_version(project)),
        ("org.opencontainers.image.version", tag.rpartition(":")[2]),
        ("flashkit.version", __version__),
    )

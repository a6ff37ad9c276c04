"""FK3xx: keys and passwords in code, in variables, in the image and in the repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from flashkit.checks.dockerfile import Image, is_in_image, is_matched
from flashkit.checks.images import dockerignore_of, images_of
from flashkit.checks.project import Endpoint, Place, Project
from flashkit.checks.rule import SHIPPED, Problem, Severity, endpoint_rule, rule
from flashkit.checks.secrets import find_secrets, is_telling_name, redact, secret_in_value

_CODE: Final = (".py", ".sh", ".ipynb")
_SAMPLES: Final = (".example", ".sample", ".template", ".dist")
_BY_REFERENCE: Final = ("{{", "${", "$(")
"""How values begin that the platform or a shell puts in later."""
_REPLACE: Final = "Take it out, and make a new one: whoever has the repository or the image has it."


@rule(
    "FK301",
    "no-secret-in-code",
    Severity.ERROR,
    what="No key or password stands in the source.",
    why="Source is copied into every image, every clone and every log of a build. A key in it can be used by all who "
    "ever see one of them, and deleting the line does not take it out of the history.",
    fix=f"{_REPLACE} Read the new one from the environment, os.environ['HF_TOKEN'].",
)
def no_secret_in_code(project: Project) -> Iterator[Problem]:
    """Python, shell and notebook files."""
    yield from _in_files(project, lambda inside: inside.endswith(_CODE))


@endpoint_rule(
    "FK302",
    "no-secret-in-env",
    Severity.ERROR,
    what="No key or password is a plain value of an endpoint's env.",
    why="An endpoint's variables are shown in the console, in the API's answers and in every export of the template, "
    "to "
    "everybody on the account. Runpod's secrets are put in when a worker starts, and shown nowhere.",
    fix='Make a secret on Runpod and refer to it: env={"HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}"}.',
    environments=SHIPPED,
)
def no_secret_in_env(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Values in `env=`, those taken from the developer's shell too."""
    del project
    for name, value in endpoint.spec.env.items():
        is_fine = name in endpoint.plain or value.strip().startswith(_BY_REFERENCE)
        found = None if is_fine else secret_in_value(name, value)
        if found is not None:
            yield Problem(f"env[{name!r}] of endpoint `{endpoint.name}` holds {found.kind}: {found.shown}")


@rule(
    "FK303",
    "no-secret-in-image",
    Severity.ERROR,
    what="No build argument or variable of the image holds a key.",
    why="ARG and ENV stay readable in the image's history for everybody who can pull it, also when a later step unsets "
    "them.",
    fix="Use a build secret: RUN --mount=type=secret,id=hf_token, and read /run/secrets/hf_token there.",
)
def no_secret_in_image(project: Project) -> Iterator[Problem]:
    """ARG and ENV by name, and every line by its text."""
    for image in images_of(project):
        seen = set()
        for each in image.instructions:
            for name, value in each.pairs() if each.word in ("ARG", "ENV") else ():
                if is_telling_name(name) and not value.startswith("/"):  # a path is where it is, not what it is
                    seen.add(each.line)
                    shown = f" with the value {redact(value)}" if value else ""
                    yield Problem(f"{each.word} {name} puts a secret into the image's history{shown}",
                                  Place(image.path, each.line))  # fmt: skip
        for secret in find_secrets(project.files[image.path]):
            if secret.line not in seen:
                yield Problem(f"{image.path} holds {secret.kind}: {secret.shown}", Place(image.path, secret.line))


@rule(
    "FK304",
    "no-env-file-in-image",
    Severity.ERROR,
    what="Files with variables stay out of the image.",
    why="COPY . . takes .env along, and whoever pulls the image can read it. flashkit's workers do not even look at "
    "it.",
    fix="Write .env* into .dockerignore.",
)
def no_env_file_in_image(project: Project) -> Iterator[Problem]:
    """`.env` files that a COPY takes."""
    ignored = dockerignore_of(project)
    for path in _env_files(project):
        for image in images_of(project):
            if is_in_image(project.inside(path), image, ignored):
                place = Place(image.path, _copy_line(image))
                yield Problem(f"{image.path} copies {path} into the image", place)


@rule(
    "FK305",
    "no-secret-in-files",
    Severity.ERROR,
    what="No key or password stands in files that are shared: samples, settings, requirements, .runpod.",
    why="These files are in the repository, and hub.json is public once the worker is listed.",
    fix=_REPLACE,
)
def no_secret_in_files(project: Project) -> Iterator[Problem]:
    """Everything that is neither code, nor a Dockerfile, nor a `.env` that stays on the machine."""
    own = {*_env_files(project), *(image.path for image in images_of(project))}
    paths = {project.inside(path) for path in own}
    yield from _in_files(project, lambda inside: not inside.endswith(_CODE) and inside not in paths)


@rule(
    "FK306",
    "env-file-not-in-git",
    Severity.WARNING,
    what="Files with variables stay out of the repository.",
    why="One `git add .` publishes .env with all its keys, for ever.",
    fix="Write .env into .gitignore.",
)
def env_file_not_in_git(project: Project) -> Iterator[Problem]:
    """`.env` files with secrets that `.gitignore` does not name."""
    ignored = project.files.get(project.path(".gitignore"), "")
    for path in _env_files(project):
        secret = next(find_secrets(project.files[path]), None)
        if secret is not None and not is_matched(project.inside(path), ignored):
            yield Problem(
                f"{path} holds {secret.kind}: {secret.shown}, and .gitignore does not keep it out of the repository",
                Place(path, secret.line),
            )


def _in_files(project: Project, is_meant: Callable[[str], bool]) -> Iterator[Problem]:
    for path, text in project.files.items():
        if is_meant(project.inside(path)):
            for secret in find_secrets(text):
                yield Problem(f"{path} holds {secret.kind}: {secret.shown}", Place(path, secret.line))


def _env_files(project: Project) -> list[str]:
    """Return the files with variables that belong to one machine."""
    return [
        path
        for path in project.files
        if (name := project.inside(path)).startswith(".env") and not name.endswith(_SAMPLES)
    ]


def _copy_line(image: Image) -> int:
    return next((each.line for each, sources, _ in image.copies() if set(sources) & {".", "./"}), 1)

"""One build and one push, with their failures in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashkit.errors import ImageError, InputError
from flashkit.images.build_log import BuildLog, Step
from flashkit.images.docker import Docker, explain_missing_buildx

PLATFORM: Final = "linux/amd64"
"""What Runpod's machines are."""
_PLATFORMS: Final = ("linux/amd64", "linux/arm64")
_SHOWN_LINES: Final = 15
_HINTS: Final = (
    (r"no space left on device", "make room: docker system prune, docker builder prune"),
    (r"exec format error", "the image is for other processors than this machine's: install QEMU's binfmt handlers"),
    (r"failed to resolve source metadata|pull access denied", "FROM names an image that cannot be had from here"),
    (r"failed to (compute cache key|calculate checksum).*not found", "COPY names a file that is not in the context"),
    (r"dockerfile parse error|unknown instruction", "the Dockerfile cannot be read at the line it names"),
    (r"secret \S+: not found|failed to stat .*secret", "give the build's secret: --secret id=NAME,src=FILE"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What is to be built."""

    dockerfile: Path
    context: Path
    tag: str
    platform: str = PLATFORM
    secrets: tuple[str, ...] = ()
    """As docker takes them: `id=hf_token,src=FILE`."""
    labels: tuple[tuple[str, str], ...] = ()
    build_args: tuple[tuple[str, str], ...] = ()
    is_cached: bool = True
    extra: tuple[str, ...] = ()
    """Further options of `docker build`, as they are."""

    def words(self) -> list[str]:
        """Return the command line after `docker`."""
        words = ["build", "--progress", "plain", "--file", str(self.dockerfile), "--tag", self.tag]
        words += ["--platform", self.platform]
        words += [word for name, value in self.labels for word in ("--label", f"{name}={value}")]
        words += [word for name, value in self.build_args for word in ("--build-arg", f"{name}={value}")]
        words += [word for secret in self.secrets for word in ("--secret", secret)]
        words += [] if self.is_cached else ["--no-cache"]
        return [*words, *self.extra, str(self.context)]


def check_platform(name: str) -> str:
    """Return the platform.

    Raises:
        InputError: It is none that images of workers are built for.
    """
    if name not in _PLATFORMS:
        raise InputError(
            f"--platform {name!r} is not known",
            hint=f"Runpod's machines are {PLATFORM}; {_PLATFORMS[1]} runs on this machine only",
        )
    return name


def build_image(docker: Docker, request: BuildRequest, *, on_step: Callable[[Step], object]) -> None:
    """Build an image; `on_step` is called whenever a step has news.

    Raises:
        ImageError: The build failed; `details` has the step, its place and its last lines.
    """
    log = BuildLog()

    def take(line: str) -> None:
        if (step := log.feed(line)) is not None:
            on_step(step)

    if code := docker.follow(*request.words(), on_line=take, DOCKER_BUILDKIT="1"):
        raise _build_error(request, log, code)


def _build_error(request: BuildRequest, log: BuildLog, code: int) -> ImageError:
    step, last = log.failed, list(log.last_lines)
    if hint := explain_missing_buildx(last):
        return ImageError("docker cannot build with BuildKit here", hint=hint, details={"output": last})
    output = list(step.output)[-_SHOWN_LINES:] if step else last[-_SHOWN_LINES:]
    reason = next((line for line in reversed(last) if line.startswith("ERROR:")), f"docker build ended with {code}")
    name = step.name if step else "the build"
    place = f" ({log.place})" if log.place else ""
    text = "\n".join(f"    {line}" for line in output)
    return ImageError(
        f"{request.tag} could not be built: {name}{place} failed\n{text}".rstrip(),
        hint=_hint_for("\n".join([*output, *last])) or reason.removeprefix("ERROR: "),
        details={"step": name, "place": log.place, "output": output, "reason": reason},
    )


def _hint_for(text: str) -> str | None:
    return next((hint for pattern, hint in _HINTS if re.search(pattern, text)), None)


_DENIED: Final = re.compile(r"denied|unauthorized|no basic auth|authentication required|forbidden", re.IGNORECASE)
_PROGRESS: Final = re.compile(r"[0-9a-f]{12}: ")


def push_image(docker: Docker, reference: str, *, on_line: Callable[[str], object]) -> None:
    """Push an image; `on_line` gets what docker says about its layers.

    Raises:
        ImageError: The registry refused it, or cannot be reached.
    """
    said: list[str] = []

    def take(line: str) -> None:
        said.append(line)
        on_line(line)

    if docker.follow("push", reference, on_line=take) == 0:
        return
    reason = next((line for line in reversed(said) if line and not _PROGRESS.match(line)), "docker push failed")
    raise ImageError(
        f"{reference} could not be pushed: {reason}",
        hint=_push_hint(reference, reason),
        details={"output": said[-_SHOWN_LINES:]},
    )


def _push_hint(reference: str, reason: str) -> str:
    registry = registry_of(reference)
    if _DENIED.search(reason):
        return f"log in: docker login{f' {registry}' if registry else ''}; and check that the repository is yours"
    if "no space" in reason:
        return "the registry is full"
    return f"check that {registry or 'the registry'} can be reached from here"


def registry_of(reference: str) -> str | None:
    """Return the registry's host in a reference, None for Docker's own."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else None


_PART: Final = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?"
)


def check_tag(tag: str, *, is_pushed: bool) -> str:
    """Return the tag.

    Raises:
        InputError: It is no reference, or nowhere to push to.
    """
    if not _REFERENCE.fullmatch(tag):
        raise InputError(
            f"--tag {tag!r} is no name of an image", hint="write NAME:TAG in lower case, such as me/tools:1.2"
        )
    if is_pushed and "/" not in tag:
        raise InputError(f"--tag {tag!r} names no account to push to", hint="write USER/NAME:TAG, or REGISTRY/NAME:TAG")
    return tag


def split_secret(text: str) -> dict[str, str]:
    """Return the parts of `id=hf_token,src=FILE` or `id=hf_token,env=HF_TOKEN`.

    Raises:
        InputError: It has no id, or names a file that is not there.
    """
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if not parts.get("id"):
        raise InputError(
            f"--secret {text!r} has no id", hint="write --secret id=hf_token,src=FILE, or id=hf_token,env=HF_TOKEN"
        )
    source = parts.get("src") or parts.get("source")
    if source and not Path(source).is_file():
        raise InputError(
            f"--secret {parts['id']}: there is no file {source!r}", hint="name the file that holds the secret"
        )
    return parts

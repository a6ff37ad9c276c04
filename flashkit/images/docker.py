"""The seam to the docker command: what is asked of it, and what its refusals mean.

The command is run, not its HTTP API: it knows the user's contexts, credentials and builders.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final

from flashkit.errors import DockerUnavailable, ImageError

_ANSWER_SECONDS: Final = 30.0
"""A daemon that does not answer a simple question in this time hangs."""
_INSTALL: Final = {
    "Darwin": "brew install --cask docker, and start Docker Desktop",
    "Windows": "winget install Docker.DockerDesktop, and start it",
}
_INSTALL_ON_LINUX: Final = "sudo apt-get install docker.io docker-buildx, or see docs.docker.com/engine/install"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the daemon says about an image."""

    image_id: str
    size_bytes: int
    platform: str
    digest: str | None
    """As `repository@sha256:…`, once it has been pushed."""
    user: str
    working_dir: str
    env: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One instruction of an image's history, the oldest first."""

    instruction: str
    size_bytes: int


class Docker:
    """The docker command of this machine.

    Args:
        program: Its path.
        environ: What it is run with.
    """

    def __init__(self, program: str, environ: Mapping[str, str]) -> None:
        self.program = program
        self._environ = environ

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None) -> Docker:
        """Return the command, once its daemon has answered.

        Raises:
            DockerUnavailable: There is no command, or no daemon.
        """
        env = os.environ if environ is None else environ
        program = shutil.which("docker", path=env.get("PATH"))
        if program is None:
            raise DockerUnavailable(
                "there is no docker command on the PATH", hint=_INSTALL.get(platform.system(), _INSTALL_ON_LINUX)
            )
        docker = cls(program, env)
        docker.check_daemon()
        return docker

    def check_daemon(self, *, timeout: float = _ANSWER_SECONDS) -> None:
        """Ask the daemon for its version.

        Raises:
            DockerUnavailable: It does not answer.
        """
        try:
            done = self.run("version", "--format", "{{.Server.Version}}", timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            raise DockerUnavailable(f"the Docker daemon has not answered for {timeout:g} s", hint="restart it") from exc
        if done.returncode:
            raise no_daemon(done.stderr.strip())

    @property
    def client_options(self) -> tuple[str, ...]:
        """Options that lead the command to the same daemon from a process that lacks this one's environment."""
        config = self._environ.get("DOCKER_CONFIG") or os.path.join(self._environ.get("HOME", ""), ".docker")  # noqa: PTH118
        options = ["--config", config]
        if host := self._environ.get("DOCKER_HOST"):
            options += ["--host", host]
        elif context := self._environ.get("DOCKER_CONTEXT"):
            options += ["--context", context]
        return tuple(options)

    def run(self, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(  # noqa: S603 - the words are ours, or options that the user gave
            [self.program, *words], env=self._environ, capture_output=True, text=True, errors="replace",
            check=False, timeout=timeout,
        )  # fmt: skip

    def follow(self, *words: str, on_line: Callable[[str], object], **environ: str) -> int:
        """Run the command, hand over each line of its output, errors included, and return its exit code."""
        process = subprocess.Popen(  # noqa: S603
            [self.program, *words], env={**self._environ, **environ}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        with process:
            try:
                for line in process.stdout or ():
                    on_line(line.rstrip("\n"))
            finally:  # a reader that fails, or Ctrl-C, ends the command
                if process.poll() is None and sys.exc_info()[0] is not None:
                    process.terminate()
        return process.returncode

    def has_gpus(self) -> bool:
        """True when containers can be given this machine's GPUs."""
        return '"nvidia"' in self.run("info", "--format", "{{json .Runtimes}}").stdout

    def has_image(self, reference: str) -> bool:
        """True when the daemon has the image."""
        return self.run("image", "inspect", "--format", "{{.Id}}", reference).returncode == 0

    def inspect(self, reference: str) -> ImageFacts:
        """Return what the daemon says about an image.

        Raises:
            ImageError: It has no such image.
        """
        done = self.run("image", "inspect", reference)
        if done.returncode:
            raise ImageError(f"there is no image {reference!r} here", hint="build it: flashkit build")
        (data,) = json.loads(done.stdout)
        config: Mapping[str, Any] = data.get("Config") or {}
        repository = reference.rpartition("@")[0] or _without_tag(reference)
        digests = [digest for digest in data.get("RepoDigests") or () if digest.partition("@")[0] == repository]
        return ImageFacts(
            image_id=data["Id"],
            size_bytes=int(data["Size"]),
            platform="/".join(filter(None, (data.get("Os"), data.get("Architecture"), data.get("Variant")))),
            digest=digests[0] if digests else None,
            user=str(config.get("User") or ""),
            working_dir=str(config.get("WorkingDir") or "/"),
            env=tuple(config.get("Env") or ()),
        )

    def history(self, reference: str) -> list[HistoryLine]:
        """Return the instructions that made an image, the oldest first."""
        done = self.run("history", "--no-trunc", "--human=false", "--format", "{{json .}}", reference)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return [HistoryLine(line["CreatedBy"], int(line["Size"])) for line in reversed(lines)]

    @contextmanager
    def saved(self, reference: str) -> Iterator[IO[bytes]]:
        """Give the stream of an image's archive."""
        process = subprocess.Popen(  # noqa: S603
            [self.program, "image", "save", reference], env=self._environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with process:
            try:
                yield process.stdout or io.BytesIO()
            finally:
                process.terminate()


def _without_tag(reference: str) -> str:
    """Return the repository of `host:5000/name:tag`."""
    head, slash, name = reference.rpartition("/")
    return f"{head}{slash}{name.partition(':')[0]}"


def no_daemon(said: str) -> DockerUnavailable:
    """Return what it means that the daemon could not be asked, from what docker said."""
    if "permission denied" in said.lower():
        return DockerUnavailable(
            "this user may not talk to the Docker daemon",
            hint='add yourself to its group: sudo usermod -aG docker "$USER", then log in again',
            details={"docker": said},
        )
    start = "start Docker Desktop" if platform.system() in _INSTALL else "start it: sudo systemctl start docker"
    last = said.splitlines()[-1] if said else "it says nothing"
    return DockerUnavailable(f"the Docker daemon does not answer: {last}", hint=start, details={"docker": said})


def explain_missing_buildx(lines: Sequence[str]) -> str | None:
    """Return what to install when the command says that it cannot build with BuildKit, else None."""
    text = "\n".join(lines).lower()
    if "buildx" in text and ("missing" in text or "not found" in text or "is not a docker command" in text):
        return "install Docker's buildx plugin: sudo apt-get install docker-buildx (docs.docker.com/go/buildx)"
    return None

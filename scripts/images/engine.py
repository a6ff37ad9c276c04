"""A Docker engine of the project's own, for tests and benchmarks: nothing is installed, no other daemon is touched.

The programs come from Debian's packages, unpacked into a folder outside of the checkout. The daemon listens on a
socket in that folder and makes neither a bridge nor firewall rules: containers and builds use the machine's network
(`--network host`). It runs for as long as somebody holds it; a holder that is killed lets go as well (`keeper.py`).

    python scripts/images/engine.py run COMMAND...    run a command with the engine in its environment
    python scripts/images/engine.py up                start it, let it stay, and print its environment for a shell
    python scripts/images/engine.py down              end it, whoever holds it
    python scripts/images/engine.py fetch             only bring the programs

Exit code 77 means that this machine cannot have one; the reason is on standard error.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

EXIT_UNAVAILABLE = 77
"""What test harnesses take for "skipped"."""
_HERE = Path(__file__).parent
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ENGINE_SUITE = "trixie"
"""Debian 13 has Docker 26 with BuildKit; its programs run on Debian 12 too, apart from runc."""
_ENGINE_PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "containerd", "tini")
_PROGRAMS = {
    "dockerd": "usr/sbin/dockerd",
    "docker": "usr/bin/docker",
    "docker-init": "usr/bin/tini-static",
    "containerd": "usr/bin/containerd",
    "containerd-shim-runc-v2": "usr/bin/containerd-shim-runc-v2",
    "runc": "usr/sbin/runc",
}
_BUILDX = "usr/libexec/docker/cli-plugins/docker-buildx"
_LONGEST_SOCKET_PATH = 90


class EngineUnavailable(Exception):
    """This machine cannot have an engine; the text says why."""


@dataclass(frozen=True)
class Places:
    """The engine's folder and what is in it."""

    root: Path

    @classmethod
    def usual(cls, environ: Mapping[str, str] = os.environ) -> Places:
        """Return FLASHKIT_IMAGES_DIR, or a folder that outlives the checkout."""
        return cls(Path(environ.get("FLASHKIT_IMAGES_DIR") or f"/var/tmp/flashkit-images-{os.getuid()}"))

    @property
    def programs(self) -> Path:
        return self.root / "programs"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def run(self) -> Path:
        """What belongs to one run of the daemon."""
        return self.root / "run"

    @property
    def docker_socket(self) -> Path:
        return self.root / "docker.sock"

    @property
    def holders_socket(self) -> Path:
        return self.root / "holders.sock"

    @property
    def log(self) -> Path:
        return self.root / "dockerd.log"

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return an environment whose `docker` is this engine's, with everything else as it was."""
        kept = {name: value for name, value in environ.items() if not name.startswith(("DOCKER_", "BUILDX_"))}
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{environ.get('PATH', os.defpath)}",
            "DOCKER_HOST": f"unix://{self.docker_socket}",
            "DOCKER_CONFIG": str(self.config),
        }


def check_machine(places: Places) -> None:
    """Refuse machines on which the daemon cannot run, before anything is downloaded."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EngineUnavailable(f"it needs Linux on x86_64, this is {platform.system()} on {platform.machine()}")
    if os.getuid() != 0:
        raise EngineUnavailable("only root can start one")
    if shutil.which("dpkg-deb") is None or shutil.which("apt-get") is None or not _KEYRING.exists():
        raise EngineUnavailable("it is made of Debian's packages, and this is not Debian")
    if subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False).returncode:
        raise EngineUnavailable("this machine allows no namespaces")
    if len(str(places.docker_socket)) > _LONGEST_SOCKET_PATH:
        raise EngineUnavailable(f"the path {places.root} is too long for a socket: set FLASHKIT_IMAGES_DIR")


def fetch_programs(places: Places) -> None:
    """Bring the engine's programs into the folder, unless they are there."""
    if not all((places.programs / name).exists() for name in (*_PROGRAMS.values(), _BUILDX)):
        apt = _PrivateApt(places.root / "apt")
        shutil.rmtree(places.programs, ignore_errors=True)
        apt.update()
        wanted = [*(f"{name}/{_ENGINE_SUITE}" for name in _ENGINE_PACKAGES), f"runc/{apt.own_suite}"]
        for package in apt.download(wanted):
            _unpack(package, places.programs)
        shutil.rmtree(apt.folder)
    for folder in (places.bin, places.config / "cli-plugins"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, path in _PROGRAMS.items():
        _link(places.bin / name, places.programs / path)
    _link(places.config / "cli-plugins" / "docker-buildx", places.programs / _BUILDX)


class _PrivateApt:
    """apt with lists and caches of its own, on the mirror that this machine is set up with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own_suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        mirror = _find_mirror()
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial", "packages"):
            (folder / name).mkdir(parents=True)
        suites = dict.fromkeys((_ENGINE_SUITE, self.own_suite))
        lines = [f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in suites]
        (folder / "sources.list").write_text("".join(lines))

    def update(self) -> None:
        self._run("update", cwd=self.folder)

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Return the files of these packages."""
        self._run("download", *packages, cwd=self.folder / "packages")
        return sorted((self.folder / "packages").glob("*.deb"))

    def _run(self, *words: str, cwd: Path) -> None:
        options = {
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "root",
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        done = subprocess.run(["apt-get", *given, *words], cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineUnavailable(f"apt-get {words[0]} failed: {done.stderr.strip()[-400:]}")


def _find_mirror() -> str:
    """Return the address of Debian's archive in apt's own configuration."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(SITE)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        address = line.split("|")[0].rstrip("/")
        if address.endswith("/debian"):
            return address
    raise EngineUnavailable("apt has no mirror of Debian's archive")


def _unpack(package: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["dpkg-deb", "--extract", package, folder], check=False).returncode:
        raise EngineUnavailable(f"{package.name} cannot be unpacked")


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


class Engine:
    """A running engine, until it is let go or this process ends."""

    def __init__(self, places: Places, connection: socket.socket) -> None:
        self.places = places
        self._connection = connection

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with the engine's `docker` in it."""
        return self.places.environment()

    def say(self, word: str) -> None:
        """Tell the keeper to let the engine `stay`, or to `stop` it."""
        self._connection.sendall(f"{word}\n".encode())

    def wait_until_gone(self) -> None:
        """Return when the keeper has ended the engine."""
        while self._connection.recv(1024):
            pass

    def let_go(self) -> None:
        """Need it no longer; the last holder's word ends it."""
        self._connection.close()


def hold_engine(places: Places | None = None) -> Engine:
    """Return the engine, started where it does not run yet.

    Raises:
        EngineUnavailable: This machine cannot have one.
    """
    places = places or Places.usual()
    check_machine(places)
    places.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(places.root / "start.lock"):
        connection = _connect(places)
        if connection is None:
            _start_keeper(places)
            connection = _connect(places)
    if connection is None:
        raise EngineUnavailable(f"its keeper has ended; see {places.root / 'keeper.log'}")
    return Engine(places, connection)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _connect(places: Places) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(places.holders_socket))
        if connection.recv(64) == b"ready\n":
            return connection
    except OSError:
        pass
    connection.close()
    return None


def _start_keeper(places: Places) -> None:
    with (places.root / "keeper.log").open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, str(_HERE / "keeper.py"), str(places.root)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True,
        )  # fmt: skip
    assert keeper.stdout is not None
    with keeper.stdout:
        answer = keeper.stdout.readline().strip()
    if answer != "ready":
        keeper.wait()
        raise EngineUnavailable(answer or f"its keeper has ended; see {places.root / 'keeper.log'}")
    keeper.returncode = 0  # it outlives us: its end is nothing to be warned of


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands and return the exit code."""
    places = Places.usual()
    try:
        match arguments:
            case ["run", *command] if command:
                engine = hold_engine(places)
                try:
                    return subprocess.run(command, env=engine.environment, check=False).returncode
                finally:
                    engine.let_go()
            case ["up"]:
                hold_engine(places).say("stay")
                environment = places.environment()
                for name in ("DOCKER_HOST", "DOCKER_CONFIG", "PATH"):
                    print(f"export {name}={shlex.quote(environment[name])}")
                return 0
            case ["down"]:
                return _end(places)
            case ["fetch"]:
                check_machine(places)
                fetch_programs(places)
                return 0
    except EngineUnavailable as exc:
        print(f"no Docker engine here: {exc}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    print(__doc__, file=sys.stderr)
    return 2


def _end(places: Places) -> int:
    connection = _connect(places)
    if connection is not None:
        engine = Engine(places, connection)
        engine.say("stop")
        engine.wait_until_gone()
    if places.root.exists():
        with _locked(places.root / "keeper.lock"):  # held by a keeper until everything is gone
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Keeps the engine's daemon running for as long as somebody holds it, and ends it with everything in it.

Started by `engine.py` in a session of its own. A holder is a connection to `holders.sock`: it ends with the holder's
process, however that dies. When the last one has gone (and none has said `stay`), containers are removed, the daemon
is stopped and what it mounted is unmounted. Should this process be killed, the kernel tells the daemon to stop; what
is left then is removed at the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engine import EngineUnavailable, Places, check_machine, fetch_programs

START_SECONDS = 60.0
ATTEMPTS = 2
"""On a busy machine dockerd does not wait long enough for its containerd."""
STOP_SECONDS = 20.0
FIRST_HOLDER_SECONDS = 30.0
"""Who asked for the engine connects at once; when nobody does, they have died."""
IMAGES_KEPT = "48h"
"""Images older than that are removed when the engine ends; what builds cached is bounded by its size."""
_SETTINGS = {"builder": {"gc": {"enabled": True, "defaultKeepStorage": "8GB"}}}
_PR_SET_PDEATHSIG = 1


class Daemon:
    """dockerd, in the folder's own data."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers. Raises `EngineUnavailable`."""
        for attempt in range(ATTEMPTS):
            self._clear()
            self._process = self._launch()
            if self._comes_up(self._process):
                self.remove_containers()  # of a run that was killed
                return
            self.stop()
            print(f"dockerd did not come up ({attempt + 1}): {_last_line(self._places.log)}", file=sys.stderr)
        raise EngineUnavailable(f"dockerd did not come up: {_last_line(self._places.log)}")

    def _launch(self) -> subprocess.Popen[bytes]:
        places = self._places
        settings = places.root / "daemon.json"
        settings.write_text(json.dumps(_SETTINGS))
        command = [
            str(places.bin / "dockerd"),
            f"--storage-driver={_storage_driver()}",
            "--iptables=false", "--ip6tables=false", "--bridge=none",
            "--userland-proxy=false", "--shutdown-timeout=3",
            f"--config-file={settings}",
            f"--data-root={places.data}",
            f"--exec-root={places.run}",
            f"--pidfile={places.root / 'dockerd.pid'}",
            f"--host=unix://{places.docker_socket}",
        ]  # fmt: skip
        with places.log.open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=places.environment(),
                start_new_session=True, preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, no lock
            )  # fmt: skip

    def _comes_up(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.05)
        return False

    def _clear(self) -> None:
        """Remove the marks of a daemon that was killed."""
        _unmount_below(self._places.root)
        shutil.rmtree(self._places.run, ignore_errors=True)
        for name in ("dockerd.pid", "docker.sock"):
            (self._places.root / name).unlink(missing_ok=True)

    def _answers(self) -> bool:
        return self._places.docker_socket.exists() and self._docker("version").returncode == 0

    def _docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._places.bin / "docker"), *words],
            env=self._places.environment(), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def remove_containers(self) -> None:
        """Kill and remove every container: nobody else has any in this engine."""
        if names := self._docker("ps", "--all", "--quiet").stdout.split():
            self._docker("rm", "--force", *names)

    @property
    def has_ended(self) -> bool:
        """True when it went by itself."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """End it, its containers and its mounts."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.remove_containers()
                self._docker("image", "prune", "--force")  # those that lost their name to a newer one
                self._docker("image", "prune", "--all", "--force", "--filter", f"until={IMAGES_KEPT}")
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._clear()


def _storage_driver() -> str:
    return "overlay2" if "\toverlay\n" in Path("/proc/filesystems").read_text() else "vfs"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1][-300:] if lines else "it wrote nothing"


def _unmount_below(folder: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounted if place.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Holders:
    """Those who need the engine: connections, and whether it was told to stay."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._connections: set[socket.socket] = set()
        self._stays = False
        self._is_stopped = False

    def serve(self, daemon: Daemon) -> None:
        """Return when nobody needs the engine any longer, or the daemon has ended."""
        nobody_before = time.monotonic() + FIRST_HOLDER_SECONDS
        while not self._is_stopped and not daemon.has_ended:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    self._welcome()
                    nobody_before = 0.0
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]
            if not self._connections and not self._stays and time.monotonic() > nobody_before:
                return

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        self._connections.add(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        with contextlib.suppress(OSError):
            connection.sendall(b"ready\n")

    def _hear(self, connection: socket.socket) -> None:
        try:
            said = connection.recv(64)
        except OSError:
            said = b""
        self._stays = self._stays or said == b"stay\n"
        self._is_stopped = self._is_stopped or said == b"stop\n"
        if not said:
            self._selector.unregister(connection)
            self._connections.discard(connection)
            connection.close()


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at a path for as long as the block lasts."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def keep(places: Places) -> None:
    """Run the daemon until nobody needs it. Raises `EngineUnavailable`."""
    with (places.root / "keeper.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that is still stopping is waited for
        check_machine(places)
        fetch_programs(places)
        daemon = Daemon(places)
        try:
            daemon.start()
            with listening(places.holders_socket) as listener:
                _answer("ready")
                Holders(listener).serve(daemon)
        finally:
            daemon.stop()


def _answer(text: str) -> None:
    """Tell the one process that waits for us; it may have died."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _stop_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Keep the engine in the folder that is named, and return the exit code."""
    signal.signal(signal.SIGTERM, _stop_on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        keep(Places(Path(sys.argv[1])))
    except EngineUnavailable as exc:
        _answer(str(exc))
        return 77
    return 0


if __name__ == "__main__":
    sys.exit(main())

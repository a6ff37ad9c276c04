"""Runs one worker in a container, and behaves like the worker's own process.

Runs as a script, with a JSON object as its one argument: started by the supervisor in place of a worker's command. It
starts `docker run`, whose output is ours; SIGTERM goes on to the worker; the exit code is the worker's, and a worker
that a signal ended ends us by the same one. The environment goes on by the names of variables, so no value shows up in
a process list.

The docker command that waits for a container can be killed and the container lives on. So a watcher, in a session of
its own, removes the container as soon as this process is gone, however it went. It holds our output open until then:
who reads that to the end knows that the container is gone as well. Standard library only, as in `reaper.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_END = b"."
"""Tells the watcher that the container has ended by itself."""
_LATE_SECONDS = 3.0
"""For so long the daemon may still create the container that a killed command asked for."""
_SIGNALLED = 128
"""Exit codes above are those of workers that a signal ended."""
_DEADLY = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
_HOST_VARIABLES = frozenset(
    {
        "PATH", "HOME", "PWD", "SHLVL", "_", "LC_CTYPE", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE", "TORCHINDUCTOR_CACHE_DIR", "FLASHKIT_WEIGHTS_DIR", "FLASHKIT_WEIGHTS_CACHE",
        "FLASHKIT_MODEL_CACHE", "FLASHKIT_VOLUME", "HF_HUB_CACHE",
    }
)  # fmt: skip
"""They describe this machine, and mean nothing in a container."""
_VOLUME_MOUNT = "/runpod-volume"
_STATE = "FLASHKIT_STATE"


def run_command(spec: Mapping[str, Any], environ: Mapping[str, str], name: str) -> list[str]:
    """Return the command that runs the container.

    Args:
        spec: `docker` (the command and its options), `image`, `options` (further ones of `docker run`), `env`
            (variables that go on although they have names of this machine's), `shares_store` (sessions are kept here).
        environ: The worker's environment.
        name: Of the container.
    """
    hidden = set(_HOST_VARIABLES)
    if _store_folder(environ) and not spec["shares_store"]:
        hidden.add(_STATE)  # it would wait for a store that it cannot reach
    passed = [each for each in sorted(environ) if each not in hidden or each in spec["env"]]
    return [
        *spec["docker"],
        *("run", "--rm", "--init", "--network", "host", "--name", name, "--label", f"flashkit.worker={name}"),
        *(word for each in passed for word in ("--env", each)),
        *(word for each in _mounts(spec, environ) for word in ("--volume", each)),
        *(("--user", f"{os.getuid()}:{os.getgid()}") if spec["shares_store"] and _store_folder(environ) else ()),
        *spec["options"],
        spec["image"],
    ]


def _mounts(spec: Mapping[str, Any], environ: Mapping[str, str]) -> Iterable[str]:
    if volume := environ.get("FLASHKIT_VOLUME"):
        yield f"{volume}:{_VOLUME_MOUNT}"
    folder = _store_folder(environ) if spec["shares_store"] else None
    if folder:
        yield f"{folder}:{folder}"


def _store_folder(environ: Mapping[str, str]) -> str | None:
    """Return the folder of the sessions' store, None where it is reached over the network."""
    url = environ.get(_STATE, "")
    for scheme in ("sqlite:///", "unix://"):
        if url.startswith(scheme):
            return os.path.dirname(url.removeprefix(scheme).partition("?")[0]) or None  # noqa: PTH120 - few modules
    return None


def watch(pipe: int, docker: Sequence[str], name: str) -> None:
    """Remove the container once the other end of the pipe has closed without a word."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(pipe, 1) == _END:
        return
    is_removed = _remove(docker, name)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):  # whoever reads our output need not wait any longer
        os.dup2(nowhere, descriptor)
    give_up_at = time.monotonic() + _LATE_SECONDS
    while not is_removed and time.monotonic() < give_up_at:
        time.sleep(0.3)
        is_removed = _remove(docker, name)


def _remove(docker: Sequence[str], name: str) -> bool:
    command = [*docker, "rm", "--force", name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0 and name.encode() in done.stdout and b"No such container" not in done.stderr


def start_watcher(docker: Sequence[str], name: str) -> int:
    """Start the watcher, and return the pipe's end that tells it of our end."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        try:
            os.close(write_end)
            watch(read_end, docker, name)
        finally:
            os._exit(0)
    os.close(read_end)
    return write_end


def run(spec: Mapping[str, Any]) -> int:
    """Run the container to its end, and return the worker's exit code."""
    name = f"flashkit-{os.environ.get('RUNPOD_POD_ID', os.getpid())}"
    pipe = start_watcher(spec["docker"], name)
    process = subprocess.Popen(run_command(spec, os.environ, name), stdin=subprocess.DEVNULL)  # noqa: S603

    def send_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    signal.signal(signal.SIGTERM, send_on)
    code = process.wait()
    if code >= 0:  # else the docker command itself was ended, and the container may live on
        os.write(pipe, _END)
    return code


def main() -> None:
    """Run the container that the argument describes, and end as its worker did."""
    code = run(json.loads(sys.argv[1]))
    number = -code if code < 0 else code - _SIGNALLED
    if number in _DEADLY:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""How vLLM's own processes come and go: quickly, quietly, and none of them staying behind.

vLLM has a process for its scheduler and the model (`VLLM::EngineCore`); a model that is split, and one that vLLM's CPU
build starts its own way, runs beside it (`VLLM::Worker`). Started its own way, each imports the user's app and then
everything that the worker has imported already, one after the other. Here the app is kept out of them, and the CPU
build's are forked from a process that imports vLLM while the worker does: a start takes 0.6 of the time on two busy
cores. A GPU's are started as `vllm serve` starts them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from flashkit.worker.machine import usable_cpus

log = logging.getLogger(__name__)

PRELOADED: Final = "flashkit.worker.engines.vllm_preload"
"""The module that the process from which others are forked imports first."""
_QUIET: Final = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_COLOR": "0"}
_QUIET_ON_CPU: Final = {"VLLM_LOGGING_LEVEL": "ERROR"}
"""There vLLM warns at every start that this is no GPU."""
_FOR_CHILDREN: Final = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
_OWN_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
"""Whoever sets it wants threads bound to cores, which works in vLLM's own way of starting processes only."""


def be_quiet(*, is_cpu: bool) -> None:
    """Let vLLM send no statistics and log what matters only, unless the environment says something else."""
    for name, value in {**_QUIET, **(_QUIET_ON_CPU if is_cpu else {})}.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(ValueError):  # a level that Python does not know is for vLLM to refuse
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # says on every CPU that Triton is for GPUs


@contextlib.contextmanager
def kept_logging() -> Iterator[None]:
    """Keep the root logger as it is: a library that vLLM's routes import turns it and its handlers down to errors."""
    root = logging.getLogger()
    level, levels = root.level, [(handler, handler.level) for handler in root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        for handler, own in levels:
            handler.setLevel(own)


class CpuNursery:
    """The process from which vLLM's processes are forked on a CPU: Python's fork server, of which there is one."""

    _server: int | None = None
    """The fork server that was started here."""

    def __init__(self) -> None:
        self.is_used = _OWN_BINDING not in os.environ

    def start(self) -> None:
        """Let it import vLLM from now on; returns at once."""
        if not self.is_used:
            return
        from multiprocessing import forkserver

        if _fork_server() not in (None, CpuNursery._server):
            self.is_used = False
            log.info("vLLM starts its processes itself, which takes longer: the app uses Python's fork server already")
            return
        multiprocessing.set_forkserver_preload([PRELOADED])
        threads = os.environ.get("OMP_NUM_THREADS") or str(count_threads())
        with environment({"OMP_NUM_THREADS": threads, **_FOR_CHILDREN}):
            forkserver.ensure_running()
        CpuNursery._server = _fork_server()

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Let processes that are started inside be forked from it."""
        if not self.is_used:
            yield
            return
        own = multiprocessing.get_context
        multiprocessing.get_context = lambda method=None: own("forkserver")  # type: ignore[assignment]
        try:
            yield
        finally:
            multiprocessing.get_context = own


def _fork_server() -> int | None:
    """Return the id of Python's fork server in this process, None where it was not asked for yet."""
    from multiprocessing import forkserver

    server: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)  # noqa: SLF001
    return server


def ending_with(worker: int, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a process runs, so that Linux ends it when the worker is gone; elsewhere it runs as before.

    Not by PR_SET_PDEATHSIG, which tells of the end of a thread: whoever started the first engine may go before others.
    """

    @functools.wraps(run)
    def run_here(*args: Any, **kwargs: Any) -> Any:
        threading.Thread(target=_die_with, args=[worker], name="flashkit-worker-watch", daemon=True).start()
        return run(*args, **kwargs)

    return run_here


def _die_with(worker: int) -> None:
    try:
        select.select([os.pidfd_open(worker)], [], [])
    except ProcessLookupError:  # it is gone already
        pass
    except (AttributeError, OSError):  # another system, or a sandbox without such descriptors
        return
    os.kill(os.getpid(), signal.SIGKILL)


def count_threads() -> int:
    """Return how many threads the model's process computes with: all cores but one, which the worker needs."""
    import psutil

    physical = psutil.cpu_count(logical=False) or 1
    return max(1, min(usable_cpus(), physical) - 1)


def starting_environment() -> contextlib.AbstractContextManager[None]:
    """Give processes that are started inside the environment that `vllm serve` gives its own, and less to say."""
    return environment({"VLLM_WORKER_MULTIPROC_METHOD": "spawn", **_FOR_CHILDREN})


@contextlib.contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change the environment for as long as processes are started; what vLLM changes in it is undone as well."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def settle_environment() -> None:
    """Let vLLM read its variables once from now on, and not for every token."""
    from vllm import envs

    for change in ("disable_envs_cache", "enable_envs_cache"):  # anew, where another engine was here before
        if function := getattr(envs, change, None):
            function()


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep the user's app out of processes that are started inside: they would import it, and run what it runs."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def inspecting_in_process() -> Iterator[None]:
    """Let vLLM look at the model's class here, and not in yet another process, which spares a GPU's memory only."""
    from vllm.model_executor.models import registry

    own = getattr(registry, "_run_in_subprocess", None)
    if own is None:
        yield
        return
    registry._run_in_subprocess = lambda function: function()  # noqa: SLF001 - put back below
    try:
        yield
    finally:
        registry._run_in_subprocess = own  # noqa: SLF001


def children() -> list[Any]:
    """Return this process's descendants."""
    import psutil

    return psutil.Process().children(recursive=True)


def kill_started_since(before: list[Any]) -> None:
    """End the model's processes that were started since: a start that was broken off leaves them behind."""
    known = {process.pid for process in before}
    kill([process for process in children() if process.pid not in known and not _is_service(process)])


def kill(processes: list[Any], *, grace_seconds: float = 0.0) -> None:
    """End processes that do not end by themselves, and wait for them."""
    import psutil

    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            log.debug("killing vLLM's process %d, which did not end", process.pid)
            process.kill()
    psutil.wait_procs(alive, timeout=2.0)


def _is_service(process: Any) -> bool:
    """Say whether it is one of multiprocessing's own, which end with this process."""
    import psutil

    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "multiprocessing.resource_tracker" in line or "multiprocessing.forkserver" in line

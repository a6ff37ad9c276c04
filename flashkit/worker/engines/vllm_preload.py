"""What the process imports from which vLLM's processes are forked on a CPU; see `vllm_processes`.

The scheduler's process, forked from here, forks those of a model that runs beside it. It ends when the worker does,
`kill -9` included; the others watch it, and this one ends when nobody is left who could ask for another process.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import select
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final

from flashkit.worker.engines.vllm_waiting import wait_in_naps

_WORKER: Final = os.getppid()

_own_context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: _own_context("fork")  # type: ignore[assignment]  # whatever it asks for

logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import vllm.model_executor.model_loader
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_worker


def ends_with_worker(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a process runs, so that Linux ends it when the worker is gone; elsewhere as it is.

    Not by PR_SET_PDEATHSIG, which tells of the end of a thread: whoever started the first engine may go before others.
    """
    if not hasattr(os, "pidfd_open"):
        return run

    @functools.wraps(run)
    def run_here(*args: Any, **kwargs: Any) -> Any:
        threading.Thread(target=_die_with_worker, name="flashkit-worker-watch", daemon=True).start()
        return run(*args, **kwargs)

    return run_here


def _die_with_worker() -> None:
    try:
        worker = os.pidfd_open(_WORKER)
    except ProcessLookupError:  # it is gone already
        pass
    except OSError:  # a kernel or a sandbox without such descriptors
        return
    else:
        select.select([worker], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


wait_in_naps()
core = vllm.v1.engine.core.EngineCoreProc
core.run_engine_core = staticmethod(ends_with_worker(core.run_engine_core))

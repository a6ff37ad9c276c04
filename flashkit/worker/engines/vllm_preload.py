"""What the process imports from which vLLM's processes are forked on a CPU; see `vllm_processes`.

The engine's process, forked from here, forks those of a model that is split in its turn. None of them outlives the
worker: on Linux each is killed when the process goes that it came from, `kill -9` of the worker included.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from typing import Final

from flashkit.worker.engines.vllm_waiting import wait_in_naps

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that it was forked from ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if sys.platform == "linux":
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)

_own_context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: _own_context("fork")  # type: ignore[assignment]  # whatever it asks for

logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import vllm.model_executor.model_loader
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401 - for those that are forked from here

wait_in_naps()

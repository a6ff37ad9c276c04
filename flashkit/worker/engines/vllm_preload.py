"""What the process imports from which vLLM's processes are forked on a CPU; see `vllm_processes`.

The scheduler's process, forked from here, forks those of a model that runs beside it. It ends when the worker does,
`kill -9` included; the others watch it, and this one ends when nobody is left who could ask for another process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from typing import Final

from flashkit.worker.engines.vllm_processes import ending_with
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

wait_in_naps()
core = vllm.v1.engine.core.EngineCoreProc
core.run_engine_core = staticmethod(ending_with(_WORKER, core.run_engine_core))

"""What the process imports from which vLLM's processes are forked on a CPU; see `vllm_processes`.

The engine's process, forked from here, forks the model's process in its turn.
"""

from __future__ import annotations

import logging
import multiprocessing
import warnings

from flashkit.worker.engines.vllm_waiting import wait_in_naps

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

"""One batch through the model, whatever happens: what cannot be computed is found by halving the batch.

Too little memory, or a text that the model fails on, is nobody else's trouble: the halves are tried again, down to
single texts. A failure of the GPU itself is final, for the process can use it no more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flashkit.errors import EngineDied, EngineError
from flashkit.worker.engines.embedding.model import Model
from flashkit.worker.engines.embedding.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Computed:
    """What came of a batch."""

    rows: npt.NDArray[np.float32]
    """One for each text; those of failures mean nothing."""
    failures: dict[int, EngineError] = field(default_factory=dict)
    """By position in the batch."""
    fitting_tokens: int | None = None
    """Where memory ran out: tokens of the largest part that could be computed, padding included."""


def run_batch(model: Model, batch: Sequence[Tokens]) -> Computed:
    """Return the rows of a batch.

    Raises:
        EngineDied: The GPU failed.
    """
    import numpy as np

    computed = Computed(np.empty((len(batch), model.dimensions), dtype=np.float32))
    # Shorter texts beside each other: the halves then are batches with little padding.
    order = sorted(range(len(batch)), key=lambda position: len(batch[position].ids))
    _run_part(model, batch, order, computed)
    finite = np.isfinite(computed.rows).all(axis=1)
    for position in np.flatnonzero(~finite).tolist():
        computed.failures.setdefault(position, _no_number(model))
    return computed


def _run_part(model: Model, batch: Sequence[Tokens], part: Sequence[int], computed: Computed) -> None:
    failure = _try_part(model, batch, part, computed)
    if failure is None:
        return
    if _is_out_of_memory(failure):
        computed.fitting_tokens = computed.fitting_tokens or 0
    if len(part) == 1:
        computed.failures[part[0]] = _failed(failure, len(batch[part[0]].ids))
        computed.rows[part] = 0.0
        return
    middle = len(part) // 2
    _run_part(model, batch, part[:middle], computed)
    _run_part(model, batch, part[middle:], computed)


def _try_part(model: Model, batch: Sequence[Tokens], part: Sequence[int], computed: Computed) -> Exception | None:
    """Compute some texts of a batch, or return why they cannot be computed together."""
    texts = [batch[position] for position in part]
    try:
        computed.rows[part] = model.run(texts)
    except Exception as exc:
        if _is_of_the_gpu(exc) and not _is_out_of_memory(exc):
            raise EngineDied(
                f"the GPU failed: {exc}",
                hint="the worker is replaced; send the request again",
                details={"retryable": True},
            ) from exc
        failure = exc.with_traceback(None)  # its frames hold the tensors that took the memory
    else:
        if computed.fitting_tokens is not None:
            computed.fitting_tokens = max(computed.fitting_tokens, model.tokens_of(texts))
        return None
    _free_memory()
    return failure


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(exc: Exception) -> bool:
    import torch

    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(exc) for words in ("out of memory", "can't allocate memory", "ALLOC_FAILED"))


def _is_of_the_gpu(exc: Exception) -> bool:
    import torch

    return isinstance(exc, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(exc)


def _failed(exc: Exception, tokens: int) -> EngineError:
    log.warning("the model failed on a text of %d tokens: %s: %s", tokens, type(exc).__name__, exc)
    return EngineError(
        f"the model failed on the text, of {tokens} tokens: {type(exc).__name__}: {exc}",
        hint="send a shorter text, or look at the worker's log",
        details={"tokens": tokens},
    )


def _no_number(model: Model) -> EngineError:
    return EngineError(
        f"the model gave no number for the text in {model.dtype}", hint='write Embedding(..., dtype="float32")'
    )

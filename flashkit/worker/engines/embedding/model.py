"""A loaded model in torch: one batch of tokens in, one row of numbers for each text out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from flashkit.worker.engines.embedding.layout import Layout
from flashkit.worker.engines.embedding.packed import Packing
from flashkit.worker.engines.embedding.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)

Device = Literal["cuda", "cpu"]

CPU_BATCH_TOKENS: Final = 2_048
"""Measured: larger batches leave the processor's caches (docs/decisions/0011)."""
GPU_BATCH_TOKENS: Final = 16_384
GPU_FREE_TOKENS: Final = 2_048
"""Smaller batches are bound by kernel launches and by reading the weights."""
_GPU_LENGTH_STEP: Final = 8
"""Lengths are padded to a multiple of this, for the tensor cores."""


@dataclass(slots=True)
class Model:
    """A loaded model. `run` is called by one thread at a time."""

    encoder: Any
    """The torch module: tokens in, hidden states or logits out."""
    layout: Layout
    device: Device
    dtype: str = "float32"
    """What its linear layers compute in."""
    is_autocast: bool = False
    """Only the linear layers are in that precision."""
    dense: Any = None
    """Layers after pooling."""
    normalize: bool = True
    dimensions: int = 0
    """Numbers in a row; 1 for a cross-encoder's score."""
    compiled: Any = None
    """The encoder, compiled; it is compiled by its first batch."""
    packing: Packing | None = None
    """Texts go through it in one row, without padding."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch that suit the device."""
        return CPU_BATCH_TOKENS if self.device == "cpu" else GPU_BATCH_TOKENS

    @property
    def free_tokens(self) -> int:
        """A batch of fewer tokens takes as long as one of so many."""
        return 0 if self.device == "cpu" else GPU_FREE_TOKENS

    def tokens_of(self, batch: Sequence[Tokens]) -> int:
        """Return how many tokens it computes for a batch, padding included."""
        lengths = [len(tokens.ids) for tokens in batch]
        return len(lengths) * max(lengths) if self.packing is None else sum(lengths)

    def compile(self) -> None:
        """Compile the encoder, once for batches of all shapes."""
        import torch

        self.compiled = torch.compile(self.encoder, dynamic=True)

    def run(self, batch: Sequence[Tokens]) -> npt.NDArray[np.float32]:
        """Return one row for each text: its vector, or the score of the pair."""
        import torch

        if self.packing is None:
            inputs = self._inputs(batch)
        else:
            inputs = self.packing.inputs(batch, takes_types=self._takes_types)
        with torch.inference_mode():
            with torch.autocast("cpu", dtype=getattr(torch, self.dtype)) if self.is_autocast else nullcontext():
                output = self.encoder(**inputs) if self.compiled is None else self._run_compiled(inputs)
            rows = self._scores(output) if self.layout.is_cross_encoder else self._vectors(output[0], inputs)
            return rows.cpu().numpy()

    def _run_compiled(self, inputs: dict[str, Any]) -> Any:
        """Return what the compiled encoder gives; where it fails and the plain one does not, it is used no more."""
        import torch

        try:
            return self.compiled(**inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as exc:  # noqa: BLE001 - compilers, drivers, whatever is missing
            output = self.encoder(**inputs)
            log.warning("the compiled model failed, and is used no more: %s: %s", type(exc).__name__, exc)
            self.compiled = None
            return output

    def _inputs(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """Return the batch as tensors, padded; without a mask where nothing is, for the quickest attention."""
        import numpy as np
        import torch

        rows, width = len(batch), self._width(max(len(tokens.ids) for tokens in batch))
        pad = getattr(self.encoder.config, "pad_token_id", None) or 0
        arrays: dict[str, npt.NDArray[np.int64]] = {"input_ids": np.full((rows, width), pad, dtype=np.int64)}
        if any(len(tokens.ids) < width for tokens in batch):
            arrays["attention_mask"] = np.zeros((rows, width), dtype=np.int64)
        if self._takes_types and any(tokens.types is not None for tokens in batch):
            arrays["token_type_ids"] = np.zeros((rows, width), dtype=np.int64)
        for row, tokens in enumerate(batch):
            length = len(tokens.ids)
            arrays["input_ids"][row, :length] = tokens.ids
            if "attention_mask" in arrays:
                arrays["attention_mask"][row, :length] = 1
            if "token_type_ids" in arrays and tokens.types is not None:
                arrays["token_type_ids"][row, :length] = tokens.types
        return {name: torch.from_numpy(array).to(self.device, non_blocking=True) for name, array in arrays.items()}

    @property
    def _takes_types(self) -> bool:
        return (getattr(self.encoder.config, "type_vocab_size", 0) or 0) > 1

    def _width(self, longest: int) -> int:
        if self.device == "cpu":
            return longest
        return max(longest, min(math.ceil(longest / _GPU_LENGTH_STEP) * _GPU_LENGTH_STEP, self.layout.max_length))

    def _vectors(self, hidden: Any, inputs: dict[str, Any]) -> Any:
        import torch

        if self.packing is None:
            vectors = pool(self.layout.pooling, hidden, inputs.get("attention_mask")).float()
        else:
            pooled = [pool(self.layout.pooling, hidden[:, start:stop], None) for start, stop in inputs["spans"]]
            vectors = torch.cat(pooled).float()
        if self.dense is not None:
            vectors = self.dense(vectors)
        return torch.nn.functional.normalize(vectors, dim=1) if self.normalize else vectors

    def _scores(self, output: Any) -> Any:
        logits = output.logits.float()
        return logits.sigmoid() if self.layout.activation == "Sigmoid" else logits


def pool(how: str, hidden: Any, mask: Any) -> Any:
    """Return a vector for each text, made of those of its tokens; without a mask every token counts."""
    import torch

    if how == "cls":
        return hidden[:, 0]
    if mask is None:
        return {"mean": lambda: hidden.mean(1), "last": lambda: hidden[:, -1], "max": lambda: hidden.amax(1)}[how]()
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if how == "max":
        return hidden.masked_fill(mask.unsqueeze(-1) == 0, -math.inf).amax(1)
    # In float32: the sum over a long text may be more than float16 holds.
    return torch.bmm(mask.unsqueeze(1).float(), hidden.float()).squeeze(1) / mask.sum(1, keepdim=True)

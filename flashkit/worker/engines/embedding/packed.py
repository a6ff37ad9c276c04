"""Texts one behind the other in a single row, without padding: how encoders run on a CPU, where they take it.

Padding is computed for nothing, and more of it the more lengths there are. In a row of texts only attention has to know
where one ends, so transformers is given an attention function that goes through them one by one. Its scores for texts
of ordinary length are two batched products, which take a half to two thirds of the time of torch's attention
(docs/decisions/0011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flashkit.worker.engines.embedding.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PACKED: Final = "packed_texts"
"""The attention function's name in transformers, which takes names with "flash" in them for flash attention."""
_FROM_ZERO: Final = frozenset({"bert", "distilbert", "electra"})
"""Encoders, by `model_type`, that count a text's positions from 0."""
_AFTER_PADDING: Final = frozenset({"camembert", "roberta", "xlm-roberta"})
"""Those that count from behind the padding token's id, which has that position itself."""
_PRODUCTS_FROM: Final = 48
_PRODUCTS_TO: Final = 512
"""Tokens of a text, measured: below, four small operations cost more than one; above, scores leave the caches."""

Span = tuple[int, int]
"""Where a text begins in the row, and where the next one does."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How texts are put into a row for one model."""

    padding: int | None
    """The token whose id is its position, None where positions count from 0."""

    def inputs(self, batch: Sequence[Tokens], *, takes_types: bool) -> dict[str, Any]:
        """Return the batch as the model's arguments; `spans` is for the attention function."""
        import numpy as np
        import torch

        spans, end = [], 0
        for tokens in batch:
            spans.append((end, end + len(tokens.ids)))
            end += len(tokens.ids)
        rows: dict[str, npt.NDArray[np.int64]] = {
            "input_ids": np.concatenate([tokens.ids for tokens in batch]).astype(np.int64),
            "position_ids": np.concatenate([self._positions(tokens.ids) for tokens in batch]),
        }
        if takes_types and any(tokens.types is not None for tokens in batch):
            types = rows["token_type_ids"] = np.zeros(end, dtype=np.int64)
            for tokens, (start, stop) in zip(batch, spans, strict=True):
                if tokens.types is not None:
                    types[start:stop] = tokens.types
        return {**{name: torch.from_numpy(row).unsqueeze(0) for name, row in rows.items()}, "spans": spans}

    def _positions(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        import numpy as np

        if self.padding is None:
            return np.arange(len(ids), dtype=np.int64)
        counted = ids != self.padding
        positions: npt.NDArray[np.int64] = np.cumsum(counted) * counted + self.padding
        return positions


def packing_of(encoder: Any) -> Packing | None:
    """Return how texts are packed for a model, None where they are not: nothing is known of code beside weights."""
    config = encoder.config
    if not type(encoder).__module__.startswith("transformers."):
        return None
    if config.model_type in _FROM_ZERO:
        return Packing(None)
    if config.model_type in _AFTER_PADDING:
        return Packing(config.pad_token_id)
    return None


def register() -> None:
    """Make the attention function known to transformers.

    Raises:
        ImportError: This release has no such functions.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, _no_mask)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    spans: Sequence[Span],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Return the attention of each text to itself, as transformers asks for it.

    Args:
        module: Not used, like the mask: nothing is padding, and whole texts see each other in no direction.
        query: Of the shape (1, heads, tokens of all texts, size of a head), as `key` and `value`.
        key: See there.
        value: See there.
        attention_mask: See `module`.
        spans: Where the texts are.
        scaling: Of the scores; by default one by the root of the size of a head.
    """
    import torch

    _, heads, tokens, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    queries, keys, values = query[0], key[0], value[0]
    mixed = torch.empty(tokens, heads, size, dtype=query.dtype)
    rows = mixed.transpose(0, 1)
    with torch.autocast("cpu", enabled=False):
        for start, stop in spans:
            ours = slice(start, stop)
            if _PRODUCTS_FROM <= stop - start <= _PRODUCTS_TO:
                scaled = torch.empty(heads, stop - start, size, dtype=query.dtype)  # dense, as products want it
                torch.mul(queries[:, ours], scale, out=scaled)
                scores = torch.bmm(scaled, keys[:, ours].transpose(1, 2))
                torch.softmax(scores, -1, out=scores)
                rows[:, ours] = torch.bmm(scores, values[:, ours])
            else:
                parts = (part[:, :, ours] for part in (query, key, value))
                rows[:, ours] = torch.nn.functional.scaled_dot_product_attention(*parts, scale=scale)[0]
    return mixed.unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Return no mask: nothing is padding."""

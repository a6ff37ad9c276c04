"""Sentence embeddings with transformers: tokens of a text, mean over them, length 1."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from flashkit.errors import ConfigurationError, InputError
from flashkit.settings import Settings
from flashkit.spec import EngineSpec, Weights
from flashkit.worker.engines.engine import EngineRequest, EngineResponse
from flashkit.worker.phases import Phases
from flashkit.worker.weights import resolve_weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCH_SIZE: Final = 32


async def load_embedding(spec: EngineSpec, settings: Settings, phases: Phases) -> EmbeddingEngine:
    """Return the loaded model."""
    if spec.weights is None:
        raise ConfigurationError("an embedding engine needs weights", hint='Embedding(Weights("organisation/name"))')
    with phases.measure("engine"):
        return await asyncio.to_thread(EmbeddingEngine.load, spec.weights, settings)


class EmbeddingEngine:
    """The `embed` that an embedding endpoint's handler receives."""

    def __init__(self, tokenizer: Any, model: Any, device: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._device = device

    @classmethod
    def load(cls, weights: Weights, settings: Settings) -> EmbeddingEngine:
        """Load the model onto the GPU if there is one, else the CPU, and run one text through it.

        Raises:
            ConfigurationError: The weights or the libraries are missing.
        """
        folder = resolve_weights(weights, settings)
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as transformers_logging
        except ImportError as exc:
            raise ConfigurationError(
                f"embedding needs the package {exc.name!r}", hint="pip install 'flashkit-serverless[embedding]'"
            ) from exc
        transformers_logging.disable_progress_bar()  # a bar that redraws itself is noise in a worker's log
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).to(device).eval()
        return cls(tokenizer, model, device)

    room = 64

    def handle(self) -> EmbeddingEngine:
        """Return what handlers get."""
        return self

    async def warm_up(self) -> None:
        """Run one text through the model."""
        await self(["warm up"])

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Answer a request."""
        raise NotImplementedError

    async def check(self) -> None:
        """Return: there is nothing that could be dead."""

    async def close(self) -> None:
        """Return: memory is freed with the process."""

    async def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a float32 array of shape (texts, dimensions); every row has length 1.

        Raises:
            InputError: `texts` is one string, or empty.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"embed() takes a list of texts, not {texts!r}", hint="write embed([text])")
        return await asyncio.to_thread(self.embed_now, list(texts))

    def embed_now(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return what calling the engine returns, blocking the calling thread."""
        import numpy as np

        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: dict[int, Any] = {}
        for start in range(0, len(order), BATCH_SIZE):
            indexes = order[start : start + BATCH_SIZE]
            rows.update(zip(indexes, self._embed_batch([texts[index] for index in indexes]), strict=True))
        return np.stack([rows[index] for index in range(len(texts))])

    def _embed_batch(self, texts: list[str]) -> Any:
        import torch

        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            means = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(means.float(), dim=1).cpu().numpy()

"""The embedding engine: a model, its pipeline, and what a worker needs of them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from flashkit.catalog import ENGINE_CONCURRENCY
from flashkit.engines.embedding import EmbeddingOptions
from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.spec import EngineSpec, Weights
from flashkit.worker.engines.embedding.batching import Batcher
from flashkit.worker.engines.embedding.embed import Embed
from flashkit.worker.engines.embedding.layout import Layout, read_layout
from flashkit.worker.engines.embedding.loading import SAMPLES, load_model
from flashkit.worker.engines.embedding.model import Model
from flashkit.worker.engines.embedding.pipeline import Pipeline, Progress
from flashkit.worker.engines.embedding.routes import SHORTHANDS, Routes
from flashkit.worker.engines.embedding.tokens import Input, Tokenizer, Tokens, check_texts
from flashkit.worker.engines.engine import EngineRequest, EngineResponse
from flashkit.worker.phases import Phases
from flashkit.worker.weights import resolve_weights

log = logging.getLogger(__name__)

_NEEDED: Final = ("torch", "transformers", "numpy")
_SPIN: Final = ("GOMP_SPINCOUNT", "2000")
"""How long a thread of torch's stays awake after an operation on the CPU: until the next one begins, not longer. The
usual 300,000 rounds are a millisecond that the event loop and the tokenizer could have. (docs/decisions/0011)"""


async def load_embedding(spec: EngineSpec, settings: Settings, phases: Phases) -> EmbeddingEngine:
    """Return the engine that an `Embedding(...)` declares, ready but for its warm-up.

    Raises:
        ConfigurationError: Its weights or libraries are missing, or the model cannot be served.
    """
    if spec.weights is None:
        raise ConfigurationError("an embedding engine needs weights", hint='Embedding(Weights("organisation/name"))')
    options = EmbeddingOptions.from_json(spec.options)
    importing = asyncio.to_thread(_measured, phases, "imports", _import)
    resolving = asyncio.to_thread(_measured, phases, "weights", partial(resolve_weights, spec.weights, settings))
    _, folder = await asyncio.gather(importing, resolving)
    # Every thread that computes has a team of threads of its own. With one team in the process its members stay awake
    # between the many short operations of a batch; with two they sleep, and waking them takes as long.
    thread = ThreadPoolExecutor(1, thread_name_prefix="embedding-model")
    try:
        with phases.measure("engine"):
            loaded = await asyncio.get_running_loop().run_in_executor(thread, _load, folder, options, thread)
        engine = EmbeddingEngine(loaded, spec.weights, options)
    except BaseException:
        thread.shutdown(wait=False)
        raise
    log.info("%s", engine.describe())
    return engine


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer."""

    layout: Layout
    tokenizer: Tokenizer
    model: Model
    thread: ThreadPoolExecutor
    """The one thread in which the model was loaded, and runs."""


class EmbeddingEngine:
    """A loaded embedding model or cross-encoder, on the loop that made it."""

    shorthands: Mapping[str, str] = SHORTHANDS

    def __init__(self, loaded: Loaded, weights: Weights, options: EmbeddingOptions) -> None:
        model = self._model = loaded.model
        batcher = Batcher(
            max_batch_tokens=options.max_batch_tokens or max(model.batch_tokens, loaded.layout.max_length),
            free_tokens=model.free_tokens,
            is_padded=model.packing is None,
        )
        waits = None if options.max_queue_ms is None else options.max_queue_ms / 1000
        self._pipeline = Pipeline(loaded.tokenizer, model, batcher, thread=loaded.thread, max_queue_seconds=waits)
        names = options.served_model_name or (weights.name,)
        self._embed = Embed(
            self._pipeline,
            loaded.layout,
            model=weights.name,
            dimensions=model.dimensions,
            is_normalized=options.normalize,
        )
        self._routes = Routes(self._embed, names=names, vocabulary=loaded.tokenizer.vocabulary)
        self._warmup = options.warmup
        self.loaded = loaded

    def describe(self) -> str:
        """Return what was loaded, in one line."""
        embed, model = self._embed, self._model
        what = "cross-encoder" if embed.is_cross_encoder else f"{embed.dimensions} dimensions"
        return (
            f"{embed.model} on {model.device} in {model.dtype}: {what}, texts of up to {embed.max_length} tokens, "
            f"batches of {self._pipeline.batch_tokens}"
        )

    def handle(self) -> Embed:
        """Return what handlers get as `embed`."""
        return self._embed

    async def warm_up(self) -> None:
        """Run short and long texts, one alone and many together, and those that were declared."""
        if self._warmup is not None and not self._warmup:
            return
        longest = "warm " * self._embed.max_length
        for texts in (["Hello."], [longest], ["Hello."] * 64, [longest] * 4, list(self._warmup or ())):
            if texts:
                await self._embed.run(self._inputs(texts))

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Answer a request; a refusal is an answer too.

        Raises:
            EngineDied: The model can run no more.
        """
        return await self._routes.open(request)

    @property
    def room(self) -> int:
        """How many more jobs it could take now: none when enough waits."""
        return 0 if self._pipeline.is_full else ENGINE_CONCURRENCY

    @property
    def work(self) -> Progress:
        """What it has done so far."""
        return self._pipeline.progress

    @property
    def progress(self) -> int:
        """Batches so far."""
        return self._pipeline.progress.batches

    @property
    def is_busy(self) -> bool:
        """True while somebody waits for it."""
        return self._pipeline.is_busy

    async def check(self) -> None:
        """Return when the model can run.

        Raises:
            EngineDied: It cannot: the GPU failed.
        """
        if self._pipeline.death is not None:
            raise self._pipeline.death

    async def close(self) -> None:
        """Fail whoever still waits; memory is freed with the process."""
        await self._pipeline.close()

    def _inputs(self, texts: Sequence[str]) -> list[Input]:
        checked = check_texts(texts, what="warmup")
        return [(text, text) for text in checked] if self._embed.is_cross_encoder else list(checked)


def _load(folder: Path, options: EmbeddingOptions, thread: ThreadPoolExecutor) -> Loaded:
    layout = read_layout(folder, options)
    tokenizer = Tokenizer.load(
        layout, refuses_long=options.too_long == "refuse", trust_remote_code=options.trust_remote_code
    )
    return Loaded(layout, tokenizer, load_model(layout, options, _samples(tokenizer, layout)), thread)


def _samples(tokenizer: Tokenizer, layout: Layout) -> list[Tokens]:
    inputs: list[Input] = [(SAMPLES[0], text) for text in SAMPLES] if layout.is_cross_encoder else list(SAMPLES)
    return [tokens for tokens in tokenizer.encode(inputs) if isinstance(tokens, Tokens)]


def _import() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*_SPIN)  # read when torch is imported for the first time
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    except ImportError as exc:
        raise ConfigurationError(
            f"embedding needs the package {exc.name!r}", hint="pip install 'flashkit-serverless[embedding]'"
        ) from exc


def _measured(phases: Phases, name: str, function: Any) -> Any:
    with phases.measure(name):
        return function()

"""The loaded model as a handler has it: `embed: Embed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flashkit.errors import EngineDied, FlashkitError, InputError
from flashkit.telemetry import Op, begin
from flashkit.worker.engines.embedding.layout import Layout
from flashkit.worker.engines.embedding.pipeline import Pipeline, Rows
from flashkit.worker.engines.embedding.tokens import Input, check_text, check_texts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

QUERY_PROMPTS: Final = ("query",)
DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
"""Names that models give the prompt for documents."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors, and what became of the texts on the way."""

    vectors: npt.NDArray[np.float32]
    """One row for each text."""
    tokens: tuple[int, ...]
    """Of each text, its prompt and the model's own marks included, as far as the model read it."""
    truncated: tuple[int, ...]
    """Indexes of the texts that were too long, and whose end is not in the vector."""


class Embed:
    """Texts into vectors, and with a cross-encoder documents in order.

    Calls at the same time share batches, those of other jobs too: hand over all texts that there are in one call, and
    let jobs run side by side.
    """

    def __init__(self, pipeline: Pipeline, layout: Layout, *, model: str, dimensions: int, is_normalized: bool) -> None:
        self._pipeline = pipeline
        self._layout = layout
        self._is_normalized = is_normalized
        self.model = model
        """The model's name."""
        self.dimensions = dimensions
        """Numbers in a vector."""
        self._attributes = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": model}

    @property
    def max_length(self) -> int:
        """Tokens of a text, at most."""
        return self._layout.max_length

    @property
    def is_cross_encoder(self) -> bool:
        """True for a model that ranks documents, and makes no vectors."""
        return self._layout.is_cross_encoder

    @property
    def prompts(self) -> dict[str, str]:
        """What can be put before texts, by name."""
        return dict(self._layout.prompts)

    async def __call__(self, texts: Sequence[str], *, dimensions: int | None = None) -> npt.NDArray[np.float32]:
        """Return a float32 array of shape (texts, dimensions); every row has length 1.

        Args:
            texts: One text at least. Those that are too long are cut, or refused where the declaration says so.
            dimensions: Fewer numbers than the model makes, where it is made for that.

        Raises:
            InputError: `texts` is no list of texts, or one of them cannot be embedded; the message names it.
            EngineError: The model failed on one of them.
        """
        return (await self.encode(texts, dimensions=dimensions)).vectors

    async def queries(self, texts: Sequence[str], *, dimensions: int | None = None) -> npt.NDArray[np.float32]:
        """Return the vectors of what is searched for, with the model's prompt for queries before each text."""
        prompt = self.find_prompt(*QUERY_PROMPTS)
        return (await self.encode(texts, prompt=prompt, dimensions=dimensions)).vectors

    async def documents(self, texts: Sequence[str], *, dimensions: int | None = None) -> npt.NDArray[np.float32]:
        """Return the vectors of what is found, with the model's prompt for documents before each text."""
        prompt = self.find_prompt(*DOCUMENT_PROMPTS)
        return (await self.encode(texts, prompt=prompt, dimensions=dimensions)).vectors

    async def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, dimensions: int | None = None
    ) -> Embedded:
        """Return the vectors of texts, the number of their tokens, and which of them were too long.

        Args:
            texts: One text at least.
            prompt: Goes before each text; the model's default one where it has one and nothing is given.
            dimensions: Fewer numbers than the model makes.

        Raises:
            InputError: `texts` is no list of texts, or one of them cannot be embedded; the message names it.
            EngineError: The model failed on one of them.
        """
        self.check_dimensions(dimensions)
        checked = check_texts(texts)
        before = self.default_prompt if prompt is None else check_text(prompt, "prompt")
        rows = await self.run([before + text for text in checked] if before else checked)
        return Embedded(self.shorten(rows.values, dimensions), rows.tokens, rows.truncated)

    async def rerank(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return how well each document answers the query: a float32 array of scores, higher is better.

        Raises:
            InputError: The model is no cross-encoder, or something is no text.
            EngineError: The model failed on one of the pairs.
        """
        self.require_cross_encoder()
        checked_query, checked = check_text(query, "query"), check_texts(documents, what="documents")
        return (await self.run([(checked_query, document) for document in checked])).values[:, 0]

    async def run(self, inputs: Sequence[Input]) -> Rows:
        """Return the model's rows for inputs that have been checked."""
        with begin(Op.EMBEDDING, f"embeddings {self.model}", self._attributes) as span:
            try:
                rows = await self._pipeline.run(inputs)
            except EngineDied as exc:  # one object for all callers: each one raises its own
                raise _copy(exc) from exc.__cause__
            span.set("flashkit.embedding.texts", len(inputs))
            span.set("gen_ai.usage.input_tokens", sum(rows.tokens))
            return rows

    def find_prompt(self, *names: str) -> str | None:
        """Return the first of these prompts that the model has; None for none."""
        return next((self._layout.prompts[name] for name in names if name in self._layout.prompts), None)

    def check_dimensions(self, dimensions: Any) -> None:
        """Return when vectors of so many numbers can be made.

        Raises:
            InputError: They cannot.
        """
        if self.is_cross_encoder:
            raise InputError(
                f"{self.model} ranks documents, it makes no vectors", hint="use embed.rerank(query, documents)"
            )
        if dimensions is None or (dimensions == self.dimensions and not isinstance(dimensions, bool)):
            return
        if type(dimensions) is not int or not 1 <= dimensions <= self.dimensions:
            raise InputError(
                f"dimensions is {dimensions!r}, and the model's vectors have {self.dimensions} numbers",
                hint=f"ask for 1 to {self.dimensions}",
            )
        if not self._layout.is_matryoshka:
            raise InputError(
                f"the first {dimensions} of this model's {self.dimensions} numbers are no vector by themselves",
                hint="leave `dimensions` out; if the model was trained for it write Embedding(..., matryoshka=True)",
            )

    def shorten(self, vectors: npt.NDArray[np.float32], dimensions: int | None) -> npt.NDArray[np.float32]:
        """Return the vectors' first numbers, of length 1 again where the vectors were."""
        if dimensions is None or dimensions == self.dimensions:
            return vectors
        import numpy as np

        short = np.ascontiguousarray(vectors[:, :dimensions])
        if not self._is_normalized:
            return short
        return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)

    @property
    def default_prompt(self) -> str:
        """What goes before texts of which nothing is said; mostly nothing."""
        name = self._layout.default_prompt
        return self._layout.prompts[name] if name else ""

    def require_cross_encoder(self) -> None:
        """Return when the model ranks.

        Raises:
            InputError: It makes vectors.
        """
        if not self.is_cross_encoder:
            raise InputError(
                f"{self.model} makes vectors, it does not rank", hint="compare vectors, or serve a cross-encoder"
            )


def _copy(error: EngineDied) -> FlashkitError:
    return EngineDied.from_report(error.report)

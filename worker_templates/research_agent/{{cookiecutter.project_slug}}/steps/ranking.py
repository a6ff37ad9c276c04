"""Search by meaning: passages and queries as vectors of one embedding model."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from steps.schema import Hit, Passage


class Embed(Protocol):
    """The loaded embedding model: one vector of length 1 for each text, as rows of an array."""

    async def __call__(self, texts: list[str]) -> Any: ...


class Index(NamedTuple):
    """Passages and their vectors, in the same order."""

    passages: Sequence[Passage]
    vectors: Any


async def build_index(passages: Sequence[Passage], embed: Embed) -> Index:
    """Return the passages with a vector each; the title counts as part of the text."""
    return Index(passages, await embed([f"{passage.title}. {passage.text}" for passage in passages]))


def nearest(query_vector: Any, indexes: Sequence[Index], top_k: int) -> list[Hit]:
    """Return the passages closest to a query, best first, each text once."""
    hits = [
        Hit(**passage.model_dump(), score=round(float(score), 4))
        for index in indexes
        for passage, score in zip(index.passages, index.vectors @ query_vector, strict=True)
    ]
    best = {hit.text: hit for hit in sorted(hits, key=lambda hit: hit.score)}
    return sorted(best.values(), key=lambda hit: -hit.score)[:top_k]

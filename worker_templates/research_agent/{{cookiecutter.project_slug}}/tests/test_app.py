"""The endpoints as plain functions: calling a decorated function just calls it."""

import hashlib

import numpy as np
import pytest

import app
from steps.planning import content_words
from steps.schema import Passage


async def embed_words(texts: list[str]) -> np.ndarray:
    """Stand in for the embedding model: texts that share words are close."""
    vectors = np.full((len(texts), 512), 1e-6, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in content_words(text):
            vectors[row, int(hashlib.md5(word.encode()).hexdigest(), 16) % 512] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def fresh_knowledge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app._Knowledge, "index", None)


async def test_retrieval_returns_a_page(pages_url: str):
    assert (await app.retrieve(f"{pages_url}/slow-tools.html")).title == "When a tool is slow"


async def test_search_finds_passages_of_the_knowledge_base():
    [hits] = await app.search(["lease with a number for every new owner"], top_k=2, embed=embed_words)

    assert len(hits) == 2
    assert hits[0].source == "session-state.md"
    assert hits[0].score >= hits[1].score


async def test_search_ranks_the_passages_that_were_sent_along():
    sent = Passage(source="http://site/bees", title="Bees", text="Bees like the colours of flowers in spring.")

    [hits] = await app.search(["bees and flowers"], passages=[sent], embed=embed_words)
    [only] = await app.search(["bees and flowers"], passages=[sent], knowledge=False, embed=embed_words)

    assert hits[0].source == sent.source
    assert [hit.source for hit in only] == [sent.source]


async def test_no_queries_give_no_hits():
    assert await app.search([], embed=embed_words) == []


def test_every_endpoint_has_a_bound_and_a_timeout():
    for endpoint in (app.retrieve, app.search, app.write, app.research):
        assert endpoint.spec.workers.max >= 1
        assert endpoint.spec.execution_timeout_ms <= 300_000

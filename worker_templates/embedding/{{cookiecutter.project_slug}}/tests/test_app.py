"""The search as a function, and jobs on the local platform with the real model."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from app import MODEL, search

NAME = search.spec.name
DOCUMENTS = ["Bees visit flowers in spring.", "A queue holds jobs until a worker is free.", "Bread needs time to rise."]


async def embed_words(texts: list[str]) -> np.ndarray:
    """Stand in for the model: texts that share words are close."""
    vectors = np.full((len(texts), 256), 1e-6, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().strip(".?").split():
            vectors[row, int(hashlib.md5(word.encode()).hexdigest(), 16) % 256] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


async def test_the_closest_document_comes_first():
    matches = await search("who holds jobs in a queue", DOCUMENTS, 2, embed=embed_words)
    assert [match.index for match in matches][0] == 1
    assert len(matches) == 2


async def test_no_documents_give_no_matches():
    assert await search("anything", [], embed=embed_words) == []


@pytest.fixture
def weights() -> None:
    """Skip without the model on this machine; `flashkit weights pull` brings it."""
    folder = Path(os.environ.get("FLASHKIT_WEIGHTS_DIR") or "models")
    if not (folder / MODEL.name).is_dir():
        pytest.skip(f"the weights are not here: flashkit weights pull {MODEL.name}")


def test_a_job_finds_what_means_the_same(weights, endpoint):
    matches = endpoint(NAME).call({"query": "Where do tasks wait?", "documents": DOCUMENTS, "top_k": 1})
    assert matches[0]["text"] == DOCUMENTS[1]


def test_openai_embeddings_are_there_too(weights, endpoint):
    request = {"input": DOCUMENTS, "model": MODEL.name}
    answer = endpoint(NAME).call({"openai_route": "/v1/embeddings", "openai_input": request})
    assert [len(item["embedding"]) for item in answer["data"]] == [384, 384, 384]

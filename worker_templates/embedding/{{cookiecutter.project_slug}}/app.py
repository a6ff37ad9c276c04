"""{{ cookiecutter.project_name }}: embeddings on a GPU, in batches across jobs.

It answers OpenAI's `/v1/embeddings` below `/openai/v1`, and jobs that search documents by meaning.
"""

from dataclasses import dataclass

from flashkit import {% if cookiecutter.weights == "volume" %}DataCenter, {% endif %}Embed, GpuType, {% if cookiecutter.weights == "volume" %}NetworkVolume, {% endif %}Weights, embedding_endpoint

MODEL = Weights("sentence-transformers/all-MiniLM-L6-v2", revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf")


@dataclass
class Match:
    """A document that means something close to the query."""

    index: int
    """Its place in the list of documents."""
    score: float
    """Cosine similarity, at most 1."""
    text: str


@embedding_endpoint(
    name="{{ cookiecutter.project_slug.replace('_', '-') }}",
    gpu=GpuType.{{ cookiecutter.gpu }},
    workers=(1, 5),
    idle_timeout=300,
    execution_timeout_ms=60_000,
    weights=MODEL,
{% if cookiecutter.weights == "volume" %}    datacenter=DataCenter.EU_RO_1,
    volume=NetworkVolume("model-weights", size=10, datacenter=DataCenter.EU_RO_1),
{% endif %})
async def search(query: str, documents: list[str], top_k: int = 5, *, embed: Embed) -> list[Match]:
    """Return the documents that are closest to the query, the best first."""
    if not documents:
        return []
    vectors = await embed([query, *documents])
    scores = vectors[1:] @ vectors[0]
    best = sorted(range(len(documents)), key=lambda index: -scores[index])[:top_k]
    return [Match(index=index, score=round(float(scores[index]), 4), text=documents[index]) for index in best]

"""Endpoints with all-MiniLM-L6-v2: one that is its engine, and two that use it."""

from flashkit import Embed, Embedding, Weights, embedding_endpoint

MINILM = Weights("sentence-transformers/all-MiniLM-L6-v2")

vectors = embedding_endpoint(name="vectors", gpu="L40S", weights=MINILM, workers=(1, 1))


@embedding_endpoint(
    name="nearest", gpu="L40S", engine=Embedding(MINILM, dtype="float32", warmup=["a text"]), workers=(0, 1)
)
async def find_nearest(query: str, texts: list[str], embed: Embed) -> str:
    """Return the text that is closest to the query."""
    [[wanted], found] = [await embed.queries([query]), await embed.documents(texts)]
    return texts[int((found @ wanted).argmax())]


@embedding_endpoint(name="counted", gpu="L40S", weights=MINILM, workers=(0, 1))
class Counter:
    async def run(self, texts: list[str], embed: Embed) -> dict[str, list[int]]:
        embedded = await embed.encode(texts)
        return {"tokens": list(embedded.tokens), "truncated": list(embedded.truncated)}

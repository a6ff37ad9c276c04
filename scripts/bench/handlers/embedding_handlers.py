"""The embedding endpoints of scripts/bench/embedding.py: the engine answers itself."""

from flashkit import Embedding, Weights, embedding_endpoint

MINILM = Weights("sentence-transformers/all-MiniLM-L6-v2")

vectors = embedding_endpoint(name="vectors", gpu="RTX 4090", weights=MINILM)
vectors_float32 = embedding_endpoint(name="vectors-float32", gpu="RTX 4090", engine=Embedding(MINILM, dtype="float32"))

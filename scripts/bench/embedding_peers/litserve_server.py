"""LitServe with sentence-transformers, as its documentation has it: `litserve_server.py MODEL PORT`."""

import sys
from typing import Any

import litserve


class Embedding(litserve.LitAPI):
    def setup(self, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(sys.argv[1], device="cpu")

    def decode_request(self, request):  # it reads annotations, and takes only some
        return request["input"]

    def predict(self, texts: list[str]) -> Any:
        return self.model.encode(texts, batch_size=64, show_progress_bar=False, normalize_embeddings=True)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    api = Embedding(max_batch_size=64, batch_timeout=0.02)
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")

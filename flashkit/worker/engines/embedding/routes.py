"""The routes of an embedding engine: OpenAI's embeddings; ranking as vLLM, Jina and Cohere have it.

Answers have OpenAI's shape. Two things are added: `truncated`, indexes of inputs whose end was cut off, where there are
any; and in requests `input_type`, `query` or `document`, which puts the model's prompt before the texts.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flashkit.errors import EngineDied, EngineError, InputError
from flashkit.worker.engines.embedding.embed import DOCUMENT_PROMPTS, QUERY_PROMPTS, Embed
from flashkit.worker.engines.embedding.tokens import Input, check_ids, check_text, check_texts
from flashkit.worker.engines.engine import EngineRequest, EngineResponse

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SHORTHANDS: Final[Mapping[str, str]] = {"input": "/v1/embeddings", "documents": "/v1/rerank", "text_2": "/v1/score"}
"""Route by the field that gives a job's short input away."""
_JSON: Final = {"content-type": "application/json"}
_PROMPTS: Final = {"query": QUERY_PROMPTS, "document": DOCUMENT_PROMPTS}
_KINDS: Final = {400: "invalid_request_error", 404: "invalid_request_error", 405: "invalid_request_error"}


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """A request that is answered with an error."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None


class Routes:
    """Answers the requests to one model."""

    def __init__(self, embed: Embed, *, names: Sequence[str], vocabulary: int) -> None:
        self._embed = embed
        self._names = tuple(names)
        self._vocabulary = vocabulary
        self._routes: Mapping[str, tuple[str, Callable[[Any], Awaitable[bytes]]]] = {
            "/health": ("GET", self._health),
            "/models": ("GET", self._models),
            "/embeddings": ("POST", self._embeddings),
            "/rerank": ("POST", self._rerank),
            "/score": ("POST", self._score),
        }

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Answer a request; a refusal is an answer too.

        Raises:
            EngineDied: The model can run no more.
        """
        try:
            return _response(200, await self._answer(request))
        except Refusal as exc:
            return _response(exc.status, _error(exc))
        except InputError as exc:
            return _response(400, _error(Refusal(400, _text(exc), _param(exc))))
        except EngineDied:
            raise
        except EngineError as exc:
            return _response(500, _error(Refusal(500, _text(exc))))

    async def _answer(self, request: EngineRequest) -> bytes:
        path = request.path.partition("?")[0].rstrip("/")
        for version in ("/v1", "/v2"):
            path = path.removeprefix(version) if path.startswith(f"{version}/") else path
        method, answer = self._routes.get(path, (None, None))
        if answer is None and path.startswith("/models/"):
            return self._one_model(path.removeprefix("/models/"))
        if answer is None:
            raise Refusal(404, f"there is no route {request.path}; there are {', '.join(self._paths())}")
        if request.method != method:
            raise Refusal(405, f"{request.path} answers {method}, not {request.method}")
        return await answer(request.body)

    def _paths(self) -> list[str]:
        own = ("/v1/rerank", "/v1/score") if self._embed.is_cross_encoder else ("/v1/embeddings",)
        return [*own, "/v1/models", "/health"]

    async def _health(self, body: Any) -> bytes:
        return b"{}"

    async def _models(self, body: Any) -> bytes:
        return _encode({"object": "list", "data": [self._describe(name) for name in self._names]})

    def _one_model(self, name: str) -> bytes:
        self._check_model({"model": name})
        return _encode(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        described = {"id": name, "object": "model", "created": 0, "owned_by": "flashkit"}
        return {**described, "root": self._embed.model, "parent": None, "max_model_len": self._embed.max_length}

    async def _embeddings(self, body: Any) -> bytes:
        fields = self._fields(body, needed="input")
        dimensions, encoding = fields.get("dimensions"), fields.get("encoding_format")
        if encoding not in (None, "float", "base64"):
            raise Refusal(400, f"encoding_format is {encoding!r}: it may be 'float' or 'base64'", "encoding_format")
        self._embed.check_dimensions(dimensions)
        rows = await self._embed.run(self._inputs(fields))
        vectors = self._embed.shorten(rows.values, dimensions)
        written = _in_base64(vectors) if encoding == "base64" else vectors
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(written)]
        return _encode(
            {"object": "list", "data": data, "model": fields.get("model") or self._names[0], **_counted(rows.tokens)}
            | _noted(rows.truncated)
        )

    async def _rerank(self, body: Any) -> bytes:
        fields = self._fields(body, needed="query", needed_too="documents")
        query = check_text(fields["query"], "query")
        documents = check_texts(_texts_of(fields["documents"]), what="documents")
        top = fields.get("top_n")
        if top is not None and (type(top) is not int or top < 0):
            raise Refusal(400, f"top_n is {top!r}, not a number of documents", "top_n")
        rows = await self._pairs([(query, document) for document in documents])
        scores = rows.values[:, 0].tolist()
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: top or None]
        results = [{"index": index, "relevance_score": scores[index]} for index in best]
        if fields.get("return_documents", True):
            results = [{**result, "document": {"text": documents[result["index"]]}} for result in results]
        return _encode(
            {"model": fields.get("model") or self._names[0], "results": results, **_counted(rows.tokens)}
            | _noted(rows.truncated)
        )

    async def _score(self, body: Any) -> bytes:
        fields = self._fields(body, needed="text_1", needed_too="text_2")
        left, right = (
            check_texts([value] if isinstance(value, str) else value, what=name)
            for name, value in (("text_1", fields["text_1"]), ("text_2", fields["text_2"]))
        )
        if len(left) not in (1, len(right)):
            raise Refusal(400, f"text_1 has {len(left)} texts and text_2 {len(right)}: send one, or as many", "text_1")
        pairs = list(zip(left * (len(right) if len(left) == 1 else 1), right, strict=True))
        rows = await self._pairs(pairs)
        data = [
            {"object": "score", "index": index, "score": score}
            for index, score in enumerate(rows.values[:, 0].tolist())
        ]
        return _encode(
            {"object": "list", "data": data, "model": fields.get("model") or self._names[0], **_counted(rows.tokens)}
            | _noted(rows.truncated)
        )

    async def _pairs(self, pairs: Sequence[Input]) -> Any:
        self._embed.require_cross_encoder()
        return await self._embed.run(pairs)

    def _fields(self, body: Any, *, needed: str, needed_too: str | None = None) -> Mapping[str, Any]:
        if not isinstance(body, dict):
            raise Refusal(400, "the body is not a JSON object")
        for name in (needed, needed_too):
            if name is not None and body.get(name) is None:
                raise Refusal(400, f"the body has no {name!r}", name)
        self._check_model(body)
        return body

    def _check_model(self, body: Mapping[str, Any]) -> None:
        name = body.get("model")
        if name is not None and name not in self._names:
            known = " or ".join(map(repr, self._names))
            raise Refusal(404, f"the model {name!r} does not exist; here is {known}", "model", "model_not_found")

    def _inputs(self, fields: Mapping[str, Any]) -> list[Input]:
        given = fields["input"]
        if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
            given = [given]  # a text, or the tokens of one
        if not isinstance(given, list) or not given:
            raise Refusal(400, "input is neither a text nor a list of texts or of tokens", "input")
        before = self._prompt(fields)
        return [self._one_input(value, f"input[{index}]", before) for index, value in enumerate(given)]

    def _one_input(self, value: Any, what: str, before: str) -> Input:
        if isinstance(value, list):
            return check_ids(value, what, vocabulary=self._vocabulary)
        return before + check_text(value, what)

    def _prompt(self, fields: Mapping[str, Any]) -> str:
        kind = fields.get("input_type")
        if kind is None:
            return self._embed.default_prompt
        names = _PROMPTS.get(kind, (kind,)) if isinstance(kind, str) else ()
        prompt = self._embed.find_prompt(*names)
        if prompt is None and kind not in _PROMPTS:
            known = sorted({*_PROMPTS, *self._embed.prompts})
            raise Refusal(400, f"input_type is {kind!r}: it may be {', '.join(known)}", "input_type")
        return prompt or ""


def _texts_of(documents: Any) -> Any:
    """Return documents as texts: Cohere's may be objects with a `text`."""
    if not isinstance(documents, list):
        return documents
    return [document.get("text") if isinstance(document, dict) else document for document in documents]


def _in_base64(vectors: npt.NDArray[np.float32]) -> list[str]:
    return [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in vectors]


def _counted(tokens: Sequence[int]) -> dict[str, Any]:
    total = sum(tokens)
    return {"usage": {"prompt_tokens": total, "total_tokens": total}}


def _noted(truncated: Sequence[int]) -> dict[str, Any]:
    return {"truncated": truncated} if truncated else {}


def _text(exc: EngineError | InputError) -> str:
    return exc.report.message + (f" ({exc.report.hint})" if exc.report.hint else "")


def _param(exc: InputError) -> str | None:
    """Return the field that a message begins with."""
    first = exc.report.message.partition(" ")[0].partition("[")[0]
    return first if first in ("input", "query", "documents", "dimensions", "text_1", "text_2") else None


def _error(refusal: Refusal) -> bytes:
    kind = _KINDS.get(refusal.status, "server_error")
    return _encode({"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}})


def _encode(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _response(status: int, body: bytes) -> EngineResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield body

    return EngineResponse(status, pieces(), _JSON)

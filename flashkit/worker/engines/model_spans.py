"""Spans of requests to models, by OpenTelemetry's conventions for generative AI.

A stream is looked at on its way: the time of its first piece, and at its end what the last events say of tokens and of
why it ended. Its tokens are never parsed one by one.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from flashkit.telemetry import NO_SPAN, AnySpan, Op, Span, begin, recorder
from flashkit.worker.engines.engine import Engine, EngineRequest, EngineResponse

log = logging.getLogger(__name__)

_OPERATIONS: Final[Mapping[str, str]] = {
    "/chat/completions": "chat",
    "/completions": "text_completion",
    "/responses": "chat",
    "/messages": "chat",
}
_PARAMETERS: Final[Mapping[str, str]] = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "stream": "gen_ai.request.stream",
}
_TAIL_BYTES: Final = 8 * 1024
_CONTENT_BYTES: Final = 64 * 1024
_EVENTS: Final = re.compile(rb"(?m)^data:[ ]?(\{.*\})[ ]*\r?$")
_FIRST_REFUSAL: Final = 300


async def open_seen(engine: Engine, request: EngineRequest) -> EngineResponse:
    """Return an engine's answer to a request, with a span around it that ends when the answer has."""
    span = begin_request(request)
    if not isinstance(span, Span):
        return await engine.open(request)
    try:
        response = await engine.open(request)
    except BaseException as exc:
        span.end(exc)
        raise
    response.body = SeenBody(response, span)
    return response


def begin_request(request: EngineRequest) -> AnySpan:
    """Return the span of a request to a language model; of any other request, none."""
    spans = recorder()
    operation = next((name for path, name in _OPERATIONS.items() if request.path.endswith(path)), None)
    if spans is None or operation is None or request.method != "POST":
        return NO_SPAN
    body = request.body if isinstance(request.body, dict) else {}
    given = {name: body[key] for key, name in _PARAMETERS.items() if isinstance(body.get(key), str | int | float)}
    model = body.get("model")
    span = begin(
        Op.LLM,
        f"{operation} {model}" if isinstance(model, str) else operation,
        {"gen_ai.operation.name": operation, "gen_ai.provider.name": "flashkit", **given},
    )
    if spans.captures_content and isinstance(span, Span) and span.is_sampled:
        span.set("gen_ai.input.messages", _as_json(body.get("messages", body.get("prompt", body.get("input")))))
    return span


class SeenBody:
    """The bytes of an answer, looked at as they pass; closing it closes what is behind it."""

    def __init__(self, response: EngineResponse, span: Span) -> None:
        self._inner = response.body
        self._status = response.status
        self._is_stream = response.is_stream
        self._span = span
        self._kept = bytearray()
        self._events = 0
        spans = recorder()
        self._keeps_all = not self._is_stream or (spans is not None and spans.captures_content and span.is_sampled)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece."""
        try:
            piece = await anext(self._inner)
        except StopAsyncIteration:
            self._end()
            raise
        except BaseException as exc:
            self._end(exc)
            raise
        self._see(piece)
        return piece

    async def aclose(self) -> None:
        """Abort what still runs."""
        aclose = getattr(self._inner, "aclose", None)
        try:
            if aclose is not None:
                await aclose()
        finally:
            self._end()

    def _see(self, piece: bytes) -> None:
        if self._is_stream and not self._events:
            seconds = (time.time_ns() - self._span.start_ns) / 1e9
            self._span.set("gen_ai.response.time_to_first_chunk", round(seconds, 6))
        self._events += 1
        self._kept += piece
        limit = _CONTENT_BYTES if self._keeps_all else _TAIL_BYTES
        if self._is_stream and len(self._kept) > 2 * limit:
            del self._kept[:-limit]

    def _end(self, exc: BaseException | None = None) -> None:
        if self._span.end_ns:
            return
        try:
            self._read()
        except Exception:
            log.debug("an answer could not be read for its span", exc_info=True)
        finally:
            self._span.end(exc)

    def _read(self) -> None:
        import orjson

        texts = _EVENTS.findall(bytes(self._kept)) if self._is_stream else [bytes(self._kept)]
        if not self._keeps_all:
            texts = texts[-4:]  # the end of a stream: the reason, the usage
        values = []
        for text in texts:
            try:
                values.append(orjson.loads(text))
            except orjson.JSONDecodeError:
                continue  # cut where the tail begins, or no JSON at all
        found = [value for value in values if isinstance(value, dict)]
        for value in found:
            self._note(value)
        if self._status >= _FIRST_REFUSAL:
            self._span.fail(f"HTTP {self._status}")
            self._span.set("error.type", str(self._status))
        if self._keeps_all and self._is_captured:
            self._span.set("gen_ai.output.messages", _as_json(_texts_of(found)))

    @property
    def _is_captured(self) -> bool:
        spans = recorder()
        return spans is not None and spans.captures_content and self._span.is_sampled

    def _note(self, value: Mapping[str, Any]) -> None:
        span = self._span
        if isinstance(value.get("model"), str):
            span.set("gen_ai.response.model", value["model"])
        if isinstance(value.get("id"), str):
            span.set("gen_ai.response.id", value["id"])
        usage = value.get("usage")
        if isinstance(usage, Mapping):
            for names, key in _USAGE:
                if (
                    count := next((usage[name] for name in names if isinstance(usage.get(name), int)), None)
                ) is not None:
                    span.set(key, count)
        reasons = [each["finish_reason"] for each in _choices(value) if each.get("finish_reason")]
        if reasons:
            span.set("gen_ai.response.finish_reasons", reasons)


_USAGE: Final = (
    (("prompt_tokens", "input_tokens"), "gen_ai.usage.input_tokens"),
    (("completion_tokens", "output_tokens"), "gen_ai.usage.output_tokens"),
)


def _choices(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = value.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def _texts_of(values: list[dict[str, Any]]) -> list[Any]:
    """Return what an answer says: whole messages, or a stream's texts put together."""
    messages = [each["message"] for value in values for each in _choices(value) if "message" in each]
    if messages:
        return messages
    texts = []
    for each in (each for value in values for each in _choices(value)):
        delta = each.get("delta")
        texts.append(delta.get("content") if isinstance(delta, dict) else each.get("text"))
    return [{"role": "assistant", "content": "".join(text for text in texts if isinstance(text, str))}]


def _as_json(value: Any) -> str:
    import orjson

    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return ""

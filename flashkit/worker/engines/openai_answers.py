"""OpenAI's answers as JSON values and events, for an engine that makes its own; the words of refusals are vLLM's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.worker.engines.deadlines import DONE

_ERROR_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


@dataclass(slots=True)
class Generation:
    """One request's answer while it is made: the same tokens for each of its choices."""

    id: str
    model: str
    prompt_tokens: int
    tokens: Sequence[str]
    finish_reason: str
    tool_calls: Sequence[Mapping[str, str]] = ()
    is_chat: bool = True
    choices: int = 1
    with_usage: bool = False
    """The stream ends with a chunk that counts tokens."""
    call_tokens: int = field(default=0)
    """Tokens of the calls' arguments."""

    @property
    def kind(self) -> str:
        """OpenAI's name for the whole answer."""
        return "chat.completion" if self.is_chat else "text_completion"

    @property
    def chunk_kind(self) -> str:
        """OpenAI's name for a part of it."""
        return "chat.completion.chunk" if self.is_chat else "text_completion"


def whole_answer(made: Generation, count: int, finish_reason: str) -> dict[str, Any]:
    """Return the answer with its first `count` tokens."""
    text = "".join(made.tokens[:count])
    choices = [_whole_choice(made, index, text, finish_reason) for index in range(made.choices)]
    return {**_head(made, made.kind), "choices": choices, "usage": usage_of(made, count)}


def _whole_choice(made: Generation, index: int, text: str, finish_reason: str) -> dict[str, Any]:
    common = {"index": index, "logprobs": None, "finish_reason": finish_reason}
    if not made.is_chat:
        return {**common, "text": text}
    calls = [_call(made, index, number) for number in range(len(made.tool_calls))]
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    return {**common, "message": {**message, "tool_calls": calls} if calls else message}


def _call(made: Generation, index: int, number: int) -> dict[str, Any]:
    call = made.tool_calls[number]
    return {"id": f"call-{made.id}-{index}-{number}", "type": "function", "function": dict(call)}


def usage_of(made: Generation, count: int) -> dict[str, int]:
    """Return the tokens of an answer that has its first `count` ones."""
    completion = (count + made.call_tokens) * made.choices
    return {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": made.prompt_tokens + completion,
    }


def first_events(made: Generation) -> Iterator[bytes]:
    """Yield what comes before the first token."""
    if made.is_chat:
        for index in range(made.choices):
            yield _chunk(made, index, {"role": "assistant", "content": ""})


def token_events(made: Generation, number: int) -> Iterator[bytes]:
    """Yield one token of each choice."""
    for index in range(made.choices):
        yield _chunk(made, index, {"content": made.tokens[number]})


def last_events(made: Generation, count: int, finish_reason: str) -> Iterator[bytes]:
    """Yield what comes after the last token."""
    for index in range(made.choices):
        for number in range(len(made.tool_calls)):
            yield _chunk(made, index, {"tool_calls": [{"index": number, **_call(made, index, number)}]})
        yield _chunk(made, index, {}, finish_reason)
    if made.with_usage:
        yield event_of({**_head(made, made.chunk_kind), "choices": [], "usage": usage_of(made, count)})
    yield DONE


def _chunk(made: Generation, index: int, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
    part = {"delta": delta} if made.is_chat else {"text": delta.get("content", "")}
    choice = {"index": index, **part, "logprobs": None, "finish_reason": finish_reason}
    return event_of({**_head(made, made.chunk_kind), "choices": [choice]})


def _head(made: Generation, kind: str) -> dict[str, Any]:
    return {"id": made.id, "object": kind, "created": 0, "model": made.model}  # the same answer each time


def event_of(value: Any) -> bytes:
    """Return a value as one event."""
    import orjson

    return b"data: " + orjson.dumps(value) + b"\n\n"


def models_list(model: str, max_model_len: int) -> dict[str, Any]:
    """Return the answer to `/v1/models`."""
    return {"object": "list", "data": [model_of(model, max_model_len)]}


def model_of(model: str, max_model_len: int) -> dict[str, Any]:
    """Return one model as OpenAI describes it."""
    described = {"id": model, "object": "model", "created": 0, "owned_by": "flashkit"}
    return {**described, "root": model, "parent": None, "max_model_len": max_model_len}


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return a refusal."""
    kind = _ERROR_TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")  # noqa: PLR2004
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}

"""A language model as a handler has it: `engine: LLM`, the same for every engine that serves one.

Everything goes through the engine's OpenAI routes, so parameters have OpenAI's names, and whatever a route accepts
beside them (`top_k`, `guided_*`, `priority` of vLLM, say) can be given too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar, overload

from flashkit.errors import EngineError, InputError
from flashkit.worker.engines.answering import fetch, read_body
from flashkit.worker.engines.coalescing import Pace, coalesce, cut_events
from flashkit.worker.engines.engine import Engine, EngineRequest, read_refusal
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS
from flashkit.worker.job import current_job_id

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's form; a text is one message of the user's."""

_LINE_END: Final = re.compile(r"\r\n|\n|\r")
"""Not `splitlines`, which also splits at characters that JSON texts may contain."""
_FIRST_REFUSAL: Final = 300
_FAILURE: Final = 500
_WHAT_THERE_IS: Final = Pace(shortest=0.0, longest=0.0, events=1)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Usage | None:
        """Return what an answer says of it."""
        usage = answer.get("usage")
        if not isinstance(usage, Mapping):
            return None
        return cls(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants to be called."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""

    def parse(self) -> dict[str, Any]:
        """Return the arguments by name.

        Raises:
            EngineError: The model wrote something else than a JSON object.
        """
        import orjson

        try:
            value = orjson.loads(self.arguments or "{}")
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise EngineError(
                f"the model calls {self.name!r} with arguments that are no JSON object: {self.arguments[:200]!r}",
                hint="ask again, or describe the tool with strict=True where the engine knows it",
            )
        return value


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer of a language model."""

    text: str
    finish_reason: str | None = None
    """`stop`, `length`, `tool_calls`, or what else the engine says."""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The engine's whole answer."""


class Token(str):
    """A piece of an answer as it is made: text, and what came with it.

    It is one token where the handler keeps up with the engine; else all that has been made meanwhile. The last one
    has the `finish_reason`, and may be empty.
    """

    finish_reason: str | None
    usage: Usage | None
    """Of the whole request; in the last piece only."""
    deltas: tuple[Mapping[str, Any], ...]
    """What the engine sent, as OpenAI's stream has it: parts of tool calls and of reasoning too."""

    def __new__(
        cls,
        text: str = "",
        *,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        deltas: Sequence[Mapping[str, Any]] = (),
    ) -> Self:
        """Make one."""
        token = super().__new__(cls, text)
        token.finish_reason = finish_reason
        token.usage = usage
        token.deltas = tuple(deltas)
        return token


class LLM:
    """A loaded language model, given to a handler as its parameter `engine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count(1)

    @overload
    async def chat(self, messages: Messages, *, schema: type[T], **parameters: Any) -> T: ...
    @overload
    async def chat(self, messages: Messages, *, schema: None = None, **parameters: Any) -> Completion: ...
    async def chat(self, messages: Messages, *, schema: type[T] | None = None, **parameters: Any) -> Completion | T:
        """Return the model's answer to a conversation; with a `schema`, the value that it answers with.

        Args:
            messages: The conversation; a text is one message of the user's.
            schema: A pydantic model, dataclass or other type that the answer is to have, which the engine enforces.
            parameters: OpenAI's: `max_tokens`, `temperature`, `tools`, …

        Raises:
            EngineRefusal: The engine refuses the request; `report.details` has its status and body.
            EngineError: The answer is not of the schema.
            EngineDied: The engine died meanwhile.
        """
        if schema is None:
            return read_completion(await self.request(CHAT, {**parameters, "messages": _messages(messages)}))
        form = _response_format(schema)
        body = {**parameters, "messages": _messages(messages), "response_format": form}
        return _parse(read_completion(await self.request(CHAT, body)), schema)

    async def complete(self, prompt: str, **parameters: Any) -> Completion:
        """Return how the model goes on with a text, without a chat's template around it.

        Raises:
            EngineRefusal: The engine refuses the request.
            EngineDied: The engine died meanwhile.
        """
        return read_completion(await self.request(COMPLETIONS, {**parameters, "prompt": prompt}))

    async def stream(
        self, messages: Messages | None = None, *, prompt: str | None = None, **parameters: Any
    ) -> AsyncGenerator[Token, None]:
        """Yield the answer to a conversation, or what follows a `prompt`, as it is made.

        Leaving the loop early aborts the request.

        Raises:
            EngineRefusal: The engine refuses the request.
            EngineError: It fails in the middle.
            EngineDied: The engine died meanwhile.
        """
        if (messages is None) == (prompt is None):
            raise InputError("stream() takes either messages or a prompt", hint='engine.stream("Say hello.")')
        asked = {"prompt": prompt} if messages is None else {"messages": _messages(messages)}
        options = {"stream_options": {"include_usage": True}, **parameters, "stream": True}
        async with aclosing(self._chunks(COMPLETIONS if messages is None else CHAT, {**options, **asked})) as pieces:
            reader = _StreamReader()
            async for chunks in pieces:
                if (token := reader.read(chunks)) is not None:
                    yield token
            yield reader.last()

    async def request(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """Return the engine's JSON answer to any of its routes.

        Args:
            path: `/v1/models`, for example.
            body: JSON value to send.
            method: `POST` with a body and `GET` without, unless said.

        Raises:
            EngineRefusal: The engine refuses the request.
            EngineDied: The engine died meanwhile.
        """
        fetched = await fetch(self._engine, self._request(path, body, method or ("GET" if body is None else "POST")))
        if fetched.body is None:
            await fetched.response.close()
            raise InputError(f"the answer to {path} is a stream", hint="use engine.stream(...)")
        answer = read_body(fetched.body)
        if fetched.response.status >= _FIRST_REFUSAL:
            raise read_refusal(fetched.response.status, answer)
        return answer

    def _request(self, path: str, body: Any, method: str = "POST") -> EngineRequest:
        # A job may ask several things at once, and an engine may need to tell them apart.
        return EngineRequest(path, body, method, f"{current_job_id() or 'local'}-{next(self._numbers)}")

    async def _chunks(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """Yield the chunks of a stream, all that are there at a time."""
        fetched = await fetch(self._engine, self._request(path, body))
        if fetched.body is not None:
            answer = read_body(fetched.body)
            if fetched.response.status >= _FIRST_REFUSAL:
                raise read_refusal(fetched.response.status, answer)
            raise EngineError(f"the engine answers {path} without a stream: {answer!r:.200}")
        try:
            events = cut_events(fetched.response.body)
            async with aclosing(coalesce(events, pace=_WHAT_THERE_IS)) as pieces:
                async for piece in pieces:
                    yield [chunk for line in _LINE_END.split(piece) if (chunk := _read_line(line))]
        finally:
            await fetched.response.close()


class _StreamReader:
    """Makes tokens of a stream's chunks; the last one waits for the usage, which comes after it."""

    def __init__(self) -> None:
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._text = ""
        self._deltas: list[Mapping[str, Any]] = []

    def read(self, chunks: Sequence[Mapping[str, Any]]) -> Token | None:
        """Return what there is to yield.

        Raises:
            EngineError: The engine reports a failure.
        """
        for chunk in chunks:
            if error := chunk.get("error"):
                status = error.get("code") if isinstance(error, Mapping) else None
                raise read_refusal(status if isinstance(status, int) else _FAILURE, chunk)
            self._usage = Usage.of(chunk) or self._usage
            for choice in chunk.get("choices") or ():
                if choice.get("index", 0) == 0:
                    self._add(choice)
        if self._finish_reason is not None or not self._deltas:
            return None
        token = Token(self._text, deltas=self._deltas)
        self._text, self._deltas = "", []
        return token

    def last(self) -> Token:
        """Return the last token.

        Raises:
            EngineError: The stream ended before the answer did.
        """
        if self._finish_reason is None:
            raise EngineError("the engine's stream ended before its answer did", hint="ask again")
        return Token(self._text, finish_reason=self._finish_reason, usage=self._usage, deltas=self._deltas)

    def _add(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") or {"content": choice.get("text")}
        if any(value for name, value in delta.items() if name != "role"):
            self._text += delta.get("content") or ""
            self._deltas.append(delta)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _read_line(line: str) -> Mapping[str, Any] | None:
    import orjson

    name, _, data = line.partition(":")
    if name != "data" or data.strip() in ("", "[DONE]"):
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise EngineError(f"the engine's stream has an event that is not JSON: {data[:200]!r}") from exc
    return value if isinstance(value, dict) else None


def _messages(messages: Messages) -> list[Any]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def _first_choice(answer: Any) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not choices:
        raise EngineError(f"the engine's answer has no choices: {answer!r:.200}")
    choice: Mapping[str, Any] = choices[0]
    return choice


def read_completion(answer: Any) -> Completion:
    """Return the first choice of an engine's answer, to a chat or to a prompt.

    Raises:
        EngineError: It has none.
    """
    choice = _first_choice(answer)
    message = choice.get("message") or {"content": choice.get("text")}
    calls = [
        ToolCall(call.get("id") or "", call["function"]["name"], call["function"].get("arguments") or "")
        for call in message.get("tool_calls") or ()
        if call.get("function")
    ]
    usage = Usage.of(answer) or Usage()
    return Completion(message.get("content") or "", choice.get("finish_reason"), tuple(calls), usage, answer)


def _response_format(schema: type) -> dict[str, Any]:
    from pydantic import TypeAdapter

    name = getattr(schema, "__name__", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": TypeAdapter(schema).json_schema()}}


def _parse(completion: Completion, schema: type[T]) -> T:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[T] = TypeAdapter(schema)
    try:
        return adapter.validate_json(completion.text)
    except ValidationError as exc:
        is_cut = completion.finish_reason == "length"
        raise EngineError(
            f"the model's answer is no {getattr(schema, '__name__', schema)}: {completion.text[:200]!r}",
            hint="it was cut off: raise max_tokens" if is_cut else "ask again, or make the schema simpler",
            details={
                "finish_reason": completion.finish_reason,
                "errors": exc.errors(include_url=False, include_input=False, include_context=False),
            },
        ) from exc

"""The scripted engine: what `ScriptedLLM(...)` declares, behind the routes of a real one.

It generates as an engine does: tokens come at a pace, requests run side by side, one that is closed stops at once and
is counted (`GET /stats`), and one that is asked to `finish` answers with what it has.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flashkit.errors import ConfigurationError, EngineDied
from flashkit.settings import Settings
from flashkit.spec import EngineSpec
from flashkit.worker.engines.answering import fetch, read_body
from flashkit.worker.engines.engine import Engine, EngineRequest, EngineResponse, read_refusal
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS
from flashkit.worker.engines.llm import LLM, read_completion
from flashkit.worker.engines.openai_answers import (
    Generation,
    error_body,
    first_events,
    last_events,
    model_of,
    models_list,
    token_events,
    whole_answer,
)
from flashkit.worker.engines.script import Answer, Ask, Recording, Script, question_of, split_tokens, text_of
from flashkit.worker.engines.scripted_requests import Refusal, find_mistake, limit_of, stops_of, wants_json
from flashkit.worker.phases import Phases

Close = Callable[[], Awaitable[None]]

_FIRST_REFUSAL: Final = 300
_DIE: Final = "die"
_ABORTED: Final = "abort"
_EVENTS: Final = {"content-type": "text/event-stream; charset=utf-8"}
_JSON: Final = {"content-type": "application/json"}


async def load_scripted(spec: EngineSpec, settings: Settings, phases: Phases) -> ScriptedEngine:
    """Return the engine.

    Raises:
        ConfigurationError: Its answers are not here, or the recorded ones cannot be read.
    """
    with phases.measure("engine"):
        options = spec.options
        recorded = options.get("recorded")
        function = getattr(spec, "function", None)
        if recorded is None and function is None and options.get("answers") is None:
            raise ConfigurationError(
                "the answers of this scripted model are a function, which is in the app and not in its description",
                hint="start the worker from the app's file",
            )
        if recorded is None:
            return ScriptedEngine(options, Script(options, function))
        ask, close = _recorder(options)
        return ScriptedEngine(options, Recording(Path(recorded), ask), close=close)


class ScriptedEngine:
    """A language model that says what it was told to say."""

    def __init__(self, options: Mapping[str, Any], script: Script | Recording, *, close: Close | None = None) -> None:
        self._script = script
        self._close = close
        self._model: str = options.get("model", "scripted")
        self._max_model_len: int = options.get("max_model_len", 32_768)
        self._max_num_seqs: int = options.get("max_num_seqs", 64)
        pace = options.get("tokens_per_second")
        self._token_seconds = 1 / pace if pace else 0.0
        self._first_seconds: float = options.get("first_token_seconds", 0.0)
        self._fail_on = [(re.compile(pattern), kind) for pattern, kind in options.get("fail_on", ())]
        self._numbers = itertools.count(1)
        self._running: dict[str, asyncio.Event] = {}
        self._stats = {"requests": 0, "completed": 0, "aborted": 0, "refused": 0}
        self._is_dead = False
        self.progress = 0

    @property
    def room(self) -> int:
        """How many more jobs it takes."""
        return max(0, self._max_num_seqs - len(self._running))

    @property
    def request_count(self) -> int:
        """Requests that it has."""
        return len(self._running)

    @property
    def is_busy(self) -> bool:
        """True while it has requests."""
        return bool(self._running)

    def handle(self) -> LLM:
        """Return what handlers get."""
        return LLM(self)

    async def warm_up(self) -> None:
        """Return: there is nothing to warm up, and answers are not to be used up."""

    async def check(self) -> None:
        """Return when the engine has not died.

        Raises:
            EngineDied: It has.
        """
        if self._is_dead:
            raise _death()

    async def close(self) -> None:
        """Close what answers are recorded from."""
        if self._close is not None:
            await self._close()

    async def finish(self, request_id: str | None) -> None:
        """Let a request end with what it has so far."""
        for name, ending in self._running.items():
            if name.partition("#")[0] == request_id:
                ending.set()

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Answer a request.

        Raises:
            EngineDied: The script said so, for this request or an earlier one.
        """
        await self.check()
        path = request.path.partition("?")[0]
        if path in (CHAT, COMPLETIONS):
            return await self._generate(request, path) if request.method == "POST" else _plain(405)
        if path == "/health":
            return EngineResponse(200, _body(b""))
        if path == "/stats":
            return _json(200, {**self._stats, "running": len(self._running)})
        if path == "/v1/models":
            return _json(200, models_list(self._model, self._max_model_len))
        if path == f"/v1/models/{self._model}":
            return _json(200, model_of(self._model, self._max_model_len))
        return _plain(404)

    async def _generate(self, request: EngineRequest, path: str) -> EngineResponse:
        self._stats["requests"] += 1
        body = request.body
        mistake = find_mistake(body, model=self._model, is_chat=path == CHAT) or self._find_length(body)
        if mistake is not None:
            return self._refuse(mistake)
        answer = self._failure(body) or await self._script.answer(path, body)
        if (status := answer.get("status")) is not None:
            if status == _DIE:
                self._die()
            return self._refuse(Refusal(status, answer.get("message") or "the script refuses this request"))
        if wants_json(body) and "text" in answer and not _is_json(answer["text"]):
            reason = f"the request wants JSON, and the script's answer is none: {answer['text']!r:.200}"
            return self._refuse(Refusal(500, reason))
        made = self._plan(request, body, answer, is_chat=path == CHAT)
        key = f"{request.id}#{made.id}"
        if body.get("stream") is True:
            return EngineResponse(200, self._stream(made, key), _EVENTS)
        return _json(200, await self._whole(made, key))

    def _find_length(self, body: Mapping[str, Any]) -> Refusal | None:
        prompt, answer = len(split_tokens(text_of(body))), limit_of(body)
        if prompt + (answer or 1) <= self._max_model_len:
            return None
        wanted = "" if answer is None else f" and asks for {answer} more"
        return Refusal(
            400,
            f"This model's maximum context length is {self._max_model_len} tokens. However, your request has {prompt} "
            f"input tokens{wanted}. Please reduce the length of the input messages.",
            "input_tokens",
        )

    def _failure(self, body: Mapping[str, Any]) -> Answer | None:
        question = question_of(body)
        for pattern, kind in self._fail_on:
            if pattern.search(question):
                return {"status": kind, "message": f"the script fails requests in which {pattern.pattern!r} is found"}
        return None

    def _refuse(self, refusal: Refusal) -> EngineResponse:
        self._stats["refused"] += 1
        return _json(refusal.status, error_body(*refusal))

    def _die(self) -> None:
        self._is_dead = True
        for ending in self._running.values():
            ending.set()
        raise _death()

    def _plan(self, request: EngineRequest, body: Mapping[str, Any], answer: Answer, *, is_chat: bool) -> Generation:
        prompt = len(split_tokens(text_of(body)))
        text = str(answer.get("text") or "")
        cut = min((place for stop in stops_of(body) if (place := text.find(stop)) >= 0), default=len(text))
        tokens = split_tokens(text[:cut])
        limit = min(limit_of(body) or self._max_model_len, self._max_model_len - prompt)
        calls = answer.get("tool_calls") or () if is_chat else ()
        usual = "length" if len(tokens) > limit else "tool_calls" if calls else "stop"
        options = body.get("stream_options")
        return Generation(
            id=f"{'chatcmpl' if is_chat else 'cmpl'}-{next(self._numbers)}",
            model=self._model,
            prompt_tokens=prompt,
            tokens=tokens[:limit],
            finish_reason=answer.get("finish_reason") or usual,
            tool_calls=calls,
            is_chat=is_chat,
            choices=body.get("n") or 1,
            with_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
            call_tokens=sum(len(split_tokens(call["arguments"])) for call in calls),
        )

    async def _whole(self, made: Generation, key: str) -> dict[str, Any]:
        with self._counted(key) as ending:
            count = 0
            async for number in self._paced(made, ending):
                count = number + 1
            return whole_answer(*_end(made, count, ending))

    async def _stream(self, made: Generation, key: str) -> AsyncGenerator[bytes, None]:
        with self._counted(key) as ending:
            for event in first_events(made):
                yield event
            count = 0
            async for number in self._paced(made, ending):
                for event in token_events(made, number):
                    yield event
                count = number + 1
            for event in last_events(*_end(made, count, ending)):
                yield event

    @contextmanager
    def _counted(self, key: str) -> Iterator[asyncio.Event]:
        """Count a request as running, and then as completed or aborted; gives what asks it to come to an end."""
        ending = self._running[key] = asyncio.Event()
        try:
            yield ending
        except (asyncio.CancelledError, GeneratorExit):
            self._stats["aborted"] += 1
            raise
        else:
            self._stats["completed"] += 1
        finally:
            del self._running[key]

    async def _paced(self, made: Generation, ending: asyncio.Event) -> AsyncGenerator[int, None]:
        """Yield the number of each token when it is made, until the last or until it is asked to end."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._first_seconds
        for number in range(max(1, len(made.tokens))):  # a call of a tool takes its time too
            await _wait(ending, due - loop.time())
            await self.check()
            if ending.is_set():
                return
            self.progress += 1
            if number < len(made.tokens):
                yield number
            due += self._token_seconds


def _death() -> EngineDied:
    return EngineDied(
        "the scripted engine died, as its script says",
        hint="the worker is replaced; send the request again",
        details={"retryable": True},
    )


async def _wait(ending: asyncio.Event, seconds: float) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await ending.wait()
    except TimeoutError:
        return


def _end(made: Generation, count: int, ending: asyncio.Event) -> tuple[Generation, int, str]:
    """Return the answer as it has become: without its calls when it had to come to an end."""
    if not ending.is_set():
        return made, count, made.finish_reason
    return replace(made, tool_calls=(), call_tokens=0), count, _ABORTED


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json(status: int, value: Any) -> EngineResponse:
    import orjson

    return EngineResponse(status, _body(orjson.dumps(value)), _JSON)


def _plain(status: int) -> EngineResponse:
    return _json(status, {"detail": "Not Found" if status == 404 else "Method Not Allowed"})  # noqa: PLR2004


async def _body(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def _recorder(options: Mapping[str, Any]) -> tuple[Ask | None, Close | None]:
    """Return what asks the model that answers are recorded from, and what closes it; nothing without one."""
    if options.get("record_from") is None:
        return None, None
    from flashkit.worker.engines.proxy import Place, ProxyEngine, read_key

    place = Place(options["record_from"], read_key(options.get("record_key_env")))
    engine = ProxyEngine(place, seats=options["max_num_seqs"], names=[options["model"]])

    async def ask(path: str, body: dict[str, Any]) -> Answer:
        await engine.meet()
        return await _ask_for_answer(engine, path, body)

    return ask, engine.close


async def _ask_for_answer(engine: Engine, path: str, body: dict[str, Any]) -> Answer:
    """Return a real engine's answer in the script's form."""
    whole = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    fetched = await fetch(engine, EngineRequest(path, whole))
    answer = read_body(fetched.body or b"")
    if fetched.response.status >= _FIRST_REFUSAL:
        report = read_refusal(fetched.response.status, answer).report
        return {"status": fetched.response.status, "message": report.message}
    completion = read_completion(answer)
    calls = [{"name": call.name, "arguments": call.arguments} for call in completion.tool_calls]
    kept = {"text": completion.text, "tool_calls": calls, "finish_reason": completion.finish_reason}
    return {name: value for name, value in kept.items() if value}

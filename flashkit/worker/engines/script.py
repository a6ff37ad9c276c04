"""Which answer a scripted model gives to a request, and what counts as a token of it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flashkit.engines.scripted import AnswerFunction, read_answer
from flashkit.errors import ConfigurationError, DefinitionError

log = logging.getLogger(__name__)

_TOKEN: Final = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
_NOT_THE_QUESTION: Final = ("model", "stream", "stream_options", "user", "request_id")
"""Fields of a request that make no other question of it."""
_HTTP_ERROR: Final = 500

Answer = Mapping[str, Any]
Ask = Callable[[str, dict[str, Any]], Awaitable[Answer]]
"""Asks a real engine: a path and a body, for an answer in the script's form."""


def split_tokens(text: str) -> list[str]:
    """Return a text's tokens: words and punctuation marks, each with the space before it."""
    return _TOKEN.findall(text)


def text_of(body: Mapping[str, Any]) -> str:
    """Return a request's whole prompt."""
    messages = body.get("messages")
    if messages is None:
        return str(body.get("prompt", ""))
    return "\n".join(map(_content, messages))


def question_of(body: Mapping[str, Any]) -> str:
    """Return what patterns are searched in: the last message, or the prompt."""
    messages = body.get("messages")
    return text_of(body) if not messages else _content(messages[-1])


def _content(message: Any) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list):
        parts = (part.get("text", "") for part in content if isinstance(part, Mapping))
        return "\n".join(str(part) for part in parts)
    return str(content or "")


class Script:
    """The answers of a scripted model."""

    def __init__(self, options: Mapping[str, Any], function: AnswerFunction | None = None) -> None:
        written: Mapping[str, Any] = options.get("answers") or {}
        self._always: Answer | None = written.get("always")
        self._list: Sequence[Answer] = written.get("list", ())
        self._patterns: list[tuple[re.Pattern[str], Answer]] = [
            (re.compile(pattern), answer) for pattern, answer in written.get("patterns", ())
        ]
        self._otherwise: Answer | None = options.get("otherwise")
        self._function = function
        self._given = 0

    async def answer(self, path: str, body: dict[str, Any]) -> Answer:
        """Return the answer to a request; one with a `status` where there is none."""
        if self._function is not None:
            return await _call(self._function, body)
        if self._always is not None:
            return self._always
        if self._given < len(self._list):
            self._given += 1
            return self._list[self._given - 1]
        question = question_of(body)
        for pattern, answer in self._patterns:
            if pattern.search(question):
                return answer
        return self._otherwise or _no_answer(self._reason(question))

    def _reason(self, question: str) -> str:
        if self._list:
            return f"the script's {len(self._list)} answers have all been given; the request is {question!r:.200}"
        return f"no pattern of the script is found in {question!r:.200}"


async def _call(function: AnswerFunction, body: dict[str, Any]) -> Answer:
    name = getattr(function, "__name__", repr(function))
    try:
        answer = function(body)
        return read_answer(await answer if inspect.isawaitable(answer) else answer)
    except DefinitionError as exc:
        return _no_answer(f"the script's function {name} returned no answer: {exc.report.message}")
    except Exception as exc:
        log.exception("the script's function %s failed", name)
        return _no_answer(f"the script's function {name} failed: {type(exc).__name__}: {exc}")


def _no_answer(reason: str) -> Answer:
    return {"status": _HTTP_ERROR, "message": reason}


class Recording:
    """Answers of a real engine, kept in a file of one JSON object a line."""

    def __init__(self, path: Path, ask: Ask | None = None) -> None:
        self._path = path
        self._ask = ask
        self._answers: dict[str, list[Answer]] = {}
        self._given: dict[str, int] = {}
        self._lock = asyncio.Lock()  # the same question, asked twice at once, is recorded once
        self._read()

    async def answer(self, path: str, body: dict[str, Any]) -> Answer:
        """Return what was recorded, in its order and then the last again; ask the real engine for what was not."""
        question = {name: value for name, value in body.items() if name not in _NOT_THE_QUESTION}
        digest = _digest(path, question)
        async with self._lock:
            if digest not in self._answers:
                if self._ask is None:
                    reason = f"{self._path} has no answer to {question_of(body)!r:.200}"
                    return _no_answer(f"{reason}; record_from= asks a real engine for it")
                answer = await self._ask(path, body)
                if "status" in answer:
                    return answer
                self._write({"path": path, "request": question, "answer": answer})
                self._answers[digest] = [answer]
        recorded = self._answers[digest]
        number = self._given.get(digest, 0)
        self._given[digest] = number + 1
        return recorded[min(number, len(recorded) - 1)]

    def _read(self) -> None:
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            if self._ask is None:
                raise ConfigurationError(
                    f"there are no recorded answers in {self._path}", hint="name a model to ask: record_from=…"
                ) from None
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._take(line, number)

    def _take(self, line: str, number: int) -> None:
        try:
            record = json.loads(line)
            digest, answer = _digest(record["path"], record["request"]), read_answer(record["answer"])
        except (ValueError, KeyError, TypeError, DefinitionError) as exc:
            raise ConfigurationError(
                f"line {number} of {self._path} is not a recorded answer: {exc}", hint="remove it, and record it again"
            ) from None
        self._answers.setdefault(digest, []).append(answer)

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _digest(path: str, question: Mapping[str, Any]) -> str:
    text = json.dumps([path, question], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()

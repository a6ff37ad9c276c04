"""What callers get of an answer that its job had no time left for: what there is, in OpenAI's shape, marked.

Such an answer ends with `finish_reason` `length` and has `"flashkit": {"ended_by": "deadline"}` beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from flashkit.errors import EngineRefusal
from flashkit.worker.engines.engine import EngineRequest
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS

MARK: Final[Mapping[str, Any]] = {"flashkit": {"ended_by": "deadline"}}
DONE: Final = b"data: [DONE]\n\n"
TIME_UP_STATUS: Final = 504
_ABORTED: Final = "abort"
"""vLLM's `finish_reason` for a request that was ended before its time."""


class TimeUp(EngineRefusal):
    """The job's time was up, and there is no part of the answer to give."""

    def __init__(self, path: str) -> None:
        message = f"the job's time was up before the answer to {path} was complete"
        hint = "ask for a stream, which gives what there is; or for fewer tokens; or raise execution_timeout_ms"
        error = {"message": f"{message}: {hint}", "type": "timeout_error", "param": None, "code": TIME_UP_STATUS}
        super().__init__(message, hint=hint, details={"status": TIME_UP_STATUS, "body": {"error": error}})


def mark_whole(answer: Any) -> Any:
    """Return an answer that an engine cut short because it was asked to."""
    if not isinstance(answer, dict):
        return answer
    for choice in answer.get("choices") or ():
        if choice.get("finish_reason") == _ABORTED:
            choice["finish_reason"] = "length"
    return {**answer, **MARK}


class StreamEnding:
    """Follows a stream of chat or completion chunks, and ends it where the engine does not get to."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._latest = b""
        self._ended: set[int] = set()

    def note(self, event: bytes) -> None:
        """Take notice of an event that the caller gets."""
        if not event.startswith(b"data: {"):
            return
        self._latest = event
        if b'"finish_reason":"' in event or b'"finish_reason": "' in event:
            choices = _read(event).get("choices") or ()
            self._ended.update(choice.get("index", 0) for choice in choices if choice.get("finish_reason"))

    def last_events(self) -> list[bytes]:
        """Return what ends the stream.

        Raises:
            TimeUp: It is not a stream of chunks.
        """
        import orjson

        choice: dict[str, Any] = {"logprobs": None, "finish_reason": "length"}
        if self._request.path.startswith(CHAT):
            choice, kind, prefix = {"delta": {}, **choice}, "chat.completion.chunk", "chatcmpl"
        elif self._request.path.startswith(COMPLETIONS):
            choice, kind, prefix = {"text": "", **choice}, "text_completion", "cmpl"
        else:
            raise TimeUp(self._request.path)
        body = self._request.body if isinstance(self._request.body, dict) else {}
        first = {"id": f"{prefix}-{self._request.id}", "object": kind, "created": int(time.time())}
        common = {**first, "model": body.get("model") or "", **_read(self._latest)}
        running = sorted(set(range(_count_choices(body))) - self._ended)
        if not running:
            return [DONE]
        choices = [{"index": index, **choice} for index in running]
        kept = {name: common[name] for name in ("id", "object", "created", "model")}
        return [b"data: " + orjson.dumps({**kept, "choices": choices, **MARK}) + b"\n\n", DONE]


def _count_choices(body: Mapping[str, Any]) -> int:
    """Return how many answers a request asks for: `n` for each of its prompts."""
    prompt, number = body.get("prompt"), body.get("n")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (number if isinstance(number, int) and number > 0 else 1)


def _read(event: bytes) -> dict[str, Any]:
    import orjson

    try:
        value = orjson.loads(event.removeprefix(b"data: ").strip())
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}

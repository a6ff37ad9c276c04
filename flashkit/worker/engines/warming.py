"""Warm-up: one real request of every path that an endpoint will use, before it takes its first job.

What a path does for the first time can take long (kernels are compiled, a grammar's compiler is loaded: 20 s for
log-probabilities alone), and the first caller would pay for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flashkit.engines.vllm import WARMUP_PATHS, VllmOptions
from flashkit.errors import EngineError
from flashkit.worker.engines.engine import Engine, EngineRequest, read_refusal
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS, read_request

log = logging.getLogger(__name__)

_PROMPT: Final = "Hello"
_MESSAGES: Final = ({"role": "user", "content": _PROMPT},)
_SCHEMA: Final = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
_JSON_SCHEMA: Final = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}}
_TOOL: Final = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},
}
_FEW: Final = {"max_tokens": 2, "temperature": 0.0}
_SOME: Final = {"max_tokens": 8, "temperature": 0.0}
_FIRST_REFUSAL: Final = 400


@dataclass(frozen=True, slots=True)
class _Step:
    """One request of a warm-up."""

    name: str
    request: EngineRequest
    is_guess: bool = False
    """Nobody asked for it: that the model has no chat template is no failure."""


async def warm_up(engine: Engine, options: VllmOptions, tasks: Sequence[str]) -> None:
    """Run a warm-up within its time; what does not fit is left out, with a warning.

    Args:
        engine: Whom to ask.
        options: What was declared.
        tasks: What the model can do, as vLLM names it.

    Raises:
        EngineError: A request of it failed; the message says which.
        EngineDied: The engine died of it.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + options.warmup_seconds
    steps = list(_steps(options, tasks))
    for number, step in enumerate(steps):
        try:
            async with asyncio.timeout_at(until):
                await _run(engine, step)
        except TimeoutError:
            left = ", ".join(each.name for each in steps[number:])
            log.warning("warm-up took longer than warmup_seconds=%g; left out: %s", options.warmup_seconds, left)
            return


async def _run(engine: Engine, step: _Step) -> None:
    import orjson

    response = await engine.open(step.request)
    try:
        body = await response.read()
    finally:
        await response.close()
    if response.status < _FIRST_REFUSAL:
        return
    try:
        refusal = read_refusal(response.status, orjson.loads(body))
    except orjson.JSONDecodeError:
        refusal = read_refusal(response.status, body.decode(errors="replace"))
    if step.is_guess and "chat template" in refusal.report.message.lower():
        log.info("warm-up: %s is left out, because the model has no chat template", step.name)
        return
    raise EngineError(
        f"warm-up of {step.name} failed: {refusal.report.message}",
        hint="correct it in VLLM(..., warmup=[...]), or leave it out there",
        details=refusal.report.details,
    )


def _steps(options: VllmOptions, tasks: Sequence[str]) -> Iterator[_Step]:
    chosen = _paths_for(options, tasks) if options.warmup is None else options.warmup
    for number, each in enumerate(chosen):
        if isinstance(each, Mapping):
            yield _Step(f"warmup[{number}]", read_request(dict(each), job_id="warm-up"))
        else:
            for path, body in _REQUESTS[each](options):
                request = EngineRequest(path, body, id="warm-up")
                yield _Step(each, request, is_guess=options.warmup is None and path == CHAT)


def _paths_for(options: VllmOptions, tasks: Sequence[str]) -> Sequence[str]:
    """Return what the model can do, and the declaration makes use of."""
    unfit = set()
    if "generate" not in tasks:
        unfit |= set(WARMUP_PATHS) - {"embedding"}
    if "embed" not in tasks:
        unfit.add("embedding")
    if not options.arguments.get("enable_auto_tool_choice"):
        unfit.add("tools")
    return [path for path in WARMUP_PATHS if path not in unfit]


def _completion(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield COMPLETIONS, {"prompt": _PROMPT, **_FEW}
    for name in options.lora_modules:
        yield COMPLETIONS, {"prompt": _PROMPT, "model": name, **_FEW}


def _chat(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield CHAT, {"messages": _MESSAGES, **_FEW}


def _stream(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield COMPLETIONS, {"prompt": _PROMPT, "stream": True, "stream_options": {"include_usage": True}, **_FEW}
    yield CHAT, {"messages": _MESSAGES, "stream": True, "stream_options": {"include_usage": True}, **_FEW}


def _logprobs(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield COMPLETIONS, {"prompt": _PROMPT, "logprobs": 1, **_FEW}
    yield CHAT, {"messages": _MESSAGES, "logprobs": True, "top_logprobs": 1, **_FEW}


def _structured(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield COMPLETIONS, {"prompt": _PROMPT, "response_format": _JSON_SCHEMA, **_SOME}
    yield CHAT, {"messages": _MESSAGES, "response_format": _JSON_SCHEMA, **_SOME}


def _tools(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield CHAT, {"messages": _MESSAGES, "tools": [_TOOL], "tool_choice": "auto", **_SOME}
    yield CHAT, {"messages": _MESSAGES, "tools": [_TOOL], "tool_choice": "required", **_SOME}


def _embedding(options: VllmOptions) -> Iterator[tuple[str, Any]]:
    yield "/v1/embeddings", {"input": [_PROMPT, _PROMPT * 8]}


_REQUESTS: Final[Mapping[str, Callable[[VllmOptions], Iterator[tuple[str, Any]]]]] = {
    "completion": _completion,
    "chat": _chat,
    "stream": _stream,
    "logprobs": _logprobs,
    "structured": _structured,
    "tools": _tools,
    "embedding": _embedding,
}

"""What a job asks of an engine: the shapes of input that people send, as one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flashkit.errors import InputError
from flashkit.worker.engines.engine import EngineRequest

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
LANGUAGE_SHORTHANDS: Final[Mapping[str, str]] = {"messages": CHAT, "prompt": COMPLETIONS, "input": "/v1/responses"}
"""Route by the field that gives a short input away; an engine with other ones says so in `shorthands`."""
PROMPT_TOKENS: Final = 100
"""Tokens for a bare prompt that asks for no number, as worker-vllm documents; OpenAI's own 16 are half a sentence."""
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_OF_OLDER_WORKERS: Final = frozenset(
    {"use_openai_format", "max_batch_size", "min_batch_size", "batch_size_growth_factor", "apply_chat_template"}
)
"""Fields of worker-vllm that say nothing to the model."""


def read_request(
    data: Any, *, job_id: str | None = None, shorthands: Mapping[str, str] = LANGUAGE_SHORTHANDS
) -> EngineRequest:
    """Return the request that a job's input stands for.

    Raises:
        InputError: It has none of the accepted shapes.
    """
    if not isinstance(data, dict):
        raise _unknown_shape(f"the input is {_kind_of(data)}, not an object", shorthands)
    if "openai_route" in data or "openai_input" in data:
        return _openai_request(data, job_id)
    if "route" in data:
        return _any_request(data, job_id)
    for field, route in shorthands.items():
        if field in data:
            return _short_request(data, field, route, job_id)
    found = f"only {', '.join(map(repr, data))}" if data else "nothing"
    raise _unknown_shape(f"the input has {found} and names no request", shorthands)


def _openai_request(data: Mapping[str, Any], job_id: str | None) -> EngineRequest:
    body = data.get("openai_input")
    if body is not None and not isinstance(body, dict):
        raise InputError(f"`openai_input` is {_kind_of(body)}, not an object", hint="send the body of OpenAI's request")
    route = data.get("openai_route") or (COMPLETIONS if "prompt" in (body or {}) else CHAT)
    return EngineRequest(_path(route, "openai_route"), body, "GET" if body is None else "POST", job_id)


def _any_request(data: Mapping[str, Any], job_id: str | None) -> EngineRequest:
    body = data.get("body")
    method = data.get("method") or ("GET" if body is None else "POST")
    if not isinstance(method, str) or method.upper() not in _METHODS:
        raise InputError(f"`method` is {method!r}", hint=f"it may be {', '.join(sorted(_METHODS))}")
    return EngineRequest(_path(data["route"], "route"), body, method.upper(), job_id)


def _short_request(data: Mapping[str, Any], field: str, route: str, job_id: str | None) -> EngineRequest:
    """Return the request of a worker-vllm input: the model's parameters beside the prompt, or below it."""
    parameters = data.get("sampling_params")
    if parameters is not None and not isinstance(parameters, dict):
        raise InputError(
            f"`sampling_params` is {_kind_of(parameters)}, not an object", hint='{"max_tokens": 64, "temperature": 0}'
        )
    given = {name: value for name, value in data.items() if name != "sampling_params"}
    body = {**(parameters or {}), **given}
    if field == "prompt" and body.get("apply_chat_template") is True:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        route = CHAT
    if route == COMPLETIONS and "max_tokens" not in body:
        body["max_tokens"] = PROMPT_TOKENS
    return EngineRequest(route, {name: body[name] for name in body if name not in _OF_OLDER_WORKERS}, "POST", job_id)


def _path(route: Any, field: str) -> str:
    if not isinstance(route, str) or not route.startswith("/"):
        raise InputError(f"`{field}` is {route!r}, not a path", hint=f"write it from the root on: {CHAT!r}")
    return route


def _unknown_shape(problem: str, shorthands: Mapping[str, str]) -> InputError:
    short = " or ".join(f'{{"{field}": …}}' for field in shorthands)
    return InputError(
        problem, hint=f'send {{"openai_route": …, "openai_input": {{…}}}}, {{"route": …, "body": {{…}}}}, or {short}'
    )


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "a text", type(None): "null", bool: "a truth value", dict: "an object"}
    return names.get(type(value), "a number")

"""`ScriptedLLM(...)`: a language model with answers that a test wrote down, or that were recorded from a real one.

The declaration brings every answer into one form, a JSON object with `text`, `tool_calls`, `finish_reason`, or
`status` and `message` for a refusal. A function that makes answers stays in the declaration: workers import the app
themselves, so it is there; it does not travel in the spec's JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, Never

from flashkit.catalog import nearest_names
from flashkit.errors import DefinitionError
from flashkit.spec import EngineSpec

ScriptedAnswer = str | Mapping[str, Any]
"""A text, or an object with some of `text`, `json`, `tool_calls`, `finish_reason`, `status`, `message`."""
AnswerFunction = Callable[[dict[str, Any]], ScriptedAnswer | Awaitable[ScriptedAnswer]]
"""Makes the answer to a request's body."""
Script = ScriptedAnswer | Sequence[ScriptedAnswer] | AnswerFunction

ANSWER_FIELDS: Final = ("text", "json", "tool_calls", "finish_reason", "status", "message")
_LOWEST_REFUSAL: Final = 400
_HIGHEST_REFUSAL: Final = 599


class ScriptedSpec(EngineSpec):
    """A scripted engine whose answers a function of the app makes."""

    __slots__ = ("function",)

    function: AnswerFunction

    @classmethod
    def of(cls, function: AnswerFunction, options: Mapping[str, Any]) -> ScriptedSpec:
        """Make one."""
        spec = cls("scripted", None, options)
        object.__setattr__(spec, "function", function)
        return spec


def ScriptedLLM(  # noqa: N802 - reads as the engine it declares
    answers: Script | None = None,
    *,
    otherwise: ScriptedAnswer | None = None,
    recorded: str | None = None,
    record_from: str | None = None,
    record_key_env: str | None = None,
    model: str = "scripted",
    tokens_per_second: float | None = None,
    first_token_seconds: float = 0.0,
    fail_on: Mapping[str, int | Literal["die"]] | None = None,
    max_model_len: int = 32_768,
    max_num_seqs: int = 64,
    **unknown: Never,
) -> EngineSpec:
    """Return a language model that answers from a script, through the same routes as `VLLM`.

    An answer is a text; or an object with `text`, or `json` (a value, given as its JSON text), `tool_calls`
    (`[{"name": …, "arguments": {…}}]`), `finish_reason`; or a refusal with `status` and `message`. Tokens are words
    and punctuation marks, with the space before them.

    Args:
        answers: One answer for all requests; a list, given in this order; a mapping from a regular expression,
            searched in the last message or the prompt, to the answer; or a function from a request's body to its
            answer.
        otherwise: Answer when the list has been used up or no pattern is found; without one that is an error.
        recorded: File with recorded answers, instead of `answers`; relative to the app's folder.
        record_from: OpenAI-compatible base URL that is asked for answers which are not recorded yet.
        record_key_env: Environment variable with the key for `record_from`.
        model: The model's name.
        tokens_per_second: Pace of one answer; as fast as it goes by default.
        first_token_seconds: Wait before an answer's first token.
        fail_on: HTTP status by regular expression: what such a request fails with. `"die"` ends the engine.
        max_model_len: Tokens of prompt and answer together; longer requests are refused.
        max_num_seqs: Requests at the same time; a worker takes no more jobs.

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> ScriptedLLM({"weather": {"tool_calls": [{"name": "forecast", "arguments": {"city": "Oslo"}}]}},
        ...             otherwise="I do not know.").type
        'scripted'
    """
    options = dict(locals())
    _refuse_unknown(options.pop("unknown"), options)
    _check_numbers(options)
    if (answers is None) == (recorded is None):
        raise DefinitionError(
            "ScriptedLLM needs either answers or a file with recorded ones",
            hint='ScriptedLLM(["Hello."]) or ScriptedLLM(recorded="answers.jsonl")',
        )
    if record_from is not None and recorded is None:
        raise DefinitionError("record_from= needs a file to record into", hint='recorded="answers.jsonl"')
    options["answers"] = None if answers is None or callable(answers) else _script(answers)
    options["otherwise"] = None if otherwise is None else read_answer(otherwise)
    options["fail_on"] = [[_pattern(pattern), _failure(kind)] for pattern, kind in (fail_on or {}).items()]
    return ScriptedSpec.of(answers, options) if callable(answers) else EngineSpec("scripted", None, options)


def read_answer(answer: Any) -> dict[str, Any]:
    """Return an answer in its one form.

    Raises:
        DefinitionError: It has none of the accepted forms.
    """
    if isinstance(answer, str):
        return {"text": answer}
    if not isinstance(answer, Mapping):
        raise DefinitionError(
            f"{answer!r} is not an answer of ScriptedLLM", hint='write a text, or {"text": …} or {"json": …}'
        )
    for name in answer:
        if name not in ANSWER_FIELDS:
            near = nearest_names(str(name), ANSWER_FIELDS, limit=1)
            raise DefinitionError(
                f"an answer of ScriptedLLM has no field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f'fields: {", ".join(ANSWER_FIELDS)}; for a JSON value as the answer write {{"json": …}}',
            )
    given = dict(answer)
    for name in ("text", "finish_reason", "message"):
        if not isinstance(given.get(name, ""), str):
            raise DefinitionError(f"{name} of an answer of ScriptedLLM is {given[name]!r}, not a text")
    if "json" in given:
        given["text"] = _as_json(given.pop("json"))
    if "status" in given:
        given["status"] = _failure(given["status"])
    if calls := given.get("tool_calls"):
        given["tool_calls"] = [_tool_call(call) for call in calls]
    return given


def _script(answers: Any) -> dict[str, Any]:
    if isinstance(answers, str) or (isinstance(answers, Mapping) and answers and set(answers) <= set(ANSWER_FIELDS)):
        return {"always": read_answer(answers)}
    if isinstance(answers, Mapping):
        return {"patterns": [[_pattern(pattern), read_answer(answer)] for pattern, answer in answers.items()]}
    if isinstance(answers, Sequence):
        return {"list": [read_answer(answer) for answer in answers]}
    raise DefinitionError(
        f"answers={answers!r} is no script", hint="give a text, a list of them, a mapping from patterns, or a function"
    )


def _pattern(pattern: Any) -> str:
    try:
        return str(re.compile(pattern).pattern)
    except (re.error, TypeError) as exc:
        raise DefinitionError(f"{pattern!r} is not a regular expression: {exc}") from None


def _failure(kind: Any) -> int | str:
    if kind == "die" or (type(kind) is int and _LOWEST_REFUSAL <= kind <= _HIGHEST_REFUSAL):
        return kind  # type: ignore[no-any-return]  # checked just now
    raise DefinitionError(f"{kind!r} is no way to fail", hint='give an HTTP status from 400 to 599, or "die"')


def _tool_call(call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise DefinitionError(
            f"{call!r} is not a tool call", hint='write {"name": "forecast", "arguments": {"city": "Oslo"}}'
        )
    arguments = call.get("arguments", {})
    return {"name": call["name"], "arguments": arguments if isinstance(arguments, str) else _as_json(arguments)}


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise DefinitionError(f"{value!r:.200} has no JSON form: {exc}", hint="use plain values") from None


def _refuse_unknown(unknown: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for option in unknown:
        near = nearest_names(option, known, limit=1)
        raise DefinitionError(
            f"ScriptedLLM has no option {option!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"options: {', '.join(sorted(known))}",
        )


def _check_numbers(options: Mapping[str, Any]) -> None:
    for option in ("max_model_len", "max_num_seqs"):
        if type(options[option]) is not int or options[option] < 1:
            raise DefinitionError(f"{option}={options[option]!r} is not a whole number of at least 1")
    pace, delay = options["tokens_per_second"], options["first_token_seconds"]
    if pace is not None and not (_is_number(pace) and pace > 0):
        raise DefinitionError(f"tokens_per_second={pace!r} is not a number above 0")
    if not (_is_number(delay) and delay >= 0):
        raise DefinitionError(f"first_token_seconds={delay!r} is not a number of seconds")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

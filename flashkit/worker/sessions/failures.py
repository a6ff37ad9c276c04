"""Errors of steps as the journal keeps them, so that a handler that caught one goes the same way again.

Data never names code. A recorded error holds names, and the running program says which classes they stand
for: flashkit's own errors, a fixed list of Python's, and those that the handler gave to `session.catches`.
The first name that is known counts, from the error's class upwards. An error of which nothing is known
comes back as `StepError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flashkit import errors
from flashkit.errors import ErrorReport, FlashkitError, StepError, describe_exception

NOT_KEPT: Final = (
    errors.BudgetExceeded,
    errors.JournalLost,
    errors.OutcomeUnknown,
    errors.RecordCorrupt,
    errors.RecordKeyMissing,
    errors.RecordTooNew,
    errors.ReplayMismatch,
    errors.SessionFenced,
    errors.StoreMisconfigured,
    errors.StoreUnavailable,
)
"""They end the turn, or this worker's part in it; none is what came of a step."""

_PYTHON: Final = {
    each.__name__: each
    for each in (
        *(ArithmeticError, FloatingPointError, OverflowError, ZeroDivisionError),
        *(AssertionError, AttributeError, BufferError, EOFError, MemoryError, NameError),
        *(ImportError, ModuleNotFoundError),
        *(LookupError, IndexError, KeyError),
        *(OSError, BlockingIOError, ChildProcessError, FileExistsError, FileNotFoundError, InterruptedError),
        *(IsADirectoryError, NotADirectoryError, PermissionError, ProcessLookupError, TimeoutError),
        *(ConnectionError, BrokenPipeError, ConnectionAbortedError, ConnectionRefusedError, ConnectionResetError),
        *(ReferenceError, RuntimeError, NotImplementedError, RecursionError),
        *(TypeError, UnicodeError, ValueError),
    )
}
_FLASHKIT: Final = {
    name: each
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, FlashkitError) and not issubclass(each, NOT_KEPT)
}
_MOST_CHARACTERS: Final = 64 << 10
_PLAIN: Final = (str, int, float, bool, type(None))


def encode_error(exc: Exception) -> bytes:
    """Return an error as JSON text: the names of its classes, its arguments if they are plain, and its report."""
    report = describe_exception(exc)
    data: dict[str, Any] = {"types": list(_names(exc)), "text": _text(exc)[:_MOST_CHARACTERS]}
    if all(type(each) in _PLAIN for each in exc.args):
        data["args"] = list(exc.args)
    known = {**data, "report": report.to_dict()}
    text = json.dumps(known, default=str)
    if len(text) > _MOST_CHARACTERS:  # what an error drags along is not worth more
        data.pop("args", None)
        short = ErrorReport(report.code, report.message[:_MOST_CHARACTERS], report.type, where=report.where)
        text = json.dumps({**data, "report": short.to_dict()})
    return text.encode()


def rebuild_error(output: bytes, catches: Mapping[str, type[Exception]]) -> Exception:
    """Return an error equal to the one that was encoded, as far as the program knows its classes."""
    data = json.loads(output)
    report = ErrorReport.from_dict(data["report"])
    for name in data["types"]:
        if name in catches:
            return _make(catches[name], data)
        if name in _FLASHKIT:
            return _FLASHKIT[name].from_report(report)
        if name in _PYTHON:
            return _make(_PYTHON[name], data)
    return StepError.from_report(report)


def comes_back(exc: Exception, catches: Mapping[str, type[Exception]]) -> bool:
    """True when the error comes back as its own class."""
    name = type(exc).__name__
    return name in catches or name in _FLASHKIT or name in _PYTHON


def led_to(exc: BaseException, raised: Mapping[int, str]) -> Iterator[str]:
    """Yield the steps, given by the ids of their errors, that an error comes from: itself, or what it wraps."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if id(error) in raised:
            yield raised[id(error)]
            continue
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        waiting.append(error.__cause__ if error.__suppress_context__ else error.__cause__ or error.__context__)


def _names(exc: Exception) -> Iterator[str]:
    for each in type(exc).__mro__:
        if each is Exception:
            return
        if issubclass(each, Exception):
            yield each.__name__


def _text(exc: Exception) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - the user's own __str__ may raise anything
        return ""


def _make(cls: type[Exception], data: Mapping[str, Any]) -> Exception:
    """Return an error of a class with the recorded text, from its arguments where the class takes them."""
    for arguments in (data.get("args"), [data["text"]]):
        try:
            error = None if arguments is None else cls(*arguments)
        except Exception:  # noqa: BLE001, S112 - the user's own constructor may raise anything
            continue
        if error is not None and _text(error) == data["text"]:
            return error
    return cls.__new__(cls, data["text"])

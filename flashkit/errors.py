"""Every exception that flashkit raises, and the one envelope in which errors travel.

The tree is split by what the catcher does next:

    FlashkitError
    ├── DefinitionError       fix the decorator call: refused when the app file is imported
    ├── ConfigurationError    fix an environment variable, a file or a command line option
    │   ├── StoreMisconfigured    the sessions' store answers, but must not be used as it is set up
    │   ├── DockerUnavailable     there is no docker command, or no daemon behind it
    │   └── WeightsError          a model's weights cannot be had: refused, no room, servers down
    │       ├── WeightsNotFound       they are in none of the places that the message names
    │       ├── WeightsDamaged        files of them are missing or changed: the message names them
    │       └── WeightsSourceError    the hub or S3 cannot be reached, or has them not: retry, or look elsewhere
    ├── ImageError            an image could not be built or pushed, or is too large: `details` has the failed step
    ├── InputError            the caller sent something the handler cannot take: fix the request
    ├── HandlerError          the handler (user code) failed: read `where`, fix the code
    │   ├── OutputError           it returned something that cannot be sent
    │   ├── HandlerExit           it called sys.exit()
    │   ├── DeadlineExceeded      it ran until just before the platform's limit and was stopped
    │   ├── StepError             a session's step failed before a restart, with an error of a class that is not known
    │   └── SetupError            setup() or warmup() failed, so the worker takes no jobs
    ├── EngineError           a model's engine could not answer
    │   ├── EngineRefusal         it refused the request: fix it; `details` has the HTTP `status` and the `body`
    │   └── EngineDied            it died or hung, and its worker with it: retry, another worker takes over
    ├── SessionError          the journal and the code disagree, or the session cannot be used
    │   ├── BudgetExceeded        it used more steps, tokens or money than it may, or runs in circles
    │   ├── ReplayMismatch        the code asks for other steps than its journal holds: see both in the message
    │   ├── OutcomeUnknown        an effect may have happened: a person says whether it did
    │   ├── SessionBusy           another worker has it: try again later
    │   ├── SessionFenced         another worker took it over: stop, its work is not lost
    │   ├── SessionBlocked        it waits for a person: read the reason, then resume or delete it
    │   ├── SessionNotFound       there is no such session (any more)
    │   ├── JournalLost           the store lost acknowledged steps, and they cannot be put back
    │   ├── InboxFull             too many messages wait in it: try again later
    │   ├── PayloadTooLarge       a result, state or message is over its limit: make it smaller
    │   ├── RecordCorrupt         stored bytes are damaged or belong elsewhere
    │   ├── RecordTooNew          stored by a newer flashkit: update this worker
    │   ├── RecordKeyMissing      stored with a key that this worker has not
    │   └── StoreUnavailable      the store cannot be reached: retry
    │       └── StoreFull             it refuses writes for lack of memory or disk
    ├── JobError              a job sent to the platform did not complete
    │   ├── JobFailed             the worker reported an error
    │   ├── JobCancelled          somebody cancelled it
    │   ├── JobTimedOut           execution timeout or time in queue ran out
    │   └── JobNotFound           the platform does not know the id (any more)
    └── PlatformError         the platform could not be reached or answered nonsense: retry
        └── RateLimited           it asked for fewer requests

An error crosses process boundaries as an `ErrorReport`: a JSON object in HTTP answers, the same
object as JSON text in a job's `error` field (Runpod documents that field as a string). `render()`
gives the text that terminals print, so a person reads the same words everywhere.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

_PACKAGE_ROOT = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """One error as it is sent and shown: what happened, where, and what to do about it."""

    code: str
    """Stable snake_case identifier, for programs."""
    message: str
    """What happened and with which value, in one or two sentences."""
    type: str = "FlashkitError"
    """Name of the exception class, the user's own one included."""
    where: str | None = None
    """Place in the user's code, as `file.py:12 in function`."""
    hint: str | None = None
    """What to do next."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts for programs: field errors, limits, exit codes, last log lines."""
    request_id: str | None = None
    """Id of the job or HTTP request that failed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object, without the parts that are not known."""
        pairs = {
            "code": self.code,
            "type": self.type,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "details": dict(self.details),
            "request_id": self.request_id,
        }
        return {key: value for key, value in pairs.items() if value or key in {"code", "type", "message"}}

    def to_json(self) -> str:
        """Return the JSON text that goes into a job's `error` field."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, default=str)
        return text.encode(errors="replace").decode()  # file names can bring characters that UTF-8 has not

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a report from a JSON object; unknown keys are ignored."""
        details = data.get("details")
        return cls(
            code=str(data.get("code", "unknown")),
            message=str(data.get("message", "")),
            type=str(data.get("type", "FlashkitError")),
            where=_optional_text(data.get("where")),
            hint=_optional_text(data.get("hint")),
            details=details if isinstance(details, Mapping) else {},
            request_id=_optional_text(data.get("request_id")),
        )

    @classmethod
    def from_job_error(cls, error: object, *, request_id: str | None = None) -> ErrorReport:
        """Read the `error` field of a job, whoever wrote it: flashkit, the runpod SDK, or a person."""
        data = error
        if isinstance(error, str):
            try:
                data = json.loads(error)
            except ValueError:
                data = None
        if isinstance(data, Mapping) and "message" in data:
            report = ErrorReport.from_dict(data)
        elif isinstance(data, Mapping) and "error_message" in data:
            report = _from_sdk_error(data)
        else:
            report = cls(code="handler_error", message=str(error), type="Exception")
        return replace(report, request_id=report.request_id or request_id)

    def render(self) -> str:
        """Return the text for a terminal: message, place, hint and id, one a line."""
        lines = [f"{self.type}: {self.message}"]
        if self.where:
            lines.append(f"  at {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        if self.request_id:
            lines.append(f"  request: {self.request_id}")
        return "\n".join(lines)


def _optional_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _from_sdk_error(data: Mapping[str, Any]) -> ErrorReport:
    """Translate the error text of a plain `runpod.serverless` worker (its keys start with error_)."""
    type_name = str(data.get("error_type", "Exception")).removeprefix("<class '").removesuffix("'>")
    details = {"traceback": data["error_traceback"]} if data.get("error_traceback") else {}
    return ErrorReport(
        code="handler_error",
        message=str(data["error_message"]),
        type=type_name.rpartition(".")[2],
        details=details,
    )


class FlashkitError(Exception):
    """Root of everything flashkit raises; `report` is the form in which it travels."""

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        where: str | None = None,
        details: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.report = ErrorReport(
            code=self.code,
            message=message,
            type=type(self).__name__,
            where=where,
            hint=hint,
            details=details or {},
            request_id=request_id,
        )

    @classmethod
    def from_report(cls, report: ErrorReport) -> Self:
        """Build the exception from a report that came over the wire, keeping every part of it."""
        error = cls.__new__(cls, report.message)  # a subclass may ask its caller for other arguments
        error.report = report
        return error

    def __str__(self) -> str:
        hint = self.report.hint
        return f"{self.report.message}\n  hint: {hint}" if hint else self.report.message


class DefinitionError(FlashkitError):
    """A decorator was given something that cannot work."""

    code = "definition_invalid"


class ConfigurationError(FlashkitError):
    """An environment variable, a file or a command line option is wrong or missing."""

    code = "configuration_invalid"


class StoreMisconfigured(ConfigurationError):
    """The sessions' store answers, but in its present configuration it would lose or refuse sessions."""

    code = "store_misconfigured"


class DockerUnavailable(ConfigurationError):
    """There is no docker command, or no daemon that it can talk to."""

    code = "docker_unavailable"


class WeightsError(ConfigurationError):
    """The weights of a model cannot be had."""

    code = "weights_unavailable"


class WeightsNotFound(WeightsError):
    """The weights are in none of the places that were looked in; `details` has them as `places`."""

    code = "weights_not_found"


class WeightsDamaged(WeightsError):
    """Files of the weights are missing or not what they should be; `details` has them as `files`."""

    code = "weights_damaged"


class WeightsSourceError(WeightsError):
    """The hub or S3 cannot be reached, or has not got the weights."""

    code = "weights_source_failed"


class ImageError(FlashkitError):
    """An image could not be built or pushed, or is larger than its workers' disks."""

    code = "image_failed"


class InputError(FlashkitError):
    """The request does not fit the handler's parameters."""

    code = "input_invalid"


class HandlerError(FlashkitError):
    """User code failed while it handled a job."""

    code = "handler_error"


class OutputError(HandlerError):
    """The handler returned something that cannot be sent to the caller."""

    code = "output_invalid"


class HandlerExit(HandlerError):
    """The handler tried to end the worker's process."""

    code = "handler_exit"

    @classmethod
    def from_exit(cls, exc: SystemExit) -> Self:
        """Build the error for a `sys.exit()`; it points at the line that called it."""
        error = cls(
            f"the handler called sys.exit({exc.code!r})",
            hint="raise an exception to fail the job; the worker stays up for the next one",
            details={"exit_code": exc.code},
        )
        return error.with_traceback(exc.__traceback__)


class DeadlineExceeded(HandlerError):
    """The handler ran until just before the platform's execution timeout, and was stopped."""

    code = "deadline_exceeded"


class StepError(HandlerError):
    """A step failed before its session was resumed; `report` has the name and message of its error."""

    code = "step_failed"


class SetupError(HandlerError):
    """`setup()` or `warmup()` failed, so this worker cannot take jobs."""

    code = "setup_failed"


class EngineError(FlashkitError):
    """A model's engine could not answer."""

    code = "engine_error"


class EngineRefusal(EngineError):
    """The engine refused the request; `details` has the `status` and the `body` of its answer."""

    code = "engine_refusal"


class EngineDied(EngineError):
    """The engine died or hung while it had the request; the same request can be sent again."""

    code = "engine_died"


class SessionError(FlashkitError):
    """A session cannot go on."""

    code = "session_error"


class BudgetExceeded(SessionError):
    """A turn hit one of its ceilings; `details["ceiling"]` names it."""

    code = "budget_exceeded"


class ReplayMismatch(SessionError):
    """The code asks for another step than the journal has in that place."""

    code = "replay_mismatch"


class OutcomeUnknown(SessionError):
    """A step that must not run twice was begun and did not return: nobody knows whether its effect happened."""

    code = "outcome_unknown"


class SessionBusy(SessionError):
    """Another worker works on the session; `details` says who, and for how long at most."""

    code = "session_busy"


class SessionFenced(SessionError):
    """Another worker took the session over, so nothing that this one writes is accepted."""

    code = "session_fenced"


class SessionBlocked(SessionError):
    """The session is not run before a person has looked at it; the message says why."""

    code = "session_blocked"


class SessionNotFound(SessionError):
    """There is no session with this id: never begun, deleted, or past its retention."""

    code = "session_not_found"


class JournalLost(SessionError):
    """The store no longer has steps that it had acknowledged, and this worker cannot put them back."""

    code = "journal_lost"


class InboxFull(SessionError):
    """Too many messages wait in the session's inbox."""

    code = "inbox_full"


class PayloadTooLarge(SessionError):
    """A step's result, a state, a message or a whole session is over its limit; nothing was written."""

    code = "payload_too_large"


class RecordCorrupt(SessionError):
    """Stored bytes are damaged, out of order, or belong to another session."""

    code = "record_corrupt"


class RecordTooNew(SessionError):
    """A record was written in a format that this version of flashkit does not know."""

    code = "record_too_new"


class RecordKeyMissing(SessionError):
    """A record is encrypted with a key that this worker does not have."""

    code = "record_key_missing"


class StoreUnavailable(SessionError):
    """The sessions' store could not be reached within the budget; what was not acknowledged may be sent again."""

    code = "store_unavailable"


class StoreFull(StoreUnavailable):
    """The sessions' store has no memory or disk left for writes; nothing of this write was applied."""

    code = "store_full"


class JobError(FlashkitError):
    """A job sent to the platform did not complete."""

    code = "job_error"


class JobFailed(JobError):
    """The worker reported an error; `report` is what it said."""

    code = "job_failed"


class JobCancelled(JobError):
    """The job was cancelled before it finished."""

    code = "job_cancelled"


class JobTimedOut(JobError):
    """The job ran past its execution timeout, or waited past its time to live."""

    code = "job_timed_out"


class JobNotFound(JobError):
    """The platform does not know this job id: never submitted, expired, or past its retention."""

    code = "job_not_found"


class PlatformError(FlashkitError):
    """The platform could not be reached, or its answer makes no sense."""

    code = "platform_error"


class RateLimited(PlatformError):
    """The platform answered 429."""

    code = "rate_limited"


def describe_exception(
    exc: BaseException, *, request_id: str | None = None, with_traceback: bool = False
) -> ErrorReport:
    """Return the report for any exception: flashkit's own ones as they are, others as a handler error.

    Args:
        exc: The exception, with its traceback.
        request_id: Job or request id to put into the report.
        with_traceback: Add the traceback to `details` (only where the caller is the developer).
    """
    if isinstance(exc, FlashkitError):
        report = exc.report
    else:
        report = ErrorReport(code="handler_error", message=_message_of(exc), type=type(exc).__name__)
    cause = exc.__cause__.__traceback__ if exc.__cause__ else None
    where = report.where or _syntax_place(exc) or locate(exc.__traceback__) or locate(cause)
    details = dict(report.details)
    if with_traceback:
        details["traceback"] = user_traceback(exc)
    return replace(report, where=where, details=details, request_id=report.request_id or request_id)


def _message_of(exc: BaseException) -> str:
    try:
        return str(exc) or repr(exc)
    except Exception:  # noqa: BLE001 - the user's own __str__ may raise anything
        return f"an exception whose text cannot be shown ({type(exc).__name__})"


def _syntax_place(exc: BaseException) -> str | None:
    """Return the line that does not parse: no frame of the traceback is in that file."""
    if not isinstance(exc, SyntaxError) or not exc.filename:
        return None
    return f"{Path(exc.filename).name}:{exc.lineno}"


def user_traceback(exc: BaseException) -> str:
    """Return the traceback from the first line of user code on; all of it where there is no user code."""
    report = traceback.TracebackException.from_exception(exc)
    link: traceback.TracebackException | None = report
    while link is not None:
        _start_at_user_code(link)
        link = link.__cause__ or link.__context__
    return "".join(report.format()).rstrip()


def _start_at_user_code(report: traceback.TracebackException) -> None:
    frames = list(report.stack)
    without_user_code = len(frames) if hasattr(report, "lineno") else 0  # a SyntaxError names its line itself
    user_frames = (index for index, frame in enumerate(frames) if _is_user_file(frame.filename))
    first = next(user_frames, without_user_code)
    report.stack = traceback.StackSummary.from_list(frames[first:])


def locate(trace: TracebackType | None) -> str | None:
    """Return `file.py:12 in function` for the innermost frame that is the user's own code."""
    frames = [frame for frame in traceback.extract_tb(trace) if _is_user_file(frame.filename)]
    if not frames:
        return None
    last = frames[-1]
    return f"{Path(last.filename).name}:{last.lineno} in {last.name}"


def _is_user_file(filename: str) -> bool:
    is_library = any(part in filename for part in ("site-packages", "/lib/python3.", "<frozen"))
    return not (filename.startswith(_PACKAGE_ROOT) or is_library)

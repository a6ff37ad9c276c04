"""`Session`, what an orchestrator's handler receives: ordinary Python around steps that never run twice."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
import typing
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, Generic, Literal, NamedTuple, ParamSpec, Protocol, TypeGuard, TypeVar, overload
from weakref import WeakKeyDictionary

from typing_extensions import TypeVar as TypingTypeVar

from flashkit.errors import HandlerExit, OutcomeUnknown, SessionError
from flashkit.handler import Contract, Definition, encode_json, output_adapter, parse_json
from flashkit.spec import Kind as EndpointKind
from flashkit.telemetry import Op, Span, current
from flashkit.worker.job import HandBack, contain
from flashkit.worker.sessions.accounts import Tariff
from flashkit.worker.sessions.budget import Ceilings
from flashkit.worker.sessions.calls import Caller
from flashkit.worker.sessions.history import History
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.scope import running_step
from flashkit.worker.sessions.store import UNCHANGED, Durability
from flashkit.worker.sessions.turn import Ask, Suspend, Turn, encode_value, in_branch

P = ParamSpec("P")
T = TypeVar("T")
StateT = TypingTypeVar("StateT", default=None)
Output_co = TypeVar("Output_co", covariant=True)

_result_types: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
_effect_key: ContextVar[str] = ContextVar("flashkit_effect_key")


class Callee(Protocol[P, Output_co]):
    """An endpoint as a session calls it."""

    definition: Definition
    contract: Contract

    async def remote(self, *args: P.args, **kwargs: P.kwargs) -> Output_co:
        """Run one job of it."""


class Session(Generic[StateT]):
    """One turn of an agent's session, resumable on any worker that reaches the same store.

    Annotate the handler's parameter as `Session`, or as `Session[Notes]` to keep a pydantic model of yours
    between turns in `session.state`.
    """

    def __init__(self, turn: Turn, caller: Caller, *, state: Any, history: History, events: list[Record]) -> None:
        self._state: StateT = state
        self.history = history
        """The conversation; saved at the end of each turn. It changes in the handler, not in the function of a step."""
        self._turn = turn
        self._caller = caller
        self._events = events

    def __repr__(self) -> str:
        return f"<session {self.id!r}, turn {self.turn}, {len(self.completed_steps)} steps done>"

    @property
    def id(self) -> str:
        """The session's id."""
        return self._turn.session

    @property
    def state(self) -> StateT:
        """The model that the handler's annotation names; saved at the end of each turn.

        It changes in the handler: what a step's function changes is lost when the session is resumed, as the
        function does not run again. A warning in the log names the step.
        """
        if step := running_step():
            step.watch(self._state)
        return self._state

    @state.setter
    def state(self, state: StateT) -> None:
        if step := running_step():
            raise SessionError(
                f"session.state was set in the function of step {step.key!r}, which does not run again when the "
                "session is resumed: the change would be lost",
                hint="return the value from the step, and set the state in the handler",
            )
        self._state = state

    @property
    def turn(self) -> int:
        """Number of this turn; the first is 1."""
        return self._turn.number

    @property
    def completed_steps(self) -> tuple[str, ...]:
        """Keys of the steps that will not run again."""
        return tuple(key for key, progress in self._turn.memo.steps.items() if progress.result is not None)

    @overload
    def step(
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Run `function(*args, **kwargs)` once in the life of the turn and return what it returned.

        Sync functions run in a thread. The result must have a JSON form; it comes back in the type that
        the function's annotation declares, on the first run as on every later one. An error that the handler
        catches is what came of the step, as soon as another step follows: it is raised again when the session
        is resumed; see `catches` for errors of your own. A step whose error ends the turn runs again when the
        turn is retried. If the worker dies while the function runs, it runs again; for what must not happen
        twice there is `effect`.

        Args:
            name: Stable name of the step; the second use of a name in a turn becomes `name#2`.
            function: What to run.
            *args: Its arguments.
            **kwargs: Its keyword arguments.
        """
        _require_step("step", name, function)
        ask = self._turn.ask(name, [args, kwargs])
        run = functools.partial(_run_function, function, *args, **kwargs)
        returned = _Returned(ask.key)
        return self._decoded(self._turn.once(ask, run, returned.encode), function, returned)

    def effect(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        once: bool = True,
        probe: Callable[[str], Any] | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Run a function that changes something outside, such as sending a mail or booking a payment.

        That it is about to run is written down first. While it runs, `effect_key()` gives a key that is the
        same on every attempt, for services that take an idempotency key.

        Args:
            name: Stable name of the step.
            function: What to run.
            *args: Its arguments.
            once: Never run it a second time when it was begun and did not return, because a worker died inside
                it or its exception ended the turn: ask `probe`, or stop with `OutcomeUnknown` until a person
                has said what happened. False: run it again with the same key.
            probe: Called with the key in such a case; what it returns is the step's result, None means that the
                effect did not happen.
            **kwargs: Its keyword arguments.

        Raises:
            OutcomeUnknown: Nobody knows whether the effect happened.
        """
        _require_step("effect", name, function)
        ask = self._turn.ask(name, [args, kwargs])
        run = functools.partial(_run_function, function, *args, **kwargs)
        return self._decoded(self._run_effect(ask, run, once=once, probe=probe), function)

    @overload
    def call(
        self,
        endpoint: Callee[P, T],
        /,
        *args: Any,
        timeout: float | None = None,
        retries: int = 2,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def call(
        self,
        endpoint: type[Any],
        /,
        *args: Any,
        timeout: float | None = None,
        retries: int = 2,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]: ...  # mypy takes no note of class decorators: to it, the class is still a class
    def call(
        self,
        endpoint: Any,
        /,
        *args: Any,
        timeout: float | None = None,
        retries: int = 2,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Run one job of another endpoint, once in the life of the turn, and return its output.

        The job's id is written down when it is submitted: a worker that takes the session over goes on
        waiting for that job instead of submitting another one.

        Args:
            endpoint: The decorated function or class.
            *args: The job's arguments.
            timeout: Seconds to wait, queue, cold start, retries and restarts included; then the job is cancelled.
                A session that was called itself waits no longer than whoever called it.
            retries: How often a job is submitted again that the platform lost or could not take. The calls of
                a called session share what its caller has left.
            idempotency_key: Identifies the work instead of its place in the session and its input.
            **kwargs: The job's keyword arguments.

        Raises:
            JobError: The job failed, was cancelled or took longer than `timeout`.
        """
        spec = endpoint.definition.spec
        data = endpoint.contract.make_input(args, kwargs)
        ask = self._turn.ask(f"call:{spec.name}", data)
        op = Op.TOOL if spec.kind is EndpointKind.CPU else Op.CALL
        call = self._caller.call(
            self._turn, ask, Tariff.of(spec), data, timeout, retries=retries, key=idempotency_key, op=op
        )
        return _decode_with(call, endpoint.contract.decode_output)

    @overload
    async def gather(self, *calls: Awaitable[T], partial: Literal[False] = False) -> list[T]: ...
    @overload
    async def gather(self, *calls: Awaitable[T], partial: Literal[True]) -> list[T | BaseException]: ...
    async def gather(self, *calls: Awaitable[T], partial: bool = False) -> list[Any]:
        """Await several steps and calls at the same time; results in the order of the arguments.

        Args:
            *calls: What `step` and `call` returned, or coroutines of your own that use the session.
            partial: Give exceptions in the place of results. Without it the first failure cancels the
                others and is raised.
        """
        path = self._turn.branch()
        async with _Group() as group:
            tasks = [group.start(in_branch(self._turn, call, path, index)) for index, call in enumerate(calls)]
            await group.wait(all_of_them=partial)
        if partial:
            return [_result_or_error(task) for task in tasks]
        return [task.result() for task in tasks]

    async def stream(self, value: Any) -> None:
        """Send a partial output to whoever streams the job. After a resumption values may come a second time."""
        await self._caller.emit(encode_json(value))

    async def wait_for(self, event: str, *, timeout: float | None = None) -> Any:
        """Return the value of an event, giving the worker back until it comes.

        The job ends with `{"status": "waiting", ...}`; a job with `{"session_id": ..., "event": {"name": ...,
        "value": ...}}` resumes the turn here, on any worker.

        Args:
            event: The event's name.
            timeout: Seconds after which whoever resumes the session gets TimeoutError here.

        Raises:
            TimeoutError: The session was resumed without the event, after its time.
        """
        ask = self._turn.ask(f"event:{event}", None)
        record = self._turn.done(ask)
        if record is None:
            record = await self._take_event(ask, event) or await self._interrupt(ask, event, timeout)
        if record.extra.get("timed_out"):
            raise TimeoutError(f"session {self.id!r} waited {timeout or 0:g} s for event {event!r}")
        return parse_json(await self._turn.output_of(record))

    def budget(
        self,
        *,
        steps: int | object | None = UNCHANGED,
        tokens: int | object | None = UNCHANGED,
        cost_usd: float | object | None = UNCHANGED,
        repeats: int | object | None = UNCHANGED,
    ) -> None:
        """Set ceilings for this turn; None takes one away.

        `BudgetExceeded` ends the turn that hits one, also if the handler catches it. The next turn begins with the
        ceilings and counts of a new one.

        Args:
            steps: Steps and calls. 1,000 at first.
            tokens: What `spend` reports.
            cost_usd: What `spend` reports.
            repeats: How often the same step with the same input, or the same round of up to eight steps, may
                follow itself. 20 at first.
        """
        given = {"steps": steps, "tokens": tokens, "cost_usd": cost_usd, "repeats": repeats}
        changed = {name: value for name, value in given.items() if value is not UNCHANGED}
        for name, value in changed.items():
            if value is not None and not (_is_number(value) and value > 0):
                raise SessionError(f"session.budget({name}={value!r}) is not a ceiling", hint="give a number above 0")
        self._turn.budget.set_ceilings(Ceilings(**{**self._turn.budget.ceilings.to_dict(), **changed}))

    def spend(self, *, tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Report what the agent has used, in the handler or in the function of a step.

        Raises:
            BudgetExceeded: It is more than this turn's ceiling.
            SessionError: It is not an amount.
        """
        for name, value in (("tokens", tokens), ("cost_usd", cost_usd)):
            if not (_is_number(value) and math.isfinite(value) and value >= 0):
                raise SessionError(f"session.spend({name}={value!r}) is not an amount", hint="give a number from 0 up")
        if running_step() is None:  # a step's span says so itself
            _tell_spent(tokens, cost_usd)
        self._turn.spend(tokens=tokens, cost_usd=cost_usd)

    def catches(self, *errors: type[Exception]) -> None:
        """Name exception classes of yours that the handler catches from steps, calls and effects.

        What a step raised comes back from the journal when the session is resumed. The journal holds only the
        names of its classes: Python's usual errors and flashkit's are known, and those that are named here.
        Others come back as `StepError`.
        """
        for each in errors:
            if not (isinstance(each, type) and issubclass(each, Exception)):
                raise SessionError(f"session.catches({each!r}) does not name a class of exceptions")
            self._turn.catches[each.__name__] = each

    @property
    def unread_events(self) -> list[Record]:
        """Events that came and that no `wait_for` has taken; they are kept for the next turn."""
        return self._events

    async def _decoded(
        self, output: Awaitable[bytes], function: Callable[..., Any], returned: _Returned | None = None
    ) -> Any:
        text = await output
        annotation, adapter = _result_type(function)
        if returned is not None and returned.text is not None and (adapter is None or annotation is str):
            return returned.text
        if adapter is None or text == b"null":
            return parse_json(text)
        try:
            return adapter.validate_json(text)
        except ValueError:  # pydantic's is one of them
            return parse_json(text)

    async def _run_effect(
        self, ask: Ask, run: Callable[[], Awaitable[Any]], *, once: bool, probe: Callable[[str], Any] | None
    ) -> bytes:
        turn = self._turn
        key = self._caller.key_of(turn, ask)
        is_done = turn.done(ask) is not None
        progress = turn.memo.steps.get(ask.key)
        has_begun = progress is not None and progress.intent is not None and not is_done
        encode = functools.partial(_encode_step, ask.key)
        if has_begun and once:
            found = await _run_function(probe, key) if probe else None
            if found is not None:
                return (await turn.write_result(ask, encode(found))).output
            if probe is None:
                error = _outcome_unknown(turn.session, ask.key)
                turn.end(error)
                raise error
        if not is_done:
            turn.check_may_begin()
            durability = Durability.FSYNC if once else Durability.DEFAULT
            await turn.write(Kind.INTENT, ask, durability=durability)

        async def run_with_key() -> Any:
            token = _effect_key.set(key)
            try:
                return await run()
            finally:
                _effect_key.reset(token)

        return await turn.once(ask, run_with_key, encode, op=Op.EFFECT)

    async def _take_event(self, ask: Ask, event: str) -> Record | None:
        """Write down that the event came, if it did; also one that came while this turn was at work."""
        self._events.extend(await self._turn.take_messages(unread=len(self._events)))
        arrived = next((answer for answer in self._events if answer.key == event), None)
        if arrived is None:
            return None
        self._events.remove(arrived)
        output = await self._turn.output_of(arrived)
        return await self._turn.write_result(ask, output, extra={**arrived.extra, "event": event})

    async def _interrupt(self, ask: Ask, event: str, timeout_s: float | None) -> Record:
        progress = self._turn.memo.steps.get(ask.key)
        since_ms = progress.intent.started_ms if progress and progress.intent else None
        if since_ms is not None and timeout_s is not None and time.time() * 1000 - since_ms > timeout_s * 1000:
            # Written down, so that an event that comes after all does not change which way the handler went.
            return await self._turn.write_result(ask, b"null", extra={"timed_out": True})
        if since_ms is None:
            since_ms = round(time.time() * 1000)
            await self._turn.write(Kind.INTENT, ask, started_ms=since_ms)
            if record := await self._take_event(ask, event):
                return record
        raise Suspend(event, timeout_s, since_ms=since_ms)


class _Group:
    """A task group that raises the first failure itself, not an ExceptionGroup around it."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run one call beside the others."""
        task = asyncio.create_task(call)
        self._tasks.append(task)
        return task

    async def wait(self, *, all_of_them: bool) -> None:
        """Return when every call has ended; otherwise already at the first failure."""
        until = asyncio.ALL_COMPLETED if all_of_them else asyncio.FIRST_EXCEPTION
        pending = set(self._tasks)
        while pending:
            _, pending = await asyncio.wait(pending, return_when=until)
            if any(not isinstance(error, Suspend) for error in self._failures()):
                break  # a branch that waits for an event lets the others finish
        failures = self._failures()
        leaving = sorted((error for error in failures if isinstance(error, HandBack | Suspend)), key=_time_to_leave)
        for error in leaving or ([] if all_of_them else failures):
            raise error

    def _failures(self) -> list[BaseException]:
        finished = [task for task in self._tasks if task.done() and not task.cancelled()]
        return [error for task in finished if (error := task.exception()) is not None]

    async def __aenter__(self) -> _Group:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pending = [task for task in self._tasks if not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _time_to_leave(error: HandBack | Suspend) -> float:
    """Order what ends the handler: of several events that are waited for, the first whose time is over counts."""
    return (error.due_ms or float("inf")) if isinstance(error, Suspend) else 0


def _result_or_error(task: asyncio.Task[Any]) -> Any:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()


def effect_key() -> str:
    """Return the idempotency key of the running `session.effect`, the same on every attempt.

    Raises:
        SessionError: No effect is running.
    """
    try:
        return _effect_key.get()
    except LookupError:
        raise SessionError("effect_key() was called outside of session.effect(...)") from None


async def _run_function(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    try:
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        outcome = await asyncio.to_thread(contain, functools.partial(function, *args, **kwargs))
        result = outcome()
        return await result if inspect.isawaitable(result) else result
    except SystemExit as exc:  # in a task of `gather` it would end the worker
        raise HandlerExit.from_exit(exc) from exc


async def _decode_with(output: Awaitable[Any], decode: Callable[[Any], Any]) -> Any:
    return decode(parse_json(await output))


def _require_step(method: str, name: object, function: object) -> None:
    if not isinstance(name, str) or not name or not callable(function):
        raise SessionError(
            f"session.{method}({name!r}, {function!r}) does not name a step and its function",
            hint=f'write session.{method}("name", function, *arguments)',
        )


def _tell_spent(tokens: int, cost_usd: float) -> None:
    here = current()
    if isinstance(here, Span):
        for name, value in (("flashkit.spent.tokens", tokens), ("flashkit.spent.cost_usd", cost_usd)):
            here.set(name, here.attributes.get(name, 0) + value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _outcome_unknown(session: str, key: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"session {session!r}: step {key!r} was begun and did not return, so its effect may have happened or not",
        hint=f"find out, then: flashkit sessions settle {session} {key} --result JSON (it happened) or --again",
        details={"session": session, "step": key},
    )


def _encode_step(key: str, result: Any) -> bytes:
    try:
        return encode_value(result)
    except (TypeError, ValueError) as exc:
        raise SessionError(
            f"step {key!r} returned a {type(result).__name__}, which cannot be written to the journal: {exc}",
            hint="return plain values, dataclasses or pydantic models from steps",
        ) from exc


class _Returned:
    """A step's result on its way into the journal; a text comes back from there as it is, and is not read again."""

    __slots__ = ("_key", "text")

    def __init__(self, key: str) -> None:
        self._key = key
        self.text: str | None = None

    def encode(self, result: Any) -> bytes:
        """Return the result as JSON text."""
        if type(result) is str:
            self.text = result
        return _encode_step(self._key, result)


class _ResultType(NamedTuple):
    """What a function says it returns, and the adapter that makes it out of JSON; None where it says nothing."""

    annotation: Any
    adapter: Any


def _result_type(function: Callable[..., Any]) -> _ResultType:
    """Return what a function says it returns; found out once, because that takes longer than a step."""
    plain = getattr(function, "__func__", function)
    try:
        known: _ResultType | None = _result_types.get(plain)
        if known is None:
            known = _result_types[plain] = _read_result_type(function)
    except TypeError:  # a callable object that cannot be a key
        return _read_result_type(function)
    return known


def _read_result_type(function: Callable[..., Any]) -> _ResultType:
    annotation = _return_annotation(function)
    return _ResultType(annotation, output_adapter(annotation))


def _return_annotation(function: Callable[..., Any]) -> Any:
    if inspect.isclass(function):
        return function
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any

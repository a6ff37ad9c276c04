"""`Session`, what an orchestrator's handler receives, and the factory that opens one per job."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import time
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, overload

from flashkit.client import Client
from flashkit.errors import HandlerExit, InputError, SessionError
from flashkit.handler import Contract, Definition, decode_json, encode_json, output_adapter, parse_json
from flashkit.settings import Settings
from flashkit.worker.job import contain
from flashkit.worker.sessions.journal import Journal, Record, open_journal

P = ParamSpec("P")
T = TypeVar("T")
Output_co = TypeVar("Output_co", covariant=True)

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class Callee(Protocol[P, Output_co]):
    """An endpoint as a session calls it."""

    definition: Definition
    contract: Contract

    async def remote(self, *args: P.args, **kwargs: P.kwargs) -> Output_co:
        """Run one job of it."""


class Session:
    """One run of an agent, resumable on any worker that reaches the same journal."""

    def __init__(self, session_id: str, journal: Journal, completed: Mapping[str, Record], client: Client) -> None:
        self.id = session_id
        self._journal = journal
        self._completed = dict(completed)
        self._client = client
        self._counts: Counter[str] = Counter()
        self._used: set[str] = set()

    def __repr__(self) -> str:
        return f"<session {self.id!r}, {len(self._completed)} steps done>"

    @property
    def completed_steps(self) -> tuple[str, ...]:
        """Keys of the steps that will not run again."""
        return tuple(self._completed)

    @overload
    def step(
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Run `function(*args, **kwargs)` once in the life of the session and return what it returned.

        Sync functions run in a thread. The result must have a JSON form; it comes back in the type that
        the function's annotation declares, on the first run as on every later one. A step that raises is
        not written down: it runs again when the session is resumed.

        Args:
            name: Stable name of the step; the second use of a name in a session becomes `name#2`.
            function: What to run.
            *args: Its arguments.
            **kwargs: Its keyword arguments.
        """
        if not isinstance(name, str) or not callable(function):
            raise SessionError(
                f"session.step({name!r}, {function!r}) does not name a step and its function",
                hint='write session.step("name", function, *arguments)',
            )
        key = self._next_key(name)
        adapter = output_adapter(_return_annotation(function))

        async def run() -> Any:
            if inspect.iscoroutinefunction(function):
                return await function(*args, **kwargs)
            outcome = await asyncio.to_thread(contain, functools.partial(function, *args, **kwargs))
            result = outcome()
            return await result if inspect.isawaitable(result) else result

        return self._once(key, run, lambda data: decode_json(data, adapter))

    @overload
    def call(
        self, endpoint: Callee[P, T], /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def call(
        self, endpoint: type[Any], /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]: ...  # mypy takes no note of class decorators: to it, the class is still a class
    def call(
        self, endpoint: Any, /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Run one job of another endpoint, once in the life of the session, and return its output.

        Args:
            endpoint: The decorated function or class.
            *args: The job's arguments.
            timeout: Seconds to wait, queue and cold start included; then the job is cancelled.
            **kwargs: The job's keyword arguments.

        Raises:
            JobError: The job failed, was cancelled or took longer than `timeout`.
        """
        name = endpoint.definition.spec.name
        data = endpoint.contract.make_input(args, kwargs)

        async def run() -> Any:
            return await self._client.endpoint(name).call(data, timeout=timeout)

        return self._once(self._next_key(f"call:{name}"), run, endpoint.contract.decode_output)

    @overload
    async def gather(self, *calls: Awaitable[T], partial: Literal[False] = False) -> list[T]: ...
    @overload
    async def gather(self, *calls: Awaitable[T], partial: Literal[True]) -> list[T | BaseException]: ...
    async def gather(self, *calls: Awaitable[T], partial: bool = False) -> list[Any]:
        """Await several steps and calls at the same time; results in the order of the arguments.

        Args:
            *calls: What `step` and `call` returned.
            partial: Give exceptions in the place of results. Without it the first failure cancels the
                others and is raised.
        """
        if partial:
            return await asyncio.gather(*calls, return_exceptions=True)
        async with _Group() as group:
            tasks = [group.start(call) for call in calls]
        return [task.result() for task in tasks]

    def _next_key(self, name: str) -> str:
        self._counts[name] += 1
        key = name if self._counts[name] == 1 else f"{name}#{self._counts[name]}"
        if key in self._used:  # a step that the user named like the second use of another one
            return self._next_key(name)
        self._used.add(key)
        return key

    async def _once(self, key: str, run: Callable[[], Awaitable[Any]], decode: Callable[[Any], Any]) -> Any:
        record = self._completed.get(key)
        if record is None:
            started = time.monotonic()
            try:
                result = await run()
            except SystemExit as exc:  # in a task of `gather` it would end the worker
                raise HandlerExit.from_exit(exc) from exc
            output = _encode_step(key, result)
            record = await self._journal.write(self.id, Record(key, output, time.monotonic() - started))
            self._completed[key] = record
        return decode(parse_json(record.output))


class SessionFactory:
    """Opens the session of a job; holds the worker's journal and its one client."""

    def __init__(self, settings: Settings) -> None:
        self._journal = open_journal(settings.state_url)
        self._client = Client(settings)

    async def open(self, job_id: str, data: Any) -> tuple[Session, Any]:
        """Return the session that a job belongs to, and the job's input without the session's id.

        A job names its session by `session_id` in the input; without one it is a session of its own, and
        a retry of the same job resumes it.

        Raises:
            InputError: The id is not one.
        """
        session_id = job_id
        if isinstance(data, dict) and "session_id" in data:
            data = dict(data)
            session_id = data.pop("session_id")
        if not isinstance(session_id, str) or not _SESSION_ID.fullmatch(session_id):
            raise InputError(
                f"session_id={session_id!r} is not a session's id",
                hint="use 1 to 128 letters, digits and . _ : - and start with a letter or digit",
            )
        completed = await self._journal.read(session_id)
        return Session(session_id, self._journal, completed, self._client), data

    async def close(self) -> None:
        """Close connections and the journal."""
        await self._client.close()
        await self._journal.close()


class _Group:
    """A task group that raises the first failure itself, not an ExceptionGroup around it."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, call: Awaitable[T]) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.ensure_future(call)
        self._tasks.append(task)
        return task

    async def __aenter__(self) -> _Group:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            pending = [task for task in self._tasks if not task.done()]
            finished = [task for task in self._tasks if task not in pending]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        for task in finished:  # not those that failed because they were cancelled
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


def _encode_step(key: str, result: Any) -> bytes:
    try:
        return encode_json(result)
    except (TypeError, ValueError) as exc:
        raise SessionError(
            f"step {key!r} returned a {type(result).__name__}, which cannot be written to the journal: {exc}",
            hint="return plain values, dataclasses or pydantic models from steps",
        ) from exc


def _return_annotation(function: Callable[..., Any]) -> Any:
    if inspect.isclass(function):
        return function
    try:
        return typing.get_type_hints(function, include_extras=True).get("return", Any)
    except (NameError, TypeError):
        return Any

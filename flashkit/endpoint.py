"""`Endpoint`: what a decorator gives back, and how code reaches it.

Calling it calls the user's own function (or builds the user's own class). `local()` runs it here as a
worker would; `remote()`, `spawn()` and `stream()` send jobs to the configured platform: `flashkit dev`
or Runpod.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from flashkit.errors import DefinitionError
from flashkit.handler import Contract, Definition
from flashkit.spec import EndpointSpec

if TYPE_CHECKING:
    from flashkit.client import JobHandle, JobState

CallP = ParamSpec("CallP")
JobP = ParamSpec("JobP")
CallR = TypeVar("CallR", covariant=True)
Output = TypeVar("Output", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class Endpoint(Generic[CallP, CallR, JobP, Output]):
    """A decorated function or class: callable as before, described by `spec`, reachable as a job."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.contract = Contract(definition)
        functools.update_wrapper(self, definition.target, updated=())

    @property
    def spec(self) -> EndpointSpec:
        """The checked description: compute, bounds, timeouts."""
        return self.definition.spec

    @property
    def name(self) -> str:
        """The endpoint's name in URLs."""
        return self.definition.spec.name

    def __repr__(self) -> str:
        return f"<{self.spec.kind} endpoint {self.name!r} {self.definition.signature}>"

    def __call__(self, /, *args: CallP.args, **kwargs: CallP.kwargs) -> CallR:
        """Call the user's function, or build the user's class, with nothing in between."""
        return self.definition.target(*args, **kwargs)  # type: ignore[no-any-return]  # as the user declared it

    async def local(self, /, *args: JobP.args, **kwargs: JobP.kwargs) -> Output:
        """Run one job in this process as a worker would: setup, checked input, checked and encoded output."""
        from flashkit.worker.local import run_here

        return self.decode(await run_here(self.definition, self.contract.make_input(args, kwargs)))

    async def remote(self, /, *args: JobP.args, **kwargs: JobP.kwargs) -> Output:
        """Run one job on the configured platform and return its output in the declared type.

        Raises:
            InputError: The arguments do not fit the handler.
            JobError: The job failed, timed out or was cancelled.
            PlatformError: The platform could not be reached.
        """
        from flashkit.client import Client

        async with Client() as client:
            output = await client.endpoint(self.name).call(self.contract.make_input(args, kwargs))
        return self.decode(output)

    async def spawn(self, /, *args: JobP.args, **kwargs: JobP.kwargs) -> SpawnedJob[Output]:
        """Submit one job and return its handle at once."""
        from flashkit.client import Client

        async with Client() as client:
            handle = await client.endpoint(self.name).run(self.contract.make_input(args, kwargs))
        return SpawnedJob(self, handle.id)

    async def stream(self, /, *args: JobP.args, **kwargs: JobP.kwargs) -> AsyncIterator[Any]:
        """Submit one job and yield its partial outputs as they come."""
        from flashkit.client import Client

        async with Client() as client:
            async for chunk in client.endpoint(self.name).stream(self.contract.make_input(args, kwargs)):
                yield self.contract.decode_chunk(chunk)

    def decode(self, data: Any) -> Output:
        """Return a job's JSON output in the type that the handler declares."""
        return self.contract.decode_output(data)  # type: ignore[no-any-return]  # validated into the declared type


class EngineEndpoint(Endpoint[..., Any, ..., Any]):
    """An endpoint that is its engine, answering requests; as a decorator, it makes one of a handler that uses it."""

    def __init__(self, definition: Definition, make_endpoint: Callable[[Any], Endpoint[..., Any, ..., Any]]) -> None:
        super().__init__(definition)
        self._make_endpoint = make_endpoint

    @overload
    def __call__(self, target: Callable[P, AsyncIterator[R]], /) -> Endpoint[P, AsyncIterator[R], ..., list[R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, target: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Endpoint[P, Coroutine[Any, Any, R], ..., R]: ...
    @overload
    def __call__(self, target: type[R], /) -> Endpoint[..., R, ..., Any]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> Endpoint[P, R, ..., R]: ...
    def __call__(self, target: Any, /) -> Any:
        """Return the endpoint whose handler gets the loaded engine as its parameter `engine`, or `embed`."""
        return self._make_endpoint(target)

    def _refuse_route(self, path: str = "/") -> NoReturn:
        raise DefinitionError(
            f"endpoint {self.name!r} cannot be load-balanced by a route {path!r}: engines answer jobs from a queue",
            hint="its OpenAI routes are there already, below /openai/v1; make others in a cpu_endpoint that calls it",
            where=self.definition.where,
        )

    get = post = put = patch = delete = websocket = mount = _refuse_route


class SpawnedJob(Generic[Output]):
    """One submitted job of an endpoint. It holds no connection: every method opens its own."""

    def __init__(self, endpoint: Endpoint[..., Any, ..., Output], job_id: str) -> None:
        self.id = job_id
        self._endpoint = endpoint

    def __repr__(self) -> str:
        return f"<job {self.id!r} of {self._endpoint.name!r}>"

    async def status(self) -> JobState:
        """Return the job's state now."""
        async with self._handle() as handle:
            return await handle.status()

    async def output(self, *, timeout: float | None = None) -> Output:
        """Wait for the job, at most `timeout` seconds, and return its output in the declared type.

        Raises:
            JobFailed, JobCancelled: The job ended without an output.
            JobTimedOut: The platform ended it, or `timeout` passed; in that case it goes on.
        """
        async with self._handle() as handle:
            return self._endpoint.decode(await handle.output(timeout))

    async def cancel(self) -> None:
        """Cancel the job, queued or running."""
        async with self._handle() as handle:
            await handle.cancel()

    @asynccontextmanager
    async def _handle(self) -> AsyncIterator[JobHandle]:
        from flashkit.client import Client

        async with Client() as client:
            yield client.endpoint(self._endpoint.name).job(self.id)

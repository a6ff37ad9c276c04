"""The only file that knows the runpod SDK, and the repairs that flashkit makes to it from outside.

Nothing is patched on disk. A repair is used only with the SDK versions it was verified on
(`VERIFIED_VERSIONS`); any other version runs its own loop around our handler, which is slower but right.

The repairs, with what the plain SDK does instead (read in the source of 1.12.0 and 2.0.0rc2):

- It imports `cpuinfo`, which starts processes to learn the processor's name, and `paramiko`, which only
  its command line needs: about two thirds of its import time. Both are imported when first used.
- It counts a job it took twice and then sleeps a second, so a worker does about one job a second per
  unit of concurrency. `EventScaler` has no sleeps: a free slot asks for work, a job starts when it comes.
- It asks again at once when an answer to job-take fails or is empty, hundreds of times a second.
- It posts nothing for a result that JSON cannot hold, and drops a result after three failed posts.
- After SIGTERM it waits for its long polls, up to 90 s, and loses a job that arrives meanwhile.
- It ignores the stop of a job that it has not read yet: hand-outs and stops come on two connections.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import random
import signal
import sys
import time
import types
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from flashkit.errors import ConfigurationError, ErrorReport, OutputError, SetupError, describe_exception
from flashkit.worker.job import HandBack
from flashkit.worker.posting import KeptConnections, Redirected
from flashkit.worker.runtime import Outcome, Runtime, encode_progress

log = logging.getLogger(__name__)

VERIFIED_VERSIONS: Final = frozenset({"1.12.0", "2.0.0rc2"})
"""SDK releases that the repairs were tested with."""
LAST_TAKE_SECONDS: Final = 1.0
"""After SIGTERM a job that was already on its way is still accepted for this long."""
DELIVERY_SECONDS: Final = 60.0
"""How long a result is posted again and again before the worker gives up and exits with an error."""
EARLY_STOP_SECONDS: Final = 30.0
"""How long the stop of a job that has not come yet is remembered; a hand-out is on its way for much less."""
_KNOWN_JOBS: Final = 256
"""Jobs that were here lately: a stop that comes late for one is no early one, and a retry of it has its id."""
_NOT_FOR_WORKERS: Final = ("paramiko", "tomlkit", "tarfile", "boto3")
"""Modules that the SDK imports for its command line and helpers, which a serving worker rarely uses."""
_RETRIED_STATUSES: Final = frozenset({408, 425, 429})


def serve_jobs(runtime: Runtime) -> None:
    """Run the endpoint's jobs under the runpod SDK until the platform stops the worker.

    Raises:
        ConfigurationError: This process was not started by a platform.
        SystemExit: Setup failed or a result could not be delivered; the platform starts another worker.
    """
    if "RUNPOD_WEBHOOK_GET_JOB" not in os.environ and "--test_input" not in sys.argv:
        raise ConfigurationError(
            f"endpoint {runtime.definition.spec.name!r} was started outside of a platform: "
            "RUNPOD_WEBHOOK_GET_JOB is not set",
            hint="run it on this machine with `flashkit dev APP.py`",
        )
    serverless = import_sdk()
    is_repaired = serverless.runpod_version in VERIFIED_VERSIONS and not _has_prestart_hooks(serverless)
    if is_repaired:
        _replace_scaler(serverless, runtime)
    else:
        log.warning("runpod %s is not one flashkit was verified with: using its own loop", serverless.runpod_version)
    plain = PlainHandler(runtime)
    serverless.start(
        {
            "handler": plain.stream if runtime.definition.streams else plain.run,
            "concurrency_modifier": lambda current: runtime.concurrency,
            "return_aggregate_stream": True,
        }
    )


def import_sdk() -> Any:
    """Return the module `runpod.serverless`, imported without the parts that only cost time."""
    placeholders: list[types.ModuleType] = [_LazyModule(name) for name in _NOT_FOR_WORKERS if name not in sys.modules]
    placeholders.append(_NoCpuInfo("cpuinfo"))
    sys.modules.update({placeholder.__name__: placeholder for placeholder in placeholders})
    try:
        import runpod.serverless
    finally:
        for placeholder in placeholders:  # user code that imports one of them gets the real module
            if sys.modules.get(placeholder.__name__) is placeholder:
                del sys.modules[placeholder.__name__]
    return runpod.serverless


class _LazyModule(types.ModuleType):
    """Stands for a module until somebody uses it; importlib's own LazyLoader loads on `import` already."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # the import system looks around
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _NoCpuInfo(types.ModuleType):
    """In place of `cpuinfo`, whose one use asks several processes for the processor's name."""

    @staticmethod
    def get_cpu_info() -> dict[str, str]:
        """Return nothing: the SDK's debugger then says that the name is unknown."""
        return {}


def _has_prestart_hooks(serverless: Any) -> bool:
    """True when user code registered hooks of runpod 2.x, which its own loop knows how to run."""
    module = sys.modules.get("runpod.serverless.modules.rp_prestart")
    return bool(module and module.has_prestart_hooks())


class PlainHandler:
    """Our runtime as an ordinary handler, for SDK versions whose loop is left alone and for --test_input."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._started: asyncio.Task[None] | None = None

    async def run(self, job: Mapping[str, Any]) -> Any:
        """Handle a job that has one result."""
        import orjson

        await self._start()
        outcome = await self._runtime.run(job, emit=_nowhere, report_progress=lambda value: _report(job, value))
        body: dict[str, Any] = orjson.loads(outcome.to_body())
        if "error" in body:
            # The SDK stops the worker after such a result.
            return {"error": body["error"], **({"refresh_worker": True} if outcome.restart_worker else {})}
        return body["output"]

    async def stream(self, job: Mapping[str, Any]) -> AsyncIterator[Any]:
        """Handle a job that yields partial results."""
        import orjson

        await self._start()
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

        async def run_and_close() -> Outcome:
            try:
                return await self._runtime.run(job, emit=chunks.put, report_progress=lambda value: _report(job, value))
            finally:
                await chunks.put(None)

        task = asyncio.create_task(run_and_close())
        has_yielded = False
        try:
            while (chunk := await chunks.get()) is not None:
                has_yielded = True
                yield orjson.loads(chunk)
            outcome = await task
            if outcome.error is not None:
                yield {"error": outcome.error.to_json()}
            elif not has_yielded and outcome.output not in (None, b"[]"):  # an engine's answer that is no stream
                yield orjson.loads(outcome.output)
        finally:
            task.cancel()

    async def _start(self) -> None:
        if self._started is None:
            self._started = asyncio.create_task(self._runtime.start())
        await asyncio.shield(self._started)


def _report(job: Mapping[str, Any], value: Any) -> None:
    import orjson
    from runpod.serverless import progress_update

    progress_update(dict(job), orjson.loads(encode_progress(value))["output"])


async def _nowhere(chunk: bytes) -> None:
    """Drop partial outputs of a handler that does not stream."""


def _replace_scaler(serverless: Any, runtime: Runtime) -> None:
    from runpod.serverless.modules import rp_scale

    class EventScaler(_EventLoop, rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
        """The SDK's scaler with its loops replaced; `start()` and the signal set-up stay the SDK's."""

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            self.runtime = runtime

    rp_scale.JobScaler = EventScaler


class _EventLoop:
    """Takes, runs and answers jobs, driven by events. Mixed into the SDK's `JobScaler`.

    A slot is free again as soon as the handler is done: the next job is asked for while the last result
    is still being posted. Such a job still counts as in progress, so the platform sees
    `job_in_progress=1` until its result has arrived.
    """

    runtime: Runtime
    # What the SDK's class brings along:
    is_alive: Callable[[], bool]
    kill_worker: Callable[[], None]
    monitor_stop_signals: Callable[[Any], Awaitable[None]]
    jobs_fetcher: Callable[[Any, int], Awaitable[list[Any] | None]]
    jobs_fetcher_timeout: float
    jobs_tasks: dict[str, asyncio.Task[None]]
    job_progress: Any
    _shutdown_event: asyncio.Event

    async def run(self) -> None:
        """Set up, then serve jobs until SIGTERM, SIGINT or a job that asks for a new worker."""
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules import rp_http

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: loop.call_soon_threadsafe(self.kill_worker))
        try:
            async with AsyncClientSession() as session:
                poster = ResultPoster(session, done_url=rp_http.JOB_DONE_URL, stream_url=rp_http.JOB_STREAM_URL)
                try:
                    if await self._set_up(session, poster):
                        await self._serve(session, poster)
                finally:
                    poster.close()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that comes late does not make a clean exit a death
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.runtime.has_stuck_threads:
            log.warning("a handler is still running in a thread: ending the process without it")
            logging.shutdown()
            sys.stdout.flush()
            os._exit(poster.exit_code)
        if poster.exit_code:
            raise SystemExit(poster.exit_code)

    async def _set_up(self, session: Any, poster: ResultPoster) -> bool:
        """Start the runtime; on failure tell one caller why, and let the worker exit with an error."""
        start = asyncio.create_task(self.runtime.start())
        stopping = asyncio.create_task(self._shutdown_event.wait())
        await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not start.done():
            start.cancel()
            return False
        error = start.exception()
        if error is None:
            return True
        if not isinstance(error, SetupError):
            raise error
        log.error("%s", error.report.render(), exc_info=error.__cause__)
        poster.exit_code = 1
        await self._fail_one_job(session, poster, error)
        return False

    async def _fail_one_job(self, session: Any, poster: ResultPoster, error: SetupError) -> None:
        """Take one waiting job and fail it with the reason, so that a caller learns it at once."""
        try:
            async with asyncio.timeout(5.0):
                jobs = await self.jobs_fetcher(session, 1)
        except Exception as exc:  # noqa: BLE001 - whatever the SDK raises, the set-up error is the news
            log.debug("no job to tell about the failed set-up: %s", exc)
            return
        for job in jobs or []:
            await poster.post_result(job["id"], Outcome(error=describe_exception(error, request_id=job["id"])))

    async def _serve(self, session: Any, poster: ResultPoster) -> None:
        self._prepare()
        take = asyncio.create_task(self._take_jobs(session, poster))
        stops = asyncio.ensure_future(self.monitor_stop_signals(session))
        dying = asyncio.ensure_future(self._leave_with_engine(poster))
        await self._shutdown_event.wait()
        dying.cancel()
        self.runtime.hand_back()
        await asyncio.wait([take], timeout=LAST_TAKE_SECONDS)
        take.cancel()
        while self.jobs_tasks:
            await asyncio.wait(list(self.jobs_tasks.values()))
        stops.cancel()
        await asyncio.gather(take, stops, return_exceptions=True)
        await self.runtime.stop()

    def _prepare(self) -> None:
        self._slot_freed = asyncio.Event()
        self._running = 0
        self._ended: deque[str] = deque(maxlen=_KNOWN_JOBS)
        self._early_stops: dict[str, float] = {}

    async def stop_job(self, job_id: str) -> bool:
        """Stop a job; one whose hand-out is still on its way is not started when it comes. Called by the SDK."""
        task = self.jobs_tasks.get(job_id)
        if task is not None:
            # Not at once: a task that is cancelled before its first step never enters its `try`.
            asyncio.get_running_loop().call_soon(task.cancel)
        elif job_id not in self._ended:
            now = time.monotonic()
            self._early_stops = {id_: until for id_, until in self._early_stops.items() if until > now}
            self._early_stops[job_id] = now + EARLY_STOP_SECONDS
        return task is not None

    async def _leave_with_engine(self, poster: ResultPoster) -> None:
        """Take no more jobs and exit with an error once the engine is dead: it would fail them all."""
        await self.runtime.engine_died.wait()
        poster.exit_code = 1
        self.kill_worker()

    async def _take_jobs(self, session: Any, poster: ResultPoster) -> None:
        pause = _Pause()
        while self.is_alive():
            while (free := self.runtime.concurrency - self._running) <= 0:
                self._slot_freed.clear()
                await self._slot_freed.wait()
                if not self.is_alive():
                    return
            asked_at = time.monotonic()
            jobs = await self._fetch(session, free)
            for job in jobs or []:
                self._start_job(session, poster, job)
            if jobs:
                pause.reset()
            elif time.monotonic() - asked_at < pause.SHORT_POLL_SECONDS:
                await pause.wait()

    async def _fetch(self, session: Any, free: int) -> list[Any] | None:
        try:
            # Not asyncio.timeout, which would lose jobs that come in the same round of the loop as its end.
            return await asyncio.wait_for(self.jobs_fetcher(session, free), self.jobs_fetcher_timeout)  # noqa: TID251
        except TimeoutError:
            return None
        except Exception as exc:  # noqa: BLE001 - the SDK raises plain Exception for malformed answers
            log.warning("could not ask for jobs: %s: %s", type(exc).__name__, exc)
            return None

    def _start_job(self, session: Any, poster: ResultPoster, job: Any) -> None:
        if not isinstance(job, dict) or not isinstance(job.get("id"), str):
            log.error("the platform sent something that is not a job: %.200r", job)
            return
        if job["id"] in self.jobs_tasks:
            log.warning("job %s was handed out twice; it runs once", job["id"])
            return
        if self._early_stops.pop(job["id"], 0.0) > time.monotonic():
            log.info("job %s was stopped by the platform before it came", job["id"])
            return
        self._running += 1
        self.job_progress.add(job["id"])
        self.jobs_tasks[job["id"]] = asyncio.create_task(self._run_job(poster, job))

    async def _run_job(self, poster: ResultPoster, job: dict[str, Any]) -> None:
        job_id = job["id"]
        updates = ProgressQueue(poster, job_id)
        try:
            try:
                outcome = await self.runtime.run(
                    job, emit=lambda chunk: poster.post_chunk(job_id, chunk), report_progress=updates.put
                )
            finally:
                _flush_output()
                self._running -= 1
                self._slot_freed.set()
            await updates.close()
            await poster.post_result(job_id, outcome, is_stream=self.runtime.definition.streams)
            if outcome.restart_worker or poster.exit_code:
                self.kill_worker()
        except asyncio.CancelledError:
            log.info("job %s was stopped by the platform", job_id)
        except HandBack:  # no result: the platform hands the job to another worker when this one has gone
            log.info("job %s is handed back", job_id)
        finally:
            self.job_progress.remove(job_id)
            self.jobs_tasks.pop(job_id, None)
            self._ended.append(job_id)


def _flush_output() -> None:
    """Write what the job printed without a line end, while it still is the current job."""
    sys.stdout.flush()
    sys.stderr.flush()


class _Pause:
    """Growing waits between polls that come back at once with nothing."""

    SHORT_POLL_SECONDS: Final = 0.5

    def __init__(self) -> None:
        self._seconds = 0.05

    def reset(self) -> None:
        self._seconds = 0.05

    async def wait(self) -> None:
        await asyncio.sleep(self._seconds * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, not a secret
        self._seconds = min(self._seconds * 2, 5.0)


class ProgressQueue:
    """Posts a job's progress updates one after the other, all of them before its result."""

    def __init__(self, poster: ResultPoster, job_id: str) -> None:
        self._poster = poster
        self._job_id = job_id
        self._latest: list[Any] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, value: Any) -> None:
        """Send `value` soon; a newer one replaces it if it has not been sent by then."""
        self._latest[:] = [value]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Wait until the last update has been sent."""
        if self._task is not None:
            await self._task

    async def _send(self) -> None:
        while self._latest:
            value = self._latest.pop()
            try:
                await self._poster.post_progress(self._job_id, encode_progress(value))
            except (TypeError, ValueError) as exc:
                log.warning("progress of job %s has no JSON form: %s", self._job_id, exc)


class ResultPoster:
    """Delivers results to the platform; what cannot be delivered ends in a clear FAILED or a new worker."""

    def __init__(self, session: Any, *, done_url: str, stream_url: str) -> None:
        headers = session.headers.copy()
        headers.update(_RESULT_HEADERS)
        self._kept = KeptConnections(headers)
        self._session = session
        self._done_url = done_url
        self._stream_url = stream_url
        self.exit_code = 0

    def close(self) -> None:
        """Close the connections."""
        self._kept.close()

    async def post_result(self, job_id: str, outcome: Outcome, *, is_stream: bool = False) -> None:
        """Deliver a job's final result."""
        flag = "true" if is_stream else "false"
        url = f"{self._done_url.replace('$ID', quote(job_id))}&isStream={flag}"
        refusal = await self._post(url, outcome.to_body(), job_id)
        if refusal is not None:
            await self._post(url, Outcome(error=refusal).to_body(), job_id)

    async def post_chunk(self, job_id: str, chunk: bytes) -> None:
        """Deliver one partial output.

        Raises:
            OutputError: The platform refused it.
        """
        url = f"{self._stream_url.replace('$ID', quote(job_id))}&isStream=false"
        refusal = await self._post(url, b'{"output":' + chunk + b"}", job_id)
        if refusal is not None:
            raise OutputError(refusal.message, hint=refusal.hint, details=refusal.details)

    async def post_progress(self, job_id: str, body: bytes) -> None:
        """Deliver a progress update; a refused one is not worth failing the job for."""
        await self._post(f"{self._done_url.replace('$ID', quote(job_id))}&isStream=false", body, job_id)

    async def _post(self, url: str, body: bytes, job_id: str) -> ErrorReport | None:
        """Post until delivered. Returns why the platform refused the body, None when it took it."""
        from aiohttp import ClientError

        give_up_at = time.monotonic() + DELIVERY_SECONDS
        pause = _Pause()
        while True:
            try:
                status = await self._send(url, body)
                problem = f"HTTP {status}"
                if status < 300:  # noqa: PLR2004 - any 2xx is success
                    return None
                if 400 <= status < 500 and status not in _RETRIED_STATUSES:  # noqa: PLR2004
                    return _refusal(status, len(body), job_id)
            except (ClientError, OSError) as exc:
                problem = f"{type(exc).__name__}: {exc}"
            if time.monotonic() > give_up_at:
                log.error("result of job %s could not be delivered for %g s: %s", job_id, DELIVERY_SECONDS, problem)
                self.exit_code = 1
                return None
            log.warning("result of job %s was not accepted (%s); trying again", job_id, problem)
            await pause.wait()

    async def _send(self, url: str, body: bytes) -> int:
        """Post once and return the status. Raises `OSError` or `ClientError`."""
        try:
            return await self._kept.post(url, body)
        except Redirected:
            async with self._session.post(url, data=body, headers=_RESULT_HEADERS) as response:
                await response.read()
                return int(response.status)


_RESULT_HEADERS: Final = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}
"""What the SDK sends with results (rp_http.py), although the body is JSON."""


def _refusal(status: int, size: int, job_id: str) -> ErrorReport:
    log.error("the platform refused the result of job %s (%d bytes): HTTP %d", job_id, size, status)
    return ErrorReport(
        code="result_refused",
        type="OutputError",
        message=f"the platform refused the job's result of {size:,} bytes with HTTP {status}",
        hint="return less, or store the result elsewhere and return its address",
        details={"status": status, "size_bytes": size},
        request_id=job_id,
    )

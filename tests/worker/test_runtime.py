"""The runtime: whatever user code does becomes an outcome, in the right thread and in the right order."""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from flashkit import HandlerError, cpu_endpoint, current_job
from flashkit.errors import ErrorReport, SetupError
from flashkit.settings import Settings
from flashkit.worker.runtime import Outcome, Runtime

MEGABYTE = 1024 * 1024


@asynccontextmanager
async def _started(target, settings=None, **options) -> AsyncIterator[Runtime]:
    runtime = Runtime(cpu_endpoint(name="tool", **options)(target).definition, settings or Settings())
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()


async def _run(runtime: Runtime, job_input: Any, job_id: str = "job-1", **callbacks: Any) -> Outcome:
    callbacks = {"emit": _drop, **callbacks}
    return await asyncio.create_task(runtime.run({"id": job_id, "input": job_input}, **callbacks))


async def _drop(chunk: bytes) -> None:
    """Take no notice of a chunk."""


async def _outcome(target, job_input=None, *, settings=None, **callbacks: Any) -> Outcome:
    async with _started(target, settings) as runtime:
        return await _run(runtime, job_input or {}, **callbacks)


async def _failure(target, job_input=None, **options: Any) -> ErrorReport:
    outcome = await _outcome(target, job_input, **options)
    assert outcome.error is not None
    return outcome.error


async def _until(condition, timeout=5.0):
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


def _line(function, offset=1):
    return f"test_runtime.py:{function.__code__.co_firstlineno + offset} in {function.__name__}"


class OwnBaseError(BaseException):
    """Something that `except Exception` does not catch."""


async def test_sync_handlers_run_in_a_thread_and_async_ones_on_the_loop():
    def sync():
        return threading.current_thread() is threading.main_thread()

    async def on_loop():
        return threading.current_thread() is threading.main_thread()

    assert (await _outcome(sync)).output == b"false"
    assert (await _outcome(on_loop)).output == b"true"


async def test_a_sync_handler_that_returns_an_awaitable_is_awaited():
    async def work(text):
        return text

    def tool(text):
        return work(text)

    assert (await _outcome(tool, {"text": "a"})).output == b'"a"'


async def test_a_wrapped_handler_of_any_kind_works():
    def passing(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @passing
    def plain(n: int) -> int:
        return n

    @passing
    async def coroutine(n: int) -> int:
        return n

    @passing
    def generator(n: int) -> Iterator[int]:
        yield n

    @passing
    async def async_generator(n: int) -> AsyncIterator[int]:
        yield n

    outputs = [
        (await _outcome(handler, {"n": "3"})).output for handler in (plain, coroutine, generator, async_generator)
    ]
    assert outputs == [b"3", b"3", b"[3]", b"[3]"]


async def test_a_wrapper_that_gives_something_else_than_a_generator_gives_one_chunk():
    def letters(text):
        yield from text

    @functools.wraps(letters)
    def joined(text):
        return "-".join(letters(text))

    assert (await _outcome(joined, {"text": "abc"})).output == b'["a-b-c"]'


RAISERS = {
    "an exception": (lambda: ValueError("no"), "ValueError", "no"),
    "an interrupt": (KeyboardInterrupt, "KeyboardInterrupt", "KeyboardInterrupt()"),
    "an exit": (lambda: SystemExit(3), "HandlerExit", "the handler called sys.exit(3)"),
    "a base exception": (lambda: OwnBaseError("odd"), "OwnBaseError", "odd"),
    "a cancellation": (asyncio.CancelledError, "HandlerError", "cancelled by its own code"),
    "the end of an iterator": (StopIteration, "RuntimeError", "raised StopIteration"),
    "the end of an asynchronous iterator": (StopAsyncIteration, "StopAsyncIteration", "StopAsyncIteration()"),
    "the exit of a generator": (GeneratorExit, "GeneratorExit", "GeneratorExit()"),
    "a timeout": (TimeoutError, "TimeoutError", "TimeoutError()"),
}


@pytest.mark.parametrize("what", RAISERS)
async def test_a_handler_that_raises_fails_its_job_only(what):
    make, type_name, message = RAISERS[what]

    def sync(good: bool = False):
        if not good:
            raise make()

    async def on_loop(good: bool = False):
        await asyncio.sleep(0)
        if not good:
            raise make()

    for handler in (sync, on_loop):
        async with _started(handler) as runtime:
            error = (await _run(runtime, {})).error
            assert error.type == type_name
            assert message in error.message
            assert error.where == _line(handler, 2 if handler is sync else 3)
            assert error.request_id == "job-1"
            assert (await _run(runtime, {"good": True})).output == b"null"


async def test_a_generator_that_raises_midway_keeps_what_it_yielded():
    def sync():
        yield 1
        raise ValueError("midway")

    async def on_loop():
        yield 1
        raise SystemExit(2)

    for handler, type_name in ((sync, "ValueError"), (on_loop, "HandlerExit")):
        outcome = await _outcome(handler)
        assert (outcome.output, outcome.error.type) == (b"[1]", type_name)
        assert outcome.error.where == _line(handler, 2)


async def test_a_generator_that_raises_at_once_has_no_output():
    def broken():
        raise ValueError("at once")
        yield

    outcome = await _outcome(broken)
    assert outcome.output is None
    assert outcome.error.message == "at once"


async def test_a_report_has_a_traceback_only_where_the_developer_is_the_caller():
    def broken():
        raise ValueError("no")

    assert (await _failure(broken)).details == {}
    shown = await _failure(broken, settings=Settings(show_tracebacks=True))
    assert "raise ValueError" in shown.details["traceback"]
    assert "flashkit" not in shown.details["traceback"].splitlines()[1]


async def test_a_callers_mistake_is_reported_as_such_without_a_traceback():
    def tool(text: str): ...

    error = await _failure(tool, {"txet": "a"}, settings=Settings(show_tracebacks=True))
    assert (error.code, "traceback" in error.details) == ("input_invalid", False)


@pytest.mark.parametrize(("job_id", "limit"), [("u-1", 10), ("sync-u-1", 20)])
async def test_a_result_over_the_platforms_limit_names_size_and_limit(job_id, limit):
    def big():
        return "x" * (25 * MEGABYTE)

    async with _started(big) as runtime:
        error = (await _run(runtime, {}, job_id)).error
    assert error.code == "output_invalid"
    assert f"25.0 MB is larger than the platform's limit of {limit}.0 MB" in error.message
    assert error.details["limit_bytes"] == limit * MEGABYTE


async def test_a_result_below_the_limit_of_its_route_passes():
    def big():
        return "x" * (15 * MEGABYTE)

    async with _started(big) as runtime:
        assert (await _run(runtime, {}, "sync-u-1")).error is None


async def test_a_chunk_over_the_limit_fails_the_job_and_closes_the_generator():
    closed = []

    def chunks():
        try:
            yield "small"
            yield "x" * (MEGABYTE + 1)
        finally:
            closed.append(True)

    outcome = await _outcome(chunks)
    assert outcome.output == b'["small"]'
    assert "one partial output" in outcome.error.message
    assert closed == [True]


async def test_chunks_that_are_too_much_together_fail_the_job():
    def chunks():
        for _ in range(12):
            yield "x" * (MEGABYTE - 10)

    outcome = await _outcome(chunks)
    assert "/run" in outcome.error.message
    assert len(outcome.output) < 10 * MEGABYTE


async def test_chunks_are_emitted_one_by_one_as_they_are_made():
    seen: list[Any] = []

    async def emit(chunk):
        seen.append(orjson.loads(chunk))

    async def counting():
        for number in range(3):
            yield number
            assert seen == list(range(number + 1))

    outcome = await _outcome(counting, emit=emit)
    assert (outcome.error, outcome.output) == (None, b"[0,1,2]")


async def test_a_chunk_that_cannot_be_delivered_fails_the_job_and_closes_the_generator():
    closed = []

    async def refuse(chunk):
        raise HandlerError("refused")

    async def chunks():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    assert (await _outcome(chunks, emit=refuse)).error.message == "refused"
    assert closed == [True]


async def test_cancelling_an_async_handler_runs_its_clean_up_before_the_job_is_over():
    events = []

    async def waiting():
        try:
            events.append("started")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            events.append("cleaned up")

    async with _started(waiting) as runtime:
        task = asyncio.create_task(runtime.run({"id": "j", "input": {}}, emit=_drop))
        await _until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert events == ["started", "cleaned up"]


@pytest.mark.parametrize("where", ["in the generator", "while a chunk is sent"])
async def test_cancelling_an_async_generator_runs_its_clean_up_before_the_job_is_over(where):
    events = []

    async def emit(chunk):
        events.append("sent")
        if where == "while a chunk is sent":
            await asyncio.sleep(60)

    async def chunks():
        try:
            yield 1
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            events.append("cleaned up")

    async with _started(chunks) as runtime:
        task = asyncio.create_task(runtime.run({"id": "j", "input": {}}, emit=emit))
        await _until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["sent", "cleaned up"]


async def test_a_sync_generator_is_closed_in_the_thread_that_ran_it():
    threads = []
    sending = asyncio.Event()

    async def emit(chunk):
        sending.set()
        await asyncio.sleep(60)

    def chunks():
        threads.append(threading.get_ident())
        try:
            yield 1
        finally:
            threads.append(threading.get_ident())

    async with _started(chunks) as runtime:
        task = asyncio.create_task(runtime.run({"id": "j", "input": {}}, emit=emit))
        await sending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert threads == [threads[0]] * 2
    assert threads[0] != threading.get_ident()


async def test_cancelling_a_sync_handler_waits_for_it_and_tells_it():
    events = []

    def waiting():
        events.append("started")
        while not current_job().cancelled:
            time.sleep(0.005)
        events.append("saw it")

    async with _started(waiting) as runtime:
        task = asyncio.create_task(runtime.run({"id": "j", "input": {}}, emit=_drop))
        await _until(lambda: events)
        assert runtime.has_stuck_threads
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["started", "saw it"]
        await _until(lambda: not runtime.has_stuck_threads)


async def test_a_timeout_inside_the_handler_is_not_a_cancellation_of_the_job():
    async def slow():
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    assert (await _failure(slow)).type == "TimeoutError"


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_sync_handlers_run_side_by_side_up_to_the_concurrency(concurrency):
    running = []
    most = []

    def busy():
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()

    async with _started(busy, concurrency=concurrency) as runtime:
        assert runtime.concurrency == concurrency
        await asyncio.gather(*(_run(runtime, {}, f"j{number}") for number in range(6)))
    assert max(most) == concurrency


async def test_each_of_several_jobs_sees_itself_as_the_current_one():
    async def on_loop():
        before = current_job().id
        await asyncio.sleep(0.01)
        return [before, current_job().id, await asyncio.to_thread(lambda: current_job().id)]

    def sync():
        time.sleep(0.01)
        return current_job().id, current_job().endpoint

    def generator():
        for _ in range(2):
            yield current_job().id

    for handler, expected in ((on_loop, '["{0}","{0}","{0}"]'), (sync, '["{0}","tool"]'), (generator, '["{0}","{0}"]')):
        async with _started(handler, concurrency=4) as runtime:
            outcomes = await asyncio.gather(*(_run(runtime, {}, f"j{number}") for number in range(4)))
        assert [outcome.output.decode() for outcome in outcomes] == [expected.format(f"j{n}") for n in range(4)]


def test_there_is_no_current_job_outside_of_one():
    with pytest.raises(HandlerError, match="outside of a job"):
        current_job()


async def test_progress_arrives_in_order_and_before_the_result():
    def sync():
        for number in range(3):
            current_job().progress(number)

    async def on_loop():  # never gives the loop a turn
        for number in range(3):
            current_job().progress(number)

    for handler in (sync, on_loop):
        seen: list[Any] = []
        assert (await _outcome(handler, report_progress=seen.append)).error is None
        assert seen == [0, 1, 2]


async def test_a_handler_can_ask_for_a_new_worker_also_when_it_fails():
    def restarting(fail: bool = False):
        current_job().restart_worker()
        if fail:
            raise ValueError("no")

    for fail in (False, True):
        body = orjson.loads((await _outcome(restarting, {"fail": fail})).to_body())
        assert body["stopPod"] is True
        assert ("error" in body) == fail


def test_the_body_of_an_outcome_is_what_the_platform_expects():
    error = ErrorReport(code="c", message="m \udcff")
    assert Outcome(b'{"a":1}').to_body() == b'{"output":{"a":1}}'
    assert orjson.loads(Outcome(b"[1]", error, restart_worker=True).to_body()) == {
        "output": [1],
        "error": '{"code": "c", "type": "FlashkitError", "message": "m ?"}',
        "stopPod": True,
    }


async def test_a_class_is_built_once_set_up_warmed_up_and_torn_down_in_one_thread():
    events = []

    class Model:
        def __init__(self):
            self._note("init")

        def _note(self, what):
            events.append((what, threading.get_ident()))

        def setup(self):
            self._note("setup")

        def warmup(self):
            self._note("warmup")

        def run(self):
            self._note("run")

        def teardown(self):
            self._note("teardown")

    async with _started(Model) as runtime:
        await _run(runtime, {})
        await _run(runtime, {})
    assert [what for what, _ in events] == ["init", "setup", "warmup", "run", "run", "teardown"]
    assert len({thread for _, thread in events} - {threading.get_ident()}) == 1


async def test_life_cycle_methods_may_be_async_and_share_the_jobs_loop():
    loops = []

    class Model:
        async def setup(self):
            loops.append(asyncio.get_running_loop())
            self.lock = asyncio.Lock()

        async def run(self, text: str) -> str:
            async with self.lock:
                loops.append(asyncio.get_running_loop())
                return text

        async def teardown(self):
            loops.append(asyncio.get_running_loop())

    async with _started(Model) as runtime:
        assert (await _run(runtime, {"text": "a"})).output == b'"a"'
    assert loops == [asyncio.get_running_loop()] * 3


@pytest.mark.parametrize("method", ["__init__", "setup", "warmup"])
@pytest.mark.parametrize("error", [ValueError("no weights"), SystemExit(4), KeyboardInterrupt(), OwnBaseError("odd")])
async def test_a_failing_set_up_says_which_endpoint_and_line(method, error):
    def broken(self):
        raise error

    model = type("Model", (), {method: broken, "run": lambda self: None})
    with pytest.raises(SetupError) as caught:
        async with _started(model):
            pass
    report = caught.value.report
    assert report.message.startswith("endpoint 'tool' could not be set up: ")
    assert report.where == _line(broken)
    assert report.details.get("traceback") is None


async def test_an_annotation_that_cannot_work_fails_the_set_up_and_not_each_job():
    def tool(value): ...

    tool.__annotations__["value"] = "NotThere"
    with pytest.raises(SetupError, match="'NotThere', which is not defined"):
        async with _started(tool):
            pass


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)])
async def test_a_failing_tear_down_does_not_stop_the_stop(error):
    class Sync:
        def run(self): ...

        def teardown(self):
            raise error

    class Async:
        def run(self): ...

        async def teardown(self):
            raise error

    for cls in (Sync, Async):
        async with _started(cls) as runtime:
            assert (await _run(runtime, {})).error is None


async def test_a_cancelled_set_up_is_no_failure():
    class Slow:
        async def setup(self):
            await asyncio.sleep(60)

        def run(self): ...

    runtime = Runtime(cpu_endpoint()(Slow).definition, Settings())
    task = asyncio.create_task(runtime.start())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_local_sets_an_endpoint_up_once_also_for_calls_at_the_same_time():
    built = []

    @cpu_endpoint()
    class Model:
        async def setup(self):
            await asyncio.sleep(0.01)
            built.append(self)

        def run(self, n: int) -> int:
            return n

    assert await asyncio.gather(*(Model.local(n) for n in range(5))) == list(range(5))
    assert await Model.local(n=7) == 7
    assert len(built) == 1


async def test_local_tries_a_failed_set_up_again():
    attempts = []

    @cpu_endpoint()
    class Model:
        def setup(self):
            attempts.append(1)
            if len(attempts) == 1:
                raise ConnectionError("not yet")

        def run(self) -> str:
            return "ready"

    with pytest.raises(SetupError, match="not yet"):
        await Model.local()
    assert await Model.local() == "ready"


async def test_local_raises_the_flashkit_error_or_a_handler_error_with_the_report():
    class PageMissing(HandlerError):
        def __init__(self, url, status):
            super().__init__(f"{url} answered {status}", hint="look elsewhere")

    @cpu_endpoint()
    def tool(own: bool):
        if own:
            raise PageMissing("u", 404)
        raise KeyError("x")

    with pytest.raises(PageMissing, match="u answered 404") as own:
        await tool.local(own=True)
    assert own.value.report.hint == "look elsewhere"
    with pytest.raises(HandlerError) as foreign:
        await tool.local(own=False)
    assert foreign.value.report.type == "KeyError"


async def test_local_can_be_cancelled():
    cleaned = []

    @cpu_endpoint()
    async def tool():
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tool.local(), 0.05)
    assert cleaned == [True]

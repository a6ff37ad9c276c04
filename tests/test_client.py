"""The client against servers that misbehave on purpose: what is repeated, what is raised, what is cancelled.

Real jobs on the emulator are in tests/cli and tests/emulator; here every answer is scripted, because a
healthy platform gives none of these.
"""

import asyncio
import inspect
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import orjson
import pydantic
import pytest
from aiohttp import web

from flashkit.client import Client, JobState
from flashkit.errors import (
    ConfigurationError,
    FlashkitError,
    InputError,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobTimedOut,
    PlatformError,
    RateLimited,
)
from flashkit.protocol import JobStatus
from flashkit.settings import Settings
from flashkit.transport import FOREIGN_ERRORS, RetryPolicy, describe_foreign_error

QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.02, longest_retry_after=1.0)
ENVELOPE = {"code": "input_invalid", "type": "InputError", "message": "no input", "hint": "send one"}


class Script:
    """A server on loopback that gives prepared answers, in order; the last one is given for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.times = []

    async def answer(self, request):
        self.requests.append((request.method, request.path_qs, await request.text(), dict(request.headers)))
        self.times.append(time.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if inspect.isfunction(answer):
            answer = answer(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, web.StreamResponse):
            return answer
        status, data = answer if isinstance(answer, tuple) else (200, answer)
        return web.json_response(data, status=status)

    @property
    def routes(self):
        return [f"{method} {path.partition('?')[0].removeprefix('/v2/e/')}" for method, path, _, _ in self.requests]


def hang_up(request):
    request.transport.abort()
    return web.Response()


async def hang(request):
    await asyncio.sleep(60)


@dataclass
class Platform:
    script: Script
    client: Client

    @property
    def endpoint(self):
        return self.client.endpoint("e")


@pytest.fixture
async def platform():
    """A factory: scripted answers in, a client that talks to them out."""
    runners, clients = [], []

    async def start(*answers, api_key=None, timeout_seconds=5.0, retry=QUICK):
        script = Script(*answers)
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", script.answer)
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        settings = Settings(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v2", api_key=api_key)
        client = Client(settings, timeout_seconds=timeout_seconds, retry=retry)
        clients.append(client)
        return Platform(script, client)

    yield start
    for client in clients:
        await client.close()
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def free_port(unused_tcp_port):
    return unused_tcp_port


def queued(job_id="j1"):
    return {"id": job_id, "status": "IN_QUEUE"}


def running(job_id="j1", **more):
    return {"id": job_id, "status": "IN_PROGRESS", **more}


def completed(output, job_id="j1"):
    return {
        "id": job_id,
        "status": "COMPLETED",
        "output": output,
        "delayTime": 3,
        "executionTime": 7,
        "workerId": "w1",
    }


def failed(error, job_id="j1"):
    return {"id": job_id, "status": "FAILED", "error": error}


# ---- answers and errors ------------------------------------------------------------------------------------


async def test_a_job_is_submitted_followed_and_its_output_returned(platform):
    p = await platform(queued(), running(output="half way"), completed({"answer": 42}))
    job = await p.endpoint.run({"x": 1}, execution_timeout_ms=5_000, ttl_ms=60_000, webhook="http://127.0.0.1:1/hook")
    assert (await job.status()).output == "half way"
    state = await job.wait(timeout=5)
    assert state == JobState("j1", JobStatus.COMPLETED, {"answer": 42}, None, 3, 7, "w1")
    assert p.script.requests[0][2] == (
        '{"input":{"x":1},"webhook":"http://127.0.0.1:1/hook","policy":{"executionTimeout":5000,"ttl":60000}}'
    )


@pytest.mark.parametrize("job_input", [{}, 0, "", None, [], False])
async def test_an_empty_input_is_sent_as_it_is(platform, job_input):
    p = await platform(queued())
    await p.endpoint.run(job_input)
    assert orjson.loads(p.script.requests[0][2]) == {"input": job_input}


async def test_a_pydantic_model_is_sent_as_its_json(platform):
    class Question(pydantic.BaseModel):
        text: str

    p = await platform(queued())
    await p.endpoint.run({"question": Question(text="why?")})
    assert p.script.requests[0][2] == '{"input":{"question":{"text":"why?"}}}'


async def test_an_input_that_is_not_json_is_refused_before_it_is_sent(platform):
    p = await platform(queued())
    with pytest.raises(InputError, match="cannot be sent as JSON"):
        await p.endpoint.run({"x": object()})
    assert p.script.requests == []


async def test_an_input_over_the_limit_is_refused_with_both_sizes(platform):
    p = await platform(queued())
    with pytest.raises(InputError, match=r"10,485,\d+ bytes.* 10,485,760"):
        await p.endpoint.run("x" * 10_485_755)
    assert p.script.requests == []


@pytest.mark.parametrize(
    ("status", "family"),
    [
        (400, InputError), (409, InputError), (413, InputError), (422, InputError), (401, ConfigurationError),
        (403, ConfigurationError), (404, ConfigurationError), (429, RateLimited), (500, PlatformError),
        (301, PlatformError), (405, PlatformError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", ["", "<html>", '{"error": "bare text"}', "[]"])
async def test_every_status_has_its_exception_whatever_the_body(platform, status, family, body):
    p = await platform(lambda _: web.Response(status=status, text=body))
    with pytest.raises(family) as caught:
        await p.endpoint.run({})
    assert type(caught.value) is family
    assert str(status) in caught.value.report.message


async def test_an_error_envelope_arrives_whole(platform):
    p = await platform(
        (400, {"error": {**ENVELOPE, "where": "app.py:3 in f", "details": {"n": 1}, "request_id": "r1"}})
    )
    with pytest.raises(InputError) as caught:
        await p.endpoint.run({})
    report = caught.value.report
    assert (report.message, report.hint, report.where, report.request_id) == (
        "no input",
        "send one",
        "app.py:3 in f",
        "r1",
    )
    assert dict(report.details) == {"n": 1}


async def test_404_on_a_job_means_the_job_and_404_elsewhere_the_endpoint(platform):
    p = await platform((404, {"detail": "not found"}))
    with pytest.raises(JobNotFound, match="does not know job j1"):
        await p.endpoint.job("j1").status()
    with pytest.raises(ConfigurationError):
        await p.endpoint.health()
    p.script.answers = [(404, {"error": {"code": "endpoint_not_found", "message": "no endpoint 'e'"}})]
    with pytest.raises(ConfigurationError, match="no endpoint 'e'"):
        await p.endpoint.job("j1").status()


@pytest.mark.parametrize(
    "body", ["", "nonsense", "[1]", '"text"', '{"id": "j1"}', '{"id": "j1", "status": "DREAMING"}']
)
async def test_nonsense_with_status_200_is_a_platform_error(platform, body):
    p = await platform(lambda _: web.Response(text=body))
    with pytest.raises(PlatformError):
        await p.endpoint.job("j1").status()


async def test_the_error_of_a_flashkit_worker_arrives_whole(platform):
    report = '{"code":"handler_error","type":"ValueError","message":"bad","where":"app.py:9 in f","hint":"fix it"}'
    p = await platform(failed(report))
    with pytest.raises(JobFailed, match="bad") as caught:
        await p.endpoint.job("j1").output()
    got = caught.value.report
    assert (got.type, got.message, got.where, got.hint, got.request_id) == (
        "ValueError", "bad", "app.py:9 in f", "fix it", "j1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "type_name", "message"),
    [
        (
            '{"error_type": "<class \'ValueError\'>", "error_message": "bad", "error_traceback": "T"}',
            "ValueError",
            "bad",
        ),
        ("handler: bad \ntraceback: ...", "Exception", "handler: bad \ntraceback: ..."),
        ({"message": "bad"}, "FlashkitError", "bad"),
        (["odd"], "Exception", "['odd']"),
    ],
)
async def test_errors_of_other_workers_are_read_too(platform, error, type_name, message):
    p = await platform(failed(error))
    with pytest.raises(JobFailed) as caught:
        await p.endpoint.job("j1").output()
    assert (caught.value.report.type, caught.value.report.message) == (type_name, message)


async def test_a_failure_without_a_reason_says_so(platform):
    p = await platform(failed(None))
    with pytest.raises(JobFailed, match="did not say why"):
        await p.endpoint.job("j1").output()


@pytest.mark.parametrize(("status", "family"), [("CANCELLED", JobCancelled), ("TIMED_OUT", JobTimedOut)])
async def test_a_job_that_was_stopped_raises_its_own_exception(platform, status, family):
    p = await platform({"id": "j1", "status": status})
    with pytest.raises(family, match="j1"):
        await p.endpoint.job("j1").output()


async def test_running_is_another_word_for_in_progress(platform):
    p = await platform({"id": "j1", "status": "RUNNING"})
    assert (await p.endpoint.job("j1").status()).status is JobStatus.IN_PROGRESS


async def test_retry_health_and_purge_have_their_routes(platform):
    p = await platform(queued(), {"jobs": {"inQueue": 1}}, {"removed": 3, "status": "completed"})
    assert (await p.endpoint.job("j1").retry()).status is JobStatus.IN_QUEUE
    assert (await p.endpoint.health())["jobs"] == {"inQueue": 1}
    assert await p.endpoint.purge_queue() == 3
    assert p.script.routes == ["POST retry/j1", "GET health", "POST purge-queue"]


# ---- repeating ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [(429, {}), (502, {}), (503, {}), (504, {}), hang_up])
async def test_a_read_is_repeated_after_trouble(platform, trouble):
    p = await platform(trouble, trouble, completed(1))
    assert await p.endpoint.job("j1").output() == 1


@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_a_read_is_not_repeated_after_a_plain_error(platform, status):
    p = await platform((status, {}))
    with pytest.raises(FlashkitError):
        await p.endpoint.job("j1").status()
    assert len(p.script.requests) == 1


@pytest.mark.parametrize("trouble", [(500, {}), (502, {}), (503, {}), (504, {}), hang_up])
async def test_a_submission_that_may_have_arrived_is_never_repeated(platform, trouble):
    p = await platform(trouble, queued())
    with pytest.raises(PlatformError):
        await p.endpoint.run({})
    assert len(p.script.requests) == 1


async def test_a_refused_submission_is_repeated(platform):
    p = await platform((429, {}), queued())
    assert (await p.endpoint.run({})).id == "j1"


async def test_a_submission_waits_for_a_platform_that_is_starting(free_port):
    async def answer(_request):
        return web.json_response(queued())

    async def open_later():
        await asyncio.sleep(0.3)
        await web.TCPSite(runner, "127.0.0.1", free_port).start()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    settings = Settings(base_url=f"http://127.0.0.1:{free_port}/v2")
    async with asyncio.TaskGroup() as group, Client(settings, retry=RetryPolicy(first_delay=0.2)) as client:
        group.create_task(open_later())
        assert (await client.endpoint("e").run({})).id == "j1"
    await runner.cleanup()


async def test_repeating_ends_after_five_tries(platform):
    p = await platform((503, {}))
    with pytest.raises(PlatformError, match="503"):
        await p.endpoint.job("j1").status()
    assert len(p.script.requests) == 5


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(platform, form):
    value = "0.4" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    p = await platform(
        lambda _: web.Response(status=429, headers={"Retry-After": value}),
        completed(1),
        retry=RetryPolicy(first_delay=0.01, longest_retry_after=5),
    )
    await p.endpoint.job("j1").status()
    assert p.script.times[1] - p.script.times[0] >= (0.39 if form == "seconds" else 0.8)


async def test_a_platform_that_asks_for_too_much_patience_gets_none(platform):
    p = await platform(lambda _: web.Response(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimited):
        await p.endpoint.run({})
    assert len(p.script.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-5", ""])
async def test_a_retry_after_that_makes_no_sense_is_ignored(platform, value):
    p = await platform(lambda _: web.Response(status=429, headers={"Retry-After": value}), completed(1))
    await p.endpoint.job("j1").status()


# ---- foreign exceptions ------------------------------------------------------------------------------------


async def test_a_refused_connection_says_where_and_what_to_check(free_port):
    async with Client(Settings(base_url=f"http://127.0.0.1:{free_port}/v2"), retry=QUICK) as client:
        with pytest.raises(PlatformError, match=f"cannot connect to http://127.0.0.1:{free_port}") as caught:
            await client.endpoint("e").run({})
    assert "flashkit dev" in (caught.value.report.hint or "")


async def test_silence_becomes_a_platform_error_after_the_timeout(platform):
    p = await platform(hang, timeout_seconds=0.2)
    with pytest.raises(PlatformError, match=r"did not answer within 0\.2 s"):
        await p.endpoint.run({})


@pytest.mark.parametrize("url", ["not a url", "ftp://127.0.0.1/v2", "http://"])
async def test_a_base_url_that_is_none_is_a_configuration_error(url):
    async with Client(Settings(base_url=url), retry=QUICK) as client:
        with pytest.raises(ConfigurationError, match="RUNPOD_ENDPOINT_BASE_URL"):
            await client.endpoint("e").run({})


def test_every_exception_of_aiohttp_is_translated():
    errors = [getattr(aiohttp.client_exceptions, name) for name in aiohttp.client_exceptions.__all__]
    errors = [error for error in errors if error is not aiohttp.WSMessageTypeError]  # websockets are not used
    assert len(errors) > 20
    for error in errors:
        assert issubclass(error, FOREIGN_ERRORS)


@pytest.mark.parametrize("exc", [aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError(), OSError("gone")])
def test_a_broken_connection_is_named_even_when_the_exception_has_no_words(exc):
    error = describe_foreign_error(exc, "http://127.0.0.1:1/v2/e/run", 1.0)
    assert type(error) is PlatformError
    assert error.report.message.startswith("the connection to http://127.0.0.1:1 broke: ")
    assert error.report.message[-1] != " "


# ---- the key -----------------------------------------------------------------------------------------------


async def test_the_key_is_sent_as_bearer_and_shown_nowhere(platform, caplog):
    caplog.set_level(logging.DEBUG)
    p = await platform((503, {}), (503, {}), (400, {}), api_key="very-secret")
    with pytest.raises(InputError) as caught:
        await p.endpoint.job("j1").status()
    assert p.script.requests[0][3]["Authorization"] == "Bearer very-secret"
    shown = [repr(p.client), repr(p.endpoint), repr(p.endpoint.job("j1")), str(caught.value), caplog.text]
    assert "very-secret" not in "".join([*shown, caught.value.report.to_json()])


async def test_without_a_key_no_authorization_is_sent(platform):
    p = await platform(queued())
    await p.endpoint.run({})
    assert "Authorization" not in p.script.requests[0][3]


# ---- waiting -----------------------------------------------------------------------------------------------


async def test_a_call_that_is_answered_in_time_takes_one_request(platform):
    p = await platform(completed("done"))
    assert await p.endpoint.call({"x": 1}) == "done"
    assert p.script.routes == ["POST runsync"]


async def test_a_call_polls_when_the_platform_stops_waiting(platform):
    p = await platform(running(), running(), completed("done"))
    assert await p.endpoint.call({"x": 1}) == "done"
    assert p.script.routes == ["POST runsync", "GET status/j1", "GET status/j1"]


async def test_polling_slows_down(platform):
    p = await platform(running())
    with pytest.raises(JobTimedOut):
        await p.endpoint.job("j1").wait(timeout=3)
    assert 6 <= len(p.script.requests) <= 12


async def test_a_call_that_times_out_cancels_its_job(platform):
    p = await platform(running())
    with pytest.raises(JobTimedOut, match=r"within 0\.3 s") as caught:
        await p.endpoint.call({}, timeout=0.3)
    assert caught.value.report.request_id == "j1"
    await p.client.close()
    assert p.script.routes[-1] == "POST cancel/j1"


async def test_a_call_that_times_out_before_it_has_an_id_still_cancels_its_job(platform):
    async def late(_request):
        await asyncio.sleep(0.5)
        return running()

    p = await platform(late, running())
    started = time.monotonic()
    with pytest.raises(JobTimedOut):
        await p.endpoint.call({}, timeout=0.1)
    assert time.monotonic() - started < 0.4
    await p.client.close()
    assert p.script.routes == ["POST runsync", "POST cancel/j1"]


@pytest.mark.parametrize("delay", [0.0, 0.4])
async def test_a_cancelled_call_cancels_its_job(platform, delay):
    async def answer(_request):
        await asyncio.sleep(delay)
        return running()

    p = await platform(answer, running())
    call = asyncio.ensure_future(p.endpoint.call({}))
    await asyncio.sleep(0.2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await p.client.close()
    assert p.script.routes[-1] == "POST cancel/j1"


async def test_a_call_that_could_not_be_submitted_cancels_nothing(platform):
    p = await platform((400, {"error": ENVELOPE}))
    with pytest.raises(InputError):
        await p.endpoint.call({})
    await p.client.close()
    assert p.script.routes == ["POST runsync"]


async def test_a_failed_call_cancels_nothing(platform):
    p = await platform(failed("bad"))
    with pytest.raises(JobFailed):
        await p.endpoint.call({})
    await p.client.close()
    assert p.script.routes == ["POST runsync"]


async def test_a_job_that_could_not_be_cancelled_is_logged_and_raises_nothing(platform, caplog):
    p = await platform(lambda request: web.json_response({}, status=500) if "cancel" in request.path else hang(request))
    p.script.answers.insert(0, running())
    with pytest.raises(JobTimedOut):
        await p.endpoint.call({}, timeout=0.2)
    await p.client.close()
    assert "could not cancel job j1" in caplog.text


async def test_runsync_leaves_a_job_alone_when_the_waiting_ends(platform):
    p = await platform(running())
    with pytest.raises(JobTimedOut, match="still IN_PROGRESS"):
        await p.endpoint.runsync({}, wait=0.3)
    await p.client.close()
    assert not [route for route in p.script.routes if "cancel" in route]


async def test_runsync_without_a_limit_waits_until_the_end(platform):
    p = await platform(running(), running(), completed([1, 2]))
    assert await p.endpoint.runsync({}) == [1, 2]
    assert p.script.requests[0][1].endswith("/runsync?wait=90000")


async def test_a_wait_for_a_job_that_has_no_answer_yet_raises_that_it_is_unfinished(platform):
    p = await platform(hang)
    with pytest.raises(JobTimedOut, match=r"after 0\.1 s"):
        await p.endpoint.job("j1").wait(timeout=0.1)


# ---- streams -----------------------------------------------------------------------------------------------


def chunks(status, *outputs):
    return {"status": status, "stream": [{"output": output} for output in outputs]}


async def read_all(stream):
    return [item async for item in stream]


async def test_a_stream_yields_every_partial_output_in_order(platform):
    p = await platform(
        queued(), chunks("IN_QUEUE"), chunks("IN_PROGRESS", "a", {"b": 1}), chunks("COMPLETED", None),
        chunks("COMPLETED"), completed([]),
    )  # fmt: skip
    assert await read_all(p.endpoint.stream({})) == ["a", {"b": 1}, None]
    assert "POST cancel/j1" not in p.script.routes


async def test_a_stream_of_a_handler_that_does_not_stream_yields_its_output(platform):
    p = await platform(queued(), chunks("COMPLETED"), completed({"answer": 42}))
    assert await read_all(p.endpoint.stream({})) == [{"answer": 42}]


@pytest.mark.parametrize(
    ("status", "family"), [("FAILED", JobFailed), ("CANCELLED", JobCancelled), ("TIMED_OUT", JobTimedOut)]
)
async def test_a_stream_ends_for_every_final_state_and_says_why(platform, status, family):
    p = await platform(
        queued(), chunks("IN_PROGRESS", 1), chunks(status), {"id": "j1", "status": status, "error": "bad"}
    )
    items = p.endpoint.stream({})
    assert await anext(items) == 1
    with pytest.raises(family):
        await anext(items)
    await p.client.close()
    assert "POST cancel/j1" not in p.script.routes


async def test_a_stream_that_its_reader_leaves_cancels_the_job(platform):
    p = await platform(queued(), chunks("IN_PROGRESS", 1))
    async with aclosing(p.endpoint.stream({})) as items:
        async for _ in items:
            break
    await p.client.close()
    assert p.script.routes[-1] == "POST cancel/j1"


async def test_closing_the_client_cancels_the_jobs_of_streams_that_nobody_reads_any_more(platform):
    p = await platform(queued(), chunks("IN_PROGRESS", 1))
    items = p.endpoint.stream({})
    assert await anext(items) == 1
    await p.client.close()
    assert p.script.routes[-1] == "POST cancel/j1"
    count = len(p.script.requests)
    await items.aclose()
    assert len(p.script.requests) == count


async def test_an_idle_stream_is_asked_less_and_less_and_quickly_again_after_a_chunk(platform):
    p = await platform(
        queued(), *[chunks("IN_PROGRESS")] * 7, chunks("IN_PROGRESS", "x"), chunks("IN_PROGRESS"),
        chunks("COMPLETED"), completed([]),
    )  # fmt: skip
    assert await read_all(p.endpoint.stream({})) == ["x"]
    gaps = [later - earlier for earlier, later in zip(p.script.times[1:], p.script.times[2:], strict=False)]
    assert gaps[0] < 0.1
    assert gaps[6] > 0.3
    assert gaps[7] < 0.1


async def test_many_calls_share_one_client(platform):
    async def slow(_request):
        await asyncio.sleep(0.2)
        return completed(1)

    p = await platform(slow)
    started = time.monotonic()
    assert await asyncio.gather(*(p.endpoint.call({}) for _ in range(200))) == [1] * 200
    assert time.monotonic() - started < 5


# ---- the local platform, with real workers -----------------------------------------------------------------


@pytest.fixture
async def actions(start_emulator, make_endpoint):
    emulator = await start_emulator(make_endpoint("actions", "actions"), make_endpoint("streaming", "streaming"))
    async with Client(Settings(base_url=f"{emulator.url}/v2")) as client:
        yield client


async def test_calls_streams_failures_and_cancellations_work_on_the_local_platform(actions):
    endpoint = actions.endpoint("actions")
    assert await endpoint.call({"do": "echo", "value": {"ä": [1, None]}}) == {"ä": [1, None]}
    assert await endpoint.runsync({"do": "echo", "value": 0}, wait=30) == 0
    with pytest.raises(JobFailed, match="the input made no sense") as caught:
        await endpoint.call({"do": "fail"})
    assert caught.value.report.type == "ValueError"

    job = await endpoint.run({"do": "sleep", "seconds": 60})
    assert (await job.cancel()).status is JobStatus.CANCELLED
    with pytest.raises(JobCancelled):
        await job.output(timeout=5)
    with pytest.raises(InputError):
        await job.retry()
    with pytest.raises(JobNotFound):
        await endpoint.job("no-such-job").status()
    with pytest.raises(ConfigurationError, match="actions, streaming"):
        await actions.endpoint("acts").job("no-such-job").status()
    assert (await endpoint.health())["jobs"]["completed"] == 2
    assert await endpoint.purge_queue() == 0

    parts = [part async for part in actions.endpoint("streaming").stream({"count": 3, "pause": 0.1})]
    assert parts == [{"number": 0}, {"number": 1}, {"number": 2}]
    got = []
    with pytest.raises(JobFailed, match="broke in the middle"):  # noqa: PT012
        async for part in actions.endpoint("streaming").stream({"count": 3, "fail_at": 2}):
            got.append(part)  # noqa: PERF401
    assert got == [{"number": 0}, {"number": 1}]


async def test_an_abandoned_call_is_cancelled_on_the_local_platform(actions):
    endpoint = actions.endpoint("actions")
    await endpoint.call({"do": "echo"})
    with pytest.raises(JobTimedOut):
        await endpoint.call({"do": "sleep", "seconds": 60}, timeout=1.2)
    await actions.close()
    health = await endpoint.health()
    assert (health["jobs"]["inProgress"], health["jobs"]["inQueue"]) == (0, 0)

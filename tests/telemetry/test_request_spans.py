"""Requests to load-balanced workers: their spans, and the trace that their callers bring."""

import asyncio

from starlette.testclient import TestClient

from flashkit import cpu_endpoint
from flashkit.settings import Settings
from flashkit.telemetry import Op
from flashkit.worker.http.application import HttpApplication
from tests.telemetry.test_spans import PARENT, sink  # noqa: F401 - a fixture

api = cpu_endpoint(name="api")


@api.get("/items/{number}")
async def item(number: int) -> dict[str, int]:
    if number == 0:
        raise RuntimeError("no such thing")
    return {"number": number}


def answer(path, **headers):
    async def start():
        application = HttpApplication(api.definition, Settings())
        await application.start()
        return application

    return TestClient(asyncio.run(start()), raise_server_exceptions=False).get(path, headers=headers)


def test_a_request_goes_on_in_its_callers_trace(sink):  # noqa: F811
    assert answer("/items/7", traceparent=PARENT, **{"x-request-id": "r-1"}).json() == {"number": 7}
    (span,) = sink.ended_spans
    assert (span.op, span.name, span.parent_id) == (Op.REQUEST, "GET /items/7", PARENT[36:52])
    assert span.attributes == {
        "flashkit.endpoint.name": "api", "flashkit.job.id": "r-1", "http.request.method": "GET", "url.path": "/items/7",
        "http.response.status_code": 200,
    }  # fmt: skip


def test_a_failure_is_an_error_and_a_callers_mistake_is_none(sink):  # noqa: F811
    assert answer("/items/0").status_code == 500
    assert answer("/nowhere").status_code == 404
    failed, missing = sink.ended_spans
    assert (failed.error, failed.attributes["error.type"]) == ("HTTP 500", "500")
    assert (missing.error, missing.attributes["http.response.status_code"]) == ("", 404)


def test_a_ping_has_no_span(sink):  # noqa: F811
    assert answer("/ping").status_code == 200
    assert sink.ended_spans == []

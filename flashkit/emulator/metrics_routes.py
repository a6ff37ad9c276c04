"""`GET /metrics` for Prometheus, and `POST /v1/metrics`, to which workers of this platform report by OTLP."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flashkit.emulator.admission import Admission
from flashkit.emulator.bodies import read_body
from flashkit.emulator.metrics import Metrics
from flashkit.emulator.otlp_metrics import REPORT_LIMIT_BYTES, decode_report, encode_answer
from flashkit.emulator.reports import REPORTS_PATH, Reports

METRICS_PATH: Final = "/metrics"


def metrics_routes(metrics: Metrics, reports: Reports, admission: Admission, *, token: str | None) -> list[Route]:
    """Return the routes for an ASGI application; where the platform has a key, both need it, but workers a token."""

    async def show(request: Request) -> Response:
        from flashkit.emulator.exposition import expose  # Prometheus's client is imported by the first scrape

        admission.check(request)
        content_type, body = expose(metrics, reports, accept=request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    async def take(request: Request) -> Response:
        given = request.query_params.get("token", "")
        if token is None or not hmac.compare_digest(given.encode(), token.encode()):
            admission.check(request)
        admission.check_same_origin(request)
        body = await read_body(request.receive, limit_bytes=REPORT_LIMIT_BYTES)
        report = decode_report(
            body,
            content_type=request.headers.get("content-type", ""),
            encoding=request.headers.get("content-encoding", ""),
        )
        return Response(encode_answer(reports.take(report)), media_type="application/x-protobuf")

    return [Route(METRICS_PATH, show, methods=["GET"]), Route(REPORTS_PATH, take, methods=["POST"])]

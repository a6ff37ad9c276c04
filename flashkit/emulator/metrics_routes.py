"""`GET /metrics` for Prometheus, and `POST /v1/metrics`, to which workers of this platform report by OTLP."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flashkit.emulator.admission import Admission
from flashkit.emulator.bodies import read_body
from flashkit.emulator.metrics import Metrics
from flashkit.emulator.reports import REPORT_LIMIT_BYTES, Reports, decode_report, encode_answer

METRICS_PATH: Final = "/metrics"
REPORTS_PATH: Final = "/v1/metrics"
"""Where OTLP over HTTP sends metrics, below the address of OTEL_EXPORTER_OTLP_ENDPOINT."""


def metrics_routes(metrics: Metrics, reports: Reports, admission: Admission) -> list[Route]:
    """Return the routes for an ASGI application; where the platform has a key, both need it."""

    async def show(request: Request) -> Response:
        from flashkit.emulator.exposition import expose  # Prometheus's client is imported by the first scrape

        admission.check(request)
        content_type, body = expose(metrics, reports, accept=request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    async def take(request: Request) -> Response:
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

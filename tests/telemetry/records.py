"""Spans as tests write them down: short, and with times in milliseconds."""

from flashkit.telemetry.otlp import SpanRecord

TRACE = "0af7651916cd43dd8448eb211c80319c"
BEGIN_NS = 1_800_000_000_000_000_000


def span_id(name: str) -> str:
    return name.encode().hex().rjust(16, "0")[:16]


def record(name, op="step", start=0, end=1, *, below=None, worker="w1", error="", trace=TRACE, **attributes):
    """Return a span; `end=None` for an open one. Attributes have two underscores for a dot."""
    return SpanRecord(
        trace,
        span_id(name),
        span_id(below) if below else None,
        name,
        op,
        BEGIN_NS + round(start * 1e6),
        0 if end is None else BEGIN_NS + round(end * 1e6),
        error,
        "test",
        worker,
        {key.replace("__", "."): value for key, value in attributes.items()},
    )


def job(name, start=0, end=10, *, job_id="job-1", op="job", **more):
    return record(name, op, start, end, flashkit__job__id=job_id, **more)

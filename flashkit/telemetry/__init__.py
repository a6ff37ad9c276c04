"""Spans of what a task does: jobs, steps, calls, requests to models.

Code that is worth a span says so with `span(...)`; while nobody wants spans that is one look at a variable. The seam is
in `spans`; `propagation` carries a trace from one process to the next, `exporter` brings spans to a collector, `store`
keeps them, `tree` puts them together again.
"""

from flashkit.telemetry.spans import NO_SPAN, AnySpan, Op, Recorder, Span, begin, current, enter_job, recorder, span

__all__ = ["NO_SPAN", "AnySpan", "Op", "Recorder", "Span", "begin", "current", "enter_job", "recorder", "span"]

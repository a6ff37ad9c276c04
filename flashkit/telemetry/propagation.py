"""How a trace goes from one process to the next: W3C's `traceparent`, in a job's envelope or in an HTTP header."""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
"""Name of the header, and of the key in a job's envelope."""
_SAMPLED: Final = 1
_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class TraceContext(NamedTuple):
    """Which span of which trace made a request."""

    trace_id: str
    span_id: str
    is_sampled: bool

    def to_header(self) -> str:
        """Return the value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-0{int(self.is_sampled)}"


def read_traceparent(value: object) -> TraceContext | None:
    """Return what a `traceparent` says; None for what is none, which then counts as not there, as W3C wants it."""
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    is_wrong = version == "ff" or (version == "00" and rest is not None)
    if is_wrong or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def trace_id_of_job(job_id: str) -> str:
    """Return the id of the trace that a job begins; every attempt and the platform come to the same one."""
    return hashlib.blake2b(job_id.encode(), digest_size=16, person=b"flashkit-trace").hexdigest()


def platform_span_id(endpoint: str, job_id: str) -> str:
    """Return the id of the span that the platform tells of a job."""
    name = f"{endpoint}/{job_id}".encode()
    return hashlib.blake2b(name, digest_size=8, person=b"flashkit-span").hexdigest()

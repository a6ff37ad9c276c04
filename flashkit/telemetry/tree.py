"""A trace put together again: who belongs below whom, what is still open, and which clocks disagree.

Pure: from the kept spans to rows for a terminal or a page. Spans may be missing, come from several machines, or be
written by anybody: a parent that is not there makes a root, a circle is cut, and a span of another process that lies
outside of its parent is moved into it, with the difference said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.telemetry.otlp import SpanRecord
from flashkit.telemetry.spans import Op

_TOLD_SKEW_NS: Final = 1_000_000
_HUNG_OPS: Final = (Op.STEP, Op.EFFECT, Op.TOOL, Op.CALL, Op.LLM, Op.EMBEDDING)
_OUT_OF_TIME: Final = ("job_timed_out", "deadline_exceeded")
DEEPEST: Final = 100


@dataclass(slots=True)
class Node:
    """A span in its place."""

    record: SpanRecord
    start_ns: int
    end_ns: int
    """As shown; of an open span, until when it can have run."""
    depth: int = 0
    skew_ns: int = 0
    """By how much its clock was moved to put it into its parent."""
    is_open: bool = False
    """It never said that it ended."""
    is_over: bool = False
    """It is open, and nothing can be running any more."""
    children: list[Node] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Seconds, as shown."""
        return max(0, self.end_ns - self.start_ns) / 1e9

    @property
    def is_cut_off(self) -> bool:
        """True for what ran when its process was killed."""
        return self.is_open and self.is_over

    @property
    def is_stopped(self) -> bool:
        """True for what was cancelled while it ran."""
        return not self.is_open and self.record.attributes.get("error.type") == "CancelledError"

    @property
    def is_out_of_time(self) -> bool:
        """True for a job that was ended by its time."""
        given = self.record.attributes
        return given.get("flashkit.job.status") == "TIMED_OUT" or given.get("error.type") in _OUT_OF_TIME


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace."""

    trace_id: str
    roots: tuple[Node, ...]
    start_ns: int
    end_ns: int

    def nodes(self) -> Iterator[Node]:
        """Yield all spans, parents before their children."""
        stack = list(reversed(self.roots))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    @property
    def hung(self) -> Node | None:
        """What was running when the task was ended from outside: the innermost open step, call or request.

        A handler that runs out of time may still cancel what it waits for; then that is what hung.
        """
        cut = [node for node in self.nodes() if node.is_cut_off]
        if not cut and any(node.is_out_of_time for root in self.roots for node in (root, *root.children)):
            cut = [node for node in self.nodes() if node.is_stopped]
        ended = {id(node) for node in cut}
        inner = [node for node in cut if not any(id(child) in ended for child in node.children)]
        named = [node for node in inner if node.record.op in _HUNG_OPS]
        return max(named or inner, key=lambda node: (node.depth, node.start_ns), default=None)

    @property
    def skewed(self) -> dict[str, int]:
        """Workers whose clocks disagree, with the largest difference in nanoseconds."""
        found: dict[str, int] = {}
        for node in self.nodes():
            if abs(node.skew_ns) >= _TOLD_SKEW_NS:
                worker = node.record.worker_id or node.record.service or "?"
                found[worker] = max(found.get(worker, 0), abs(node.skew_ns))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the trace as JSON shows it: rows in order, with their depth."""
        hung = self.hung
        return {
            "trace_id": self.trace_id,
            "start_ns": self.start_ns,
            "duration_s": max(0, self.end_ns - self.start_ns) / 1e9,
            "hung": None if hung is None else hung.record.span_id,
            "message": describe_end(self),
            "skew_ms": {worker: round(skew / 1e6, 3) for worker, skew in self.skewed.items()},
            "spans": [_row(node, self.start_ns) for node in self.nodes()],
        }


def build_trace(records: Sequence[SpanRecord], *, now_ns: int) -> Trace:
    """Put the spans of one trace together.

    Args:
        records: At least one.
        now_ns: Until when an open span whose task still runs is shown.
    """
    nodes = {
        record.span_id: Node(record, record.start_ns, record.end_ns, is_open=not record.end_ns) for record in records
    }
    parents = _parents_of(nodes)
    for span_id, node in nodes.items():
        if (parent := parents.get(span_id)) is not None:
            nodes[parent].children.append(node)
    roots = sorted((node for span_id, node in nodes.items() if parents.get(span_id) is None), key=_order)
    last_ns = max((record.end_ns or record.start_ns) for record in records)
    later = _next_attempts(roots)
    for root in roots:
        _close(root, over_ns=later.get(id(root)), now_ns=max(now_ns, last_ns))
        _place(root, depth=0)
    everything = [node for root in roots for node in _walk(root)]
    start_ns = min(node.start_ns for node in everything)
    return Trace(records[0].trace_id, tuple(roots), start_ns, max(node.end_ns for node in everything))


def _parents_of(nodes: Mapping[str, Node]) -> dict[str, str | None]:
    """Return each span's parent, where it is there; jobs and starts below what the platform says of the job."""
    platform = {node.record.job_id: span_id for span_id, node in nodes.items() if node.record.op == Op.PLATFORM}
    parents: dict[str, str | None] = {}
    for span_id, node in nodes.items():
        record = node.record
        parent = record.parent_id if record.parent_id in nodes and record.parent_id != span_id else None
        if record.op == Op.JOB and record.job_id in platform:
            parent = platform[record.job_id]
        elif record.op == Op.COLD_START and parent is not None:
            parent = platform.get(nodes[parent].record.job_id, parent)
        parents[span_id] = parent
    for span_id in nodes:
        _cut_circle(span_id, parents)
    return parents


def _cut_circle(span_id: str, parents: dict[str, str | None]) -> None:
    """Make a root of a span that is its own ancestor, or that lies deeper than anybody could show."""
    above, steps = parents[span_id], 0
    while above is not None:
        steps += 1
        if above == span_id or steps > DEEPEST:
            parents[span_id] = None
            return
        above = parents[above]


def _close(node: Node, *, over_ns: int | None, now_ns: int) -> None:
    """Say of open spans until when they can have run: to the end of what they are in, or to now."""
    stack: list[tuple[Node, int | None]] = [(node, over_ns)]
    while stack:
        each, over = stack.pop()
        if each.is_open and each.record.op == Op.PLATFORM:
            over = None  # the platform would say if it were over
        if each.is_open:
            each.is_over = over is not None
            each.end_ns = max(each.start_ns, over if over is not None else now_ns)
        ends = over if each.is_open else each.end_ns
        later = _next_attempts(each.children)
        stack.extend((child, later.get(id(child), ends)) for child in each.children)


def _next_attempts(nodes: Sequence[Node]) -> dict[int, int]:
    """Return when the next attempt at the same job began, by the attempt's identity: then this one is over."""
    attempts = sorted(
        (node for node in nodes if node.record.op == Op.JOB), key=lambda node: (node.record.job_id, *_order(node))
    )
    pairs = itertools.pairwise(attempts)
    return {id(job): following.start_ns for job, following in pairs if job.record.job_id == following.record.job_id}


def _place(root: Node, *, depth: int) -> None:
    """Order children, and move those of other processes into their parents."""
    stack = [(root, depth)]
    while stack:
        node, level = stack.pop()
        node.depth = level
        for child in node.children:
            _clamp(child, node)
            stack.append((child, level + 1))
        node.children.sort(key=_order)


def _clamp(child: Node, parent: Node) -> None:
    if child.record.worker_id == parent.record.worker_id or parent.record.op == Op.PLATFORM or child.is_open:
        return
    shift = 0
    if child.start_ns < parent.start_ns:
        shift = parent.start_ns - child.start_ns
    elif child.end_ns > parent.end_ns and not (parent.is_open or parent.record.error):
        shift = -min(child.end_ns - parent.end_ns, child.start_ns - parent.start_ns)
    if shift:
        for node in _walk(child):
            node.start_ns += shift
            node.end_ns += shift
        child.skew_ns = shift
    if child.end_ns > parent.end_ns and not (parent.is_open or parent.record.error):
        child.end_ns = max(child.start_ns, parent.end_ns)


def _walk(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        each = stack.pop()
        yield each
        stack.extend(each.children)


def _order(node: Node) -> tuple[int, str]:
    return node.start_ns, node.record.span_id


def describe_end(trace: Trace) -> str:
    """Return what stopped a task, in a sentence; empty for one that ended by itself or still runs."""
    hung = trace.hung
    if hung is None:
        return ""
    what = {Op.TOOL: "tool", Op.CALL: "call of", Op.LLM: "request", Op.EMBEDDING: "request"}.get(
        Op(hung.record.op) if hung.record.op in list(Op) else Op.STEP, "step"
    )
    ended = next((node.record for node in trace.roots if node.record.op == Op.PLATFORM and node.record.error), None)
    why = f"; {ended.error}" if ended else ""
    how = "never ended" if hung.is_open else "was stopped"
    return f"{what} {hung.record.name!r} was running for {hung.duration_s:.1f} s and {how}{why}"


def _row(node: Node, start_ns: int) -> dict[str, Any]:
    record = node.record
    return {
        "span_id": record.span_id,
        "depth": node.depth,
        "name": record.name,
        "op": record.op,
        "start_s": (node.start_ns - start_ns) / 1e9,
        "duration_s": node.duration_s,
        "is_open": node.is_open,
        "is_cut_off": node.is_cut_off,
        "is_stopped": node.is_stopped,
        "skew_ms": round(node.skew_ns / 1e6, 3),
        "error": record.error,
        "service": record.service,
        "worker_id": record.worker_id,
        "attributes": dict(record.attributes),
    }

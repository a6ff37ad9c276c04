"""The metrics that flashkit exports, each with its name, unit, labels and buckets: one list for everybody.

Workers report by OpenTelemetry, whose names have dots and whose units stand apart; Prometheus has both in one name.
The names here are OpenTelemetry's, those of language models are of its conventions for generative AI, and
`prometheus_name` says what becomes of them, by the rules of OpenTelemetry's own translation. The local platform, the
worker's recorder, the Grafana dashboard's test, the alerts' test and the documentation read this list, so a metric
that is not here is exported by nobody.

A label never holds the id of a session, a job or a worker: there would be a new series for each. A label's values are
a closed set, or free text that `LabelGuard` bounds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

OTHER: Final = "other"
"""The value of a label for everything that is one too many, or not in its set."""
MOST_SERIES: Final = 100
"""Series of one metric of one endpoint, before free labels become `other`."""
LONGEST_VALUE: Final = 80
"""Characters of a label's value."""
_MOST_KNOWN: Final = 2_000

SECONDS_OF_CALLS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
"""Buckets of what takes from milliseconds to minutes."""
SECONDS_OF_TOKENS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
"""Buckets of the time to the first token: fine around the second that people notice."""
SECONDS_OF_STARTS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 420.0, 900.0)
"""Buckets of starts; the platform gives up on one after 420 s."""
TOKENS: Final = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)
"""Buckets of numbers of tokens, those of the conventions as far as they are used."""


class Kind(StrEnum):
    """How values of a metric are put together."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Who measures it."""

    WORKER = "worker"
    PLATFORM = "platform"
    """`flashkit dev`, from its queue, its scaler and the catalogue's prices."""


class Across(StrEnum):
    """What a gauge of an endpoint is, of those of its workers."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Label:
    """One label, by OpenTelemetry's name of the attribute."""

    name: str
    values: tuple[str, ...] | None = None
    """All that it may be besides empty and `other`; None for free text."""

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus."""
        return self.name.replace(".", "_")


@dataclass(frozen=True)
class Metric:
    """One metric; its series also have the label `endpoint`."""

    name: str
    kind: Kind
    source: Source
    unit: str
    """By UCUM, as OpenTelemetry has it: `s`, `By`, `1`, `{token}`; empty where the name says it."""
    words: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Across = Across.SUM

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus, as `rate()` and the like want it; of a histogram, without `_bucket` and so on."""
        name = self.name.replace(".", "_")
        unit = _UNITS.get(self.unit, "")
        if unit and not name.endswith(f"_{unit}") and not (unit == "ratio" and self.kind is not Kind.GAUGE):
            name = f"{name}_{unit}"
        return f"{name}_total" if self.kind is Kind.COUNTER else name

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels, by OpenTelemetry."""
        return tuple(label.name for label in self.labels)

    @cached_property
    def sample_names(self) -> tuple[str, ...]:
        """The names of its samples in Prometheus."""
        name = self.prometheus_name
        ends = ("_bucket", "_sum", "_count") if self.kind is Kind.HISTOGRAM else ("",)
        return tuple(f"{name}{end}" for end in ends)


_UNITS: Final = {"s": "seconds", "By": "bytes", "1": "ratio"}

_MODEL: Final = Label("gen_ai.request.model")
_OPERATION: Final = Label(
    "gen_ai.operation.name", ("chat", "text_completion", "embeddings", "generate_content", "execute_tool")
)
_ERROR: Final = Label("error.type")
_OUTCOME: Final = Label("outcome", ("ok", "error"))

METRICS: Final = (
    # What workers report.
    Metric(
        "gen_ai.client.operation.duration", Kind.HISTOGRAM, Source.WORKER, "s",
        "Time that one call of a language or embedding model took.", (_OPERATION, _MODEL, _ERROR), SECONDS_OF_CALLS,
    ),
    Metric(
        "gen_ai.client.token.usage", Kind.HISTOGRAM, Source.WORKER, "{token}",
        "Tokens of one call, those of the prompt and those of the answer.",
        (Label("gen_ai.token.type", ("input", "output")), _OPERATION, _MODEL), TOKENS,
    ),
    Metric(
        "gen_ai.server.time_to_first_token", Kind.HISTOGRAM, Source.WORKER, "s",
        "Time from a request's arrival at the engine to its first token.", (_MODEL,), SECONDS_OF_TOKENS,
    ),
    Metric(
        "flashkit.engine.kv_cache.usage", Kind.GAUGE, Source.WORKER, "1",
        "Share of the KV cache that is in use; of several workers the fullest.", (), (), Across.MAX,
    ),
    Metric(
        "flashkit.engine.requests", Kind.GAUGE, Source.WORKER, "{request}",
        "Requests that the engine has now.",
    ),
    Metric(
        "flashkit.session.step.duration", Kind.HISTOGRAM, Source.WORKER, "s",
        "Time that one step of a session took.",
        (Label("kind", ("step", "call", "effect", "event")), _OUTCOME), SECONDS_OF_CALLS,
    ),
    Metric(
        "flashkit.tool.calls", Kind.COUNTER, Source.WORKER, "{call}",
        "Tools that sessions used: functions that ran as steps or effects, and calls of CPU endpoints.",
        (Label("tool"), _OUTCOME),
    ),
    Metric(
        "flashkit.session.turns", Kind.COUNTER, Source.WORKER, "{turn}",
        "Turns of sessions that ended, by how: completed ones, failed ones, and those that wait for an event.",
        (Label("outcome", ("completed", "failed", "waiting", "over_budget", "handed_back")),),
    ),
    Metric(
        "flashkit.session.turn.tokens", Kind.HISTOGRAM, Source.WORKER, "{token}",
        "Tokens that one completed turn of a session has used.", (), TOKENS,
    ),
    Metric(
        "flashkit.session.cost.usd", Kind.COUNTER, Source.WORKER, "",
        "What sessions have spent, as their code counts it.",
    ),
    Metric(
        "flashkit.worker.job.duration", Kind.HISTOGRAM, Source.WORKER, "s",
        "Time that a job took in its worker.", (_OUTCOME,), SECONDS_OF_CALLS,
    ),
    Metric(
        "flashkit.worker.start.duration", Kind.HISTOGRAM, Source.WORKER, "s",
        "Time that a worker's start took, as it measures it; their number is that of cold starts.",
        (), SECONDS_OF_STARTS,
    ),
    Metric(
        "flashkit.telemetry.dropped", Kind.COUNTER, Source.WORKER, "{item}",
        "Spans and reports of metrics that a worker could not deliver.",
        (Label("signal", ("spans", "metrics")),),
    ),
    # What the local platform knows by itself.
    Metric("flashkit.queue.depth", Kind.GAUGE, Source.PLATFORM, "{job}", "Jobs and requests that wait for a worker."),
    Metric("flashkit.jobs.running", Kind.GAUGE, Source.PLATFORM, "{job}", "Jobs and requests that workers have."),
    Metric(
        "flashkit.jobs", Kind.COUNTER, Source.PLATFORM, "{job}", "Jobs that ended, by their status.",
        (Label("status", ("COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED")),),
    ),
    Metric(
        "flashkit.requests", Kind.COUNTER, Source.PLATFORM, "{request}",
        "Requests to load-balanced endpoints, by how they ended.", (_OUTCOME,),
    ),
    Metric(
        "flashkit.job.queue.delay", Kind.HISTOGRAM, Source.PLATFORM, "s",
        "Time that a job waited in the queue.", (), SECONDS_OF_CALLS,
    ),
    Metric(
        "flashkit.job.execution.duration", Kind.HISTOGRAM, Source.PLATFORM, "s",
        "Time from a job's hand-out to its end.", (), SECONDS_OF_CALLS,
    ),
    Metric(
        "flashkit.job.tokens", Kind.COUNTER, Source.PLATFORM, "{token}",
        "Tokens that outputs of jobs count in `usage`.", (Label("gen_ai.token.type", ("input", "output")),),
    ),
    Metric(
        "flashkit.workers", Kind.GAUGE, Source.PLATFORM, "{worker}", "Workers by their state.",
        (
            Label(
                "state",
                ("idle", "running", "initializing", "starting", "draining", "frozen", "unhealthy", "throttled"),
            ),
        ),
    ),
    Metric(
        "flashkit.workers.limit", Kind.GAUGE, Source.PLATFORM, "{worker}", "The endpoint's bounds of workers.",
        (Label("bound", ("min", "max")),),
    ),
    Metric(
        "flashkit.cold_start.duration", Kind.HISTOGRAM, Source.PLATFORM, "s",
        "Time from the wish for a worker until it was ready; their number is that of cold starts.",
        (), SECONDS_OF_STARTS,
    ),
    Metric(
        "flashkit.cost.usd_per_hour", Kind.GAUGE, Source.PLATFORM, "",
        "What the workers that are there would cost on Runpod, at the catalogue's prices; GPU endpoints only.",
    ),
    Metric(
        "flashkit.cost.usd", Kind.COUNTER, Source.PLATFORM, "",
        "What the workers so far would have cost on Runpod; GPU endpoints only.",
    ),
    Metric(
        "flashkit.reports.dropped", Kind.COUNTER, Source.PLATFORM, "{item}",
        "Values in reports of workers that the platform could not use, by why. Its endpoint is empty.",
        (Label("reason", ("unknown_endpoint", "unknown_metric", "unsupported", "too_many_series")),),
    ),
)  # fmt: skip
"""All of them."""

BY_NAME: Final[Mapping[str, Metric]] = {metric.name: metric for metric in METRICS}


def clean_value(label: Label, value: object) -> str:
    """Return a label's value with nothing in it that would surprise: short, printable, and of the set if it has one."""
    text = "".join(character if character.isprintable() else " " for character in str(value)[:LONGEST_VALUE]).strip()
    if label.values is None or not text:
        return text
    return text if text in label.values else OTHER


class LabelGuard:
    """Keeps the number of series small, whatever values come: the first so many stay, later ones become `other`.

    Args:
        most: Series of one metric; those of closed labels alone are not counted as too many.
    """

    def __init__(self, *, most: int = MOST_SERIES) -> None:
        self._most = most
        self._seen: dict[str, set[tuple[str, ...]]] = {}
        self._known: dict[tuple[str, tuple[object, ...]], tuple[str, ...]] = {}
        """What came of values that were given before: looked up for every span that ends."""
        self.folded = 0
        """How often a value was one too many."""

    def values(self, metric: Metric, given: Mapping[str, object]) -> tuple[str, ...]:
        """Return the values of the metric's labels, in their order; labels that it does not have are left out."""
        raw = tuple([given.get(name, "") for name in metric.label_names])
        try:
            known = self._known.get((metric.name, raw))
        except TypeError:  # a list, say
            return self._find(metric, tuple(map(str, raw)))
        return self._find(metric, raw) if known is None else known

    def _find(self, metric: Metric, raw: tuple[object, ...]) -> tuple[str, ...]:
        values = tuple(clean_value(label, value) for label, value in zip(metric.labels, raw, strict=True))
        seen = self._seen.setdefault(metric.name, set())
        if values in seen or len(seen) < self._most or all(label.values is not None for label in metric.labels):
            seen.add(values)
            if len(self._known) < _MOST_KNOWN and all(len(str(value)) <= LONGEST_VALUE for value in raw):
                self._known[metric.name, raw] = values
            return values
        self.folded += 1
        return tuple(
            value if label.values is not None else OTHER for label, value in zip(metric.labels, values, strict=True)
        )


def sample_names(metrics: Iterable[Metric] = METRICS) -> frozenset[str]:
    """Return the names of all samples that Prometheus gets."""
    return frozenset(name for metric in metrics for name in metric.sample_names)


class Histogram:
    """How many values were at most as large as each bound, and their sum.

    Args:
        bounds: Upper bounds, ascending; what is larger is counted after the last one.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count values that somebody else has sorted by the same bounds."""
        self.counts = [mine + more for mine, more in zip(self.counts, counts, strict=True)]
        self.sum += total

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def copy(self) -> Histogram:
        """Return one with the same values."""
        return self.since(None)

    def since(self, earlier: Histogram | None) -> Histogram:
        """Return what was counted since an earlier copy."""
        made = Histogram(self.bounds)
        before, total = (made.counts, 0.0) if earlier is None else (earlier.counts, earlier.sum)
        made.counts = [now - then for now, then in zip(self.counts, before, strict=True)]
        made.sum = self.sum - total
        return made

"""What the figures of the last minutes advise: read from the samples, worked out at most every few seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flashkit.catalog import usd_per_second
from flashkit.emulator.metrics import SERIES, Metrics, Sample
from flashkit.emulator.platform import Platform
from flashkit.emulator.reports import Reports
from flashkit.spec import EndpointSpec
from flashkit.telemetry.advice import Advice, EndpointSituation, Moment, advise

WINDOW_SECONDS: Final = 300.0
FRESH_SECONDS: Final = 5.0
_SECONDS_PER_HOUR: Final = 3600
_PLACES: Final = {column: place for place, column in enumerate(("at", *SERIES))}


class Adviser:
    """Knows the advice of this moment.

    Args:
        platform: What is advised on.
        metrics: Its figures.
        reports: What its workers tell.
        clock: Gives the time.
    """

    def __init__(self, platform: Platform, metrics: Metrics, reports: Reports, *, clock: Callable[[], float]) -> None:
        self._platform = platform
        self._metrics = metrics
        self._reports = reports
        self._clock = clock
        self._advice: list[Advice] = []
        self._known_until = 0.0

    def current(self) -> list[Advice]:
        """Return the advice, the most urgent first."""
        now = self._clock()
        if now >= self._known_until:
            self._known_until = now + FRESH_SECONDS
            self._advice = advise(self.situations())
        return self._advice

    def situations(self) -> list[EndpointSituation]:
        """Return what is known of every endpoint over the last minutes."""
        since = self._clock() - WINDOW_SECONDS
        series = self._metrics.series(after=since)
        return [
            self._situation_of(name, spec, series.get(name, []), since)
            for name, spec in self._platform.specs.items()
        ]  # fmt: skip

    def _situation_of(self, name: str, spec: EndpointSpec, samples: list[Sample], since: float) -> EndpointSituation:
        started = self._metrics.figures(name).started
        return EndpointSituation(
            endpoint=name,
            kind=spec.kind.value,
            min_workers=spec.workers.min,
            max_workers=spec.workers.max,
            moments=[_moment_of(sample) for sample in samples],
            jobs=round(sum(_read(sample, "finished") + _read(sample, "failed") for sample in samples)),
            cold_starts=sum(at >= since for at in started),
            throttled=self._platform.health(name)["workers"]["throttled"],
            kv_cache_usage=self._reports.gauge("flashkit.engine.kv_cache.usage", name),
            usd_per_worker_hour=_hourly(spec),
        )


def _moment_of(sample: Sample) -> Moment:
    columns = ("at", "queued", "running", "idle", "busy", "starting")
    return Moment(*(_read(sample, column) for column in columns))


def _read(sample: Sample, column: str) -> float:
    return sample[_PLACES[column]] or 0.0


def _hourly(spec: EndpointSpec) -> float | None:
    price = usd_per_second(spec.gpu[0]) if spec.gpu else None
    return None if price is None else price * spec.gpu_count * _SECONDS_PER_HOUR

"""What weights cost in an image, on a network volume and in the platform's cache: time and money, side by side.

Pure arithmetic on the dated facts of `catalog`. Every estimate names its formula and where its numbers are from, as
most of them are a page's claim or one person's measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit import catalog
from flashkit.catalog import GpuPool, GpuType
from flashkit.protocol import PlatformDefaults

_DAYS: Final = 365 / 12
_GB: Final = 1e9
_HEADROOM: Final = 1.1
"""A volume is planned a tenth larger than what it holds."""
_VOLUME_PAGE: Final = "docs.runpod.io/storage/network-volumes"
_PRICE_PAGE: Final = "docs.runpod.io/serverless/pricing"
_CACHE_PAGE: Final = "docs.runpod.io/serverless/endpoints/model-caching"
_PULL_PAGE: Final = "dev.to/sergeyshmakov/how-runpod-flashboot-actually-works-4-request-test-49of"


@dataclass(frozen=True, slots=True)
class Span:
    """From so much to so much."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The middle of both."""
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Option:
    """One place to have the weights, and what follows from it."""

    place: str
    first_start_seconds: Span
    """Bringing the weights into memory on a host that has never had them."""
    later_start_seconds: Span
    """The same on a host that has had them."""
    storage_usd_per_month: float
    starts_usd_per_month: float | None
    """Workers paid while they read the weights; None where no price of the GPU is known."""
    formulas: dict[str, str]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def usd_per_month(self) -> float:
        """Storage and starts together."""
        return self.storage_usd_per_month + (self.starts_usd_per_month or 0.0)


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """The options for one set of models."""

    names: tuple[str, ...]
    size_bytes: int
    starts_per_day: float
    gpu: str | None
    gpu_usd_per_second: float | None
    read_on: str
    options: tuple[Option, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "names": self.names, "size_bytes": self.size_bytes, "starts_per_day": self.starts_per_day, "gpu": self.gpu,
            "gpu_usd_per_second": self.gpu_usd_per_second, "facts_read_on": self.read_on,
            "options": [_option_dict(option) for option in self.options],
        }  # fmt: skip


def plan_weights(
    names: tuple[str, ...], size_bytes: int, *, starts_per_day: float, gpu: GpuType | GpuPool | None = None
) -> WeightsPlan:
    """Return what each place means for models of this size.

    Args:
        names: The models.
        size_bytes: All of them together.
        starts_per_day: Cold starts of workers, half of them on hosts that have never had the weights.
        gpu: What the workers run on, for the price of a second.
    """
    price = None if gpu is None else catalog.usd_per_second(gpu)
    calculation = _Calculation(size_bytes / _GB, starts_per_day * _DAYS, price)
    options = (calculation.baked(), calculation.volume(), calculation.fast_volume(), calculation.cached())
    return WeightsPlan(
        names, size_bytes, starts_per_day, None if gpu is None else gpu.value, price, catalog.READ_ON, options
    )


@dataclass(frozen=True, slots=True)
class _Calculation:
    size_gb: float
    starts: float
    """A month."""
    usd_per_second: float | None

    def baked(self) -> Option:
        pull, disk = self._seconds(catalog.IMAGE_PULL_MB_PER_SECOND), self._seconds(catalog.LOCAL_DISK_MB_PER_SECOND)
        return self._option(
            "baked into the image",
            first=Span(pull, pull),
            later=Span(disk, disk),
            storage=self.size_gb * catalog.CONTAINER_DISK_USD_PER_GB_MONTH,
            formulas={
                "first_start_seconds": f"size / {catalog.IMAGE_PULL_MB_PER_SECOND} MB/s, the pull of the image",
                "later_start_seconds": f"size / {catalog.LOCAL_DISK_MB_PER_SECOND:,} MB/s, the host's disk (chosen)",
                "storage_usd_per_month": f"size x ${catalog.CONTAINER_DISK_USD_PER_GB_MONTH:.2f}/GB-month of container "
                "disk, for one worker that is always there",
            },
            sources=(_PULL_PAGE, _PRICE_PAGE),
            notes=(
                "needs no network at start; a new model is a new image",
                "whether the pull itself is billed is not documented; it is counted as if",
            ),
        )

    def volume(self, factor: float = 1.0, place: str = "network volume") -> Option:
        rates = catalog.VOLUME_MB_PER_SECOND
        span = Span(self._seconds(rates.high * factor), self._seconds(rates.low * factor))
        size = min(max(math.ceil(self.size_gb * _HEADROOM), catalog.VOLUME_SIZE_GB.low), catalog.VOLUME_SIZE_GB.high)
        return self._option(
            place,
            first=span,
            later=span,
            storage=catalog.volume_usd_per_month(size),
            formulas={
                "first_start_seconds": f"size / {rates.low * factor:g}-{rates.high * factor:g} MB/s, at every start",
                "later_start_seconds": "the same: the host keeps nothing that can be relied on",
                "storage_usd_per_month": f"{size:g} GB (size + 10 %, at least {catalog.VOLUME_SIZE_GB.low:g}) x "
                f"{_volume_prices()}",
            },
            sources=(_VOLUME_PAGE,),
            notes=(
                "workers run in the volume's data centre only; one volume for each further one, filled by itself",
                *self._too_large(),
            ),
        )

    def fast_volume(self) -> Option:
        option = self.volume(catalog.FAST_VOLUME_FACTOR, "network volume, HIGH_PERFORMANCE")
        note = "up to 3 times the throughput is promised; its price was not found, the standard one is used"
        return Option(
            option.place, option.first_start_seconds, option.later_start_seconds, option.storage_usd_per_month,
            option.starts_usd_per_month, option.formulas, option.sources, (*option.notes, note),
        )  # fmt: skip

    def cached(self) -> Option:
        disk = self._seconds(catalog.LOCAL_DISK_MB_PER_SECOND)
        return self._option(
            "platform's model cache",
            first=Span(disk, disk),
            later=Span(disk, disk),
            storage=0.0,
            formulas={
                "first_start_seconds": f"size / {catalog.LOCAL_DISK_MB_PER_SECOND:,} MB/s, the host's disk (chosen); "
                "the platform brings the model before the worker starts",
                "later_start_seconds": "the same",
                "storage_usd_per_month": "0: the download is not billed, and no price of storage is named",
            },
            sources=(_CACHE_PAGE,),
            notes=(
                "models of the hub only, one for an endpoint; every file of the repository is fetched",
                "how long a first worker waits for the download is not documented, and it is not in these seconds",
            ),
        )

    def _option(
        self,
        place: str,
        *,
        first: Span,
        later: Span,
        storage: float,
        formulas: dict[str, str],
        sources: tuple[str, ...],
        notes: tuple[str, ...],
    ) -> Option:
        paid = (first.middle + later.middle) / 2 * self.starts
        starts = None if self.usd_per_second is None else paid * self.usd_per_second
        formulas = formulas | {
            "starts_usd_per_month": "starts a month x mean of first and later start x the GPU's flex price a second"
        }
        limit = PlatformDefaults().init_timeout
        warning = f"the first start may pass the platform's limit of {limit:.0f} s: raise RUNPOD_INIT_TIMEOUT"
        more = (warning,) if first.high > limit else ()
        return Option(place, first, later, storage, starts, formulas, sources, (*notes, *more))

    def _seconds(self, mb_per_second: float) -> float:
        return self.size_gb * 1000 / mb_per_second

    def _too_large(self) -> tuple[str, ...]:
        limit = catalog.VOLUME_SIZE_GB.high
        return (f"a volume has {limit:,.0f} GB at most: this does not fit",) if self.size_gb > limit else ()


def _volume_prices() -> str:
    (limit, price), (_, above) = catalog.VOLUME_USD_PER_GB_MONTH
    return f"${price:.2f}/GB-month, ${above:.2f} above {limit:,} GB"


def _option_dict(option: Option) -> dict[str, Any]:
    return {
        "place": option.place,
        "first_start_seconds": [option.first_start_seconds.low, option.first_start_seconds.high],
        "later_start_seconds": [option.later_start_seconds.low, option.later_start_seconds.high],
        "storage_usd_per_month": option.storage_usd_per_month,
        "starts_usd_per_month": option.starts_usd_per_month,
        "usd_per_month": option.usd_per_month,
        "formulas": option.formulas,
        "sources": option.sources,
        "notes": option.notes,
    }

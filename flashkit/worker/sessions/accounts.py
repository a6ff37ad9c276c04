"""What a session has used: tokens by model, seconds of other endpoints' workers, and what its code says it has spent.

The outputs of its calls say how many tokens they took, and the platform how long they ran. Both go into the record of
the call, so a resumed turn counts a call once; the totals of finished turns are in the session's snapshot.

Seconds are those of the jobs. Jobs that share a worker count in full each, so the cost of a call is what it would have
cost alone: an upper bound where the endpoint answers several at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from flashkit.catalog import usd_per_second
from flashkit.spec import EndpointSpec
from flashkit.telemetry.tokens import read_tokens

T = TypeVar("T")

MOST_NAMES: Final = 50
"""Models and endpoints that are told apart; others are added up under `other`."""
_OTHER: Final = "other"
_NAME_CHARACTERS: Final = 100


@dataclass(slots=True)
class ModelUse:
    """Tokens of one model."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class EndpointUse:
    """Jobs of one endpoint."""

    calls: int = 0
    seconds: float = 0.0
    gpu: str = ""
    """Empty for CPUs."""
    usd: float = 0.0
    """At the catalog's price; 0 where it knows none, as for CPUs."""


@dataclass(slots=True)
class Account:
    """What was used."""

    models: dict[str, ModelUse] = field(default_factory=dict)
    endpoints: dict[str, EndpointUse] = field(default_factory=dict)
    spent_tokens: int = 0
    """As `session.spend` reports it."""
    spent_usd: float = 0.0

    def add_call(self, used: Mapping[str, Any] | None) -> None:
        """Count a call, by what its record says."""
        if not used:
            return
        endpoint = _entry(self.endpoints, str(used.get("endpoint", "")), EndpointUse())
        endpoint.calls += 1
        endpoint.seconds += used.get("seconds", 0.0)
        endpoint.gpu = used.get("gpu") or endpoint.gpu
        endpoint.usd += used.get("usd", 0.0)
        if "model" in used:
            model = _entry(self.models, str(used["model"]), ModelUse())
            model.calls += 1
            model.input_tokens += used.get("input_tokens", 0)
            model.output_tokens += used.get("output_tokens", 0)

    def add_spent(self, *, tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Count what the session's code reports."""
        self.spent_tokens += tokens
        self.spent_usd += cost_usd

    def add(self, other: Account) -> None:
        """Count what somebody else has used as well."""
        for name, theirs in other.models.items():
            model = _entry(self.models, name, ModelUse())
            model.calls += theirs.calls
            model.input_tokens += theirs.input_tokens
            model.output_tokens += theirs.output_tokens
        for name, jobs in other.endpoints.items():
            endpoint = _entry(self.endpoints, name, EndpointUse())
            endpoint.calls += jobs.calls
            endpoint.seconds += jobs.seconds
            endpoint.gpu = jobs.gpu or endpoint.gpu
            endpoint.usd += jobs.usd
        self.add_spent(tokens=other.spent_tokens, cost_usd=other.spent_usd)

    @property
    def gpu_seconds(self) -> float:
        """Seconds of all jobs on GPUs."""
        return sum(each.seconds for each in self.endpoints.values() if each.gpu)

    @property
    def usd(self) -> float:
        """What the jobs on GPUs cost."""
        return sum(each.usd for each in self.endpoints.values())

    @property
    def is_empty(self) -> bool:
        """True when nothing is known to have been used."""
        return not (self.models or self.endpoints or self.spent_tokens or self.spent_usd)

    def to_json(self) -> dict[str, Any]:
        """Return it as a snapshot keeps it."""
        return {
            "models": {name: [each.calls, each.input_tokens, each.output_tokens] for name, each in self.models.items()},
            "endpoints": {
                name: [each.calls, each.seconds, each.gpu, each.usd] for name, each in self.endpoints.items()
            },
            "spent": [self.spent_tokens, self.spent_usd],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Account:
        """Return what a snapshot keeps; of an older one, which kept nothing, an empty account."""
        if not data:
            return cls()
        tokens, usd = data.get("spent", (0, 0.0))
        return cls(
            {name: ModelUse(*values) for name, values in data.get("models", {}).items()},
            {name: EndpointUse(*values) for name, values in data.get("endpoints", {}).items()},
            tokens,
            usd,
        )


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a second of an endpoint's workers is."""

    endpoint: str
    gpu: str = ""
    usd_per_second: float | None = None

    @classmethod
    def of(cls, spec: EndpointSpec) -> Tariff:
        """Return that of an endpoint, at the price of the GPU that it prefers."""
        if not spec.gpu:
            return cls(spec.name)
        price = usd_per_second(spec.gpu[0])
        gpu = f"{spec.gpu_count}x {spec.gpu[0]}" if spec.gpu_count > 1 else str(spec.gpu[0])
        return cls(spec.name, gpu, None if price is None else price * spec.gpu_count)

    def describe(self, output: Any, run_ms: int) -> dict[str, Any]:
        """Return what a call's record keeps of what it used."""
        used: dict[str, Any] = {"endpoint": self.endpoint, "seconds": run_ms / 1000}
        if self.gpu:
            used["gpu"] = self.gpu
        if self.usd_per_second is not None:
            used["usd"] = self.usd_per_second * run_ms / 1000
        tokens = read_tokens(output)
        if any(tokens):
            used |= {
                "model": _model_of(output) or self.endpoint,
                "input_tokens": tokens.prompt,
                "output_tokens": tokens.completion,
            }
        return used


def account_of(records: Iterable[Mapping[str, Any]]) -> Account:
    """Return what the steps of a turn have used, from the `extra` of their records."""
    account = Account()
    for extra in records:
        account.add_call(extra.get("used"))
        account.add_spent(**extra.get("spent", {}))
    return account


def _model_of(output: Any) -> str:
    parts = output if isinstance(output, list) else [output]
    names = (part.get("model") for part in parts if isinstance(part, Mapping))
    return next((name[:_NAME_CHARACTERS] for name in names if isinstance(name, str) and name), "")


def _entry(entries: dict[str, T], name: str, new: T) -> T:
    if name not in entries and len(entries) >= MOST_NAMES:
        name = _OTHER
    return entries.setdefault(name, new)

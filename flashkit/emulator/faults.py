"""Faults that the local platform makes on purpose: which ones, how likely, and for which job.

Rules are text, the same in a terminal, over HTTP and in tests: `embed:error=0.1,latency=200ms±50ms`. Whether a
fault strikes follows from the seed, the endpoint, the kind and the number of the job alone, never from the order
in which things happen to run: the same jobs under the same seed meet the same faults. `fault_injection` carries
them out.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from flashkit.errors import InputError

FAULT_HEADER: Final = "X-Flashkit-Fault"
"""With it a request brings rules for its own job."""
ANY_ENDPOINT: Final = "*"
_LARGEST_DRAW: Final = 1 << 64
_SETTINGS: Final = ("faults", "seed", "enabled")


class FaultKind(StrEnum):
    """What can be made to go wrong."""

    LATENCY = "latency"
    """A job reaches its worker that much later: `200ms`, or `200ms±50ms`."""
    SLOW = "slow"
    """Inputs, results and partial outputs pass at this rate: `64KB/s`."""
    ERROR = "error"
    """The platform answers a worker's result with 500; the worker may send it again."""
    DROP = "drop"
    """The connection breaks without an answer, when a job is handed out or its result or partial output comes."""
    KILL = "kill"
    """The worker dies of SIGKILL while it has the job: at once, or later with `0.1+2s`."""
    OOM = "oom"
    """As `kill`, but the platform says that the worker ran out of memory."""
    RECLAIM = "reclaim"
    """The worker's machine is wanted back: SIGTERM, and SIGKILL some seconds later."""
    START = "start"
    """A worker that is started ends at once with exit code 1."""
    TOO_MANY = "429"
    """The platform refuses a client's request as one too many."""
    BROKEN = "500"
    """The platform fails at a client's request, which had no effect."""
    STORE = "redis"
    """The store of sessions does not answer: `down`, with a window."""


PER_JOB: Final = frozenset(
    {FaultKind.LATENCY, FaultKind.SLOW, FaultKind.ERROR, FaultKind.DROP, FaultKind.KILL, FaultKind.OOM}
    | {FaultKind.RECLAIM}
)
"""Kinds that a request may ask for, for its own job, in the header `X-Flashkit-Fault`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule."""

    endpoint: str
    """Name of an endpoint, or `*` for every one."""
    kind: FaultKind
    probability: float = 1.0
    seconds: float = 0.0
    """Of latency; of `kill`, `oom` and `reclaim`, so long after the job was handed out."""
    spread_s: float = 0.0
    """Latency is up to so much more or less."""
    bytes_per_s: float = 0.0
    begins_at: float = 0.0
    """Seconds after the rules were set."""
    ends_at: float | None = None

    def is_on(self, elapsed_s: float) -> bool:
        """True when the rule holds, so long after the rules were set."""
        return self.begins_at <= elapsed_s and (self.ends_at is None or elapsed_s < self.ends_at)

    def concerns(self, endpoint: str) -> bool:
        """True when the rule is about this endpoint."""
        return self.endpoint in (ANY_ENDPOINT, endpoint)

    def __str__(self) -> str:
        """Return the rule as it is written."""
        return f"{self.endpoint}:{self.kind.value}={self._value()}{self._window()}"

    def _value(self) -> str:
        if self.kind is FaultKind.LATENCY:
            spread = f"±{self.spread_s * 1000:g}ms" if self.spread_s else ""
            return f"{self.seconds * 1000:g}ms{spread}"
        if self.kind is FaultKind.SLOW:
            return f"{self.bytes_per_s / 1000:g}KB/s"
        after = f"+{self.seconds:g}s" if self.seconds else ""
        return "down" if self.kind is FaultKind.STORE else f"{self.probability:g}{after}"

    def _window(self) -> str:
        if self.ends_at is not None:
            return f"@{self.begins_at:g}s-{self.ends_at:g}s"
        return f"@{self.begins_at:g}s" if self.begins_at else ""


_RULE: Final = re.compile(
    r"(?:(?P<endpoint>[a-z0-9*][a-z0-9-]*):)?(?P<kind>[a-z0-9]+)=(?P<value>[^@]+)(?:@(?P<window>.+))?"
)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(B|KB|MB)/s", re.IGNORECASE)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "b": 1.0, "kb": 1e3, "mb": 1e6}
_EXAMPLES: Final = "for example embed:error=0.1,latency=200ms±50ms or redis=down@30s-40s"


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Return the rules in a text: `[ENDPOINT:]KIND=VALUE[@FROM[-TO]]`, several with commas.

    An endpoint holds for the rules after it as well, up to the next one.

    Raises:
        InputError: A rule cannot be read, names no kind, or its value makes no sense.
    """
    faults: list[Fault] = []
    endpoint = ANY_ENDPOINT
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RULE.fullmatch(part)
        if match is None:
            raise InputError(f"the fault {part!r} cannot be read", hint=f"write KIND=VALUE, {_EXAMPLES}")
        endpoint = match["endpoint"] or endpoint
        faults.append(_read_rule(part, endpoint, _read_kind(match["kind"]), match["value"].strip(), match["window"]))
    return tuple(faults)


def _read_kind(name: str) -> FaultKind:
    try:
        return FaultKind(name)
    except ValueError:
        names = [kind.value for kind in FaultKind]
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"there is no fault {name!r}", hint=f"{meant}there are {', '.join(names)}", details={"fault": name}
        ) from None


def _read_rule(part: str, endpoint: str, kind: FaultKind, value: str, window: str | None) -> Fault:
    begins_at, ends_at = _read_window(part, window)
    more: dict[str, float] = {}
    match kind:
        case FaultKind.LATENCY:
            middle, _, spread = value.replace("+-", "±").partition("±")
            more = {"seconds": _read_seconds(part, middle), "spread_s": _read_seconds(part, spread or "0")}
        case FaultKind.SLOW:
            more = {"bytes_per_s": _read_rate(part, value)}
        case FaultKind.STORE:
            if value != "down":
                raise InputError(f"the fault {part!r} cannot be read", hint="write redis=down, perhaps with @30s-40s")
        case FaultKind.KILL | FaultKind.OOM | FaultKind.RECLAIM:
            chance, _, after = value.partition("+")
            more = {"probability": _read_probability(part, chance), "seconds": _read_seconds(part, after or "0")}
        case _:
            more = {"probability": _read_probability(part, value)}
    return Fault(endpoint, kind, begins_at=begins_at, ends_at=ends_at, **more)


def _read_window(part: str, window: str | None) -> tuple[float, float | None]:
    if window is None:
        return 0.0, None
    begin, dash, end = window.partition("-")
    begins_at = _read_seconds(part, begin)
    ends_at = _read_seconds(part, end) if dash else None
    if ends_at is not None and ends_at <= begins_at:
        raise InputError(f"the fault {part!r} ends before it begins", hint="write @FROM-TO, for example @30s-40s")
    return begins_at, ends_at


def _read_seconds(part: str, text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} in the fault {part!r} is no time", hint="write 200ms, 1.5s or 2m")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _read_rate(part: str, text: str) -> float:
    match = _RATE.fullmatch(text)
    if match is None or not float(match[1]):
        raise InputError(f"{text!r} in the fault {part!r} is no rate", hint="write 64KB/s or 1MB/s")
    return float(match[1]) * _UNITS[match[2].lower()]


def _read_probability(part: str, text: str) -> float:
    number = text.removesuffix("%")
    try:
        probability = float(number) / (100 if text.endswith("%") else 1)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise InputError(f"{text!r} in the fault {part!r} is no probability", hint="write 0 to 1, or 10%")
    return probability


class FaultPlan:
    """The rules in force, and what they mean for each job."""

    def __init__(self) -> None:
        self.seed = 0
        self.faults: tuple[Fault, ...] = ()
        self.is_enabled = True
        """Switched off, no rule strikes and all are kept."""
        self._set_at = 0.0
        self._numbers: dict[str, int] = {}
        self._submitted: dict[str, int] = {}
        self._own: dict[str, tuple[Fault, ...]] = {}

    @property
    def is_active(self) -> bool:
        """True when something may strike."""
        return bool((self.faults and self.is_enabled) or self._own)

    def set(self, faults: Iterable[Fault], *, now: float, seed: int | None = None) -> None:
        """Replace the rules; their windows begin now, and jobs are counted anew."""
        self.faults = tuple(faults)
        self.seed = self.seed if seed is None else seed
        self.is_enabled = True
        self._set_at = now
        self._submitted.clear()

    def describe(self) -> dict[str, Any]:
        """Return the rules as `/_/faults` shows them."""
        return {"enabled": self.is_enabled, "seed": self.seed, "faults": [str(fault) for fault in self.faults]}

    def bring(self, job_id: str, own: Iterable[Fault]) -> None:
        """Keep the rules that a job brought for itself."""
        if own := tuple(own):
            self._own[job_id] = own

    def count_job(self, endpoint: str, job_id: str) -> None:
        """Number a job that was submitted."""
        if self.faults:
            number = self._submitted[endpoint] = self._submitted.get(endpoint, 0) + 1
            self._numbers[job_id] = number

    def forget_job(self, job_id: str) -> None:
        """Drop what is known of a job that came to its end."""
        self._own.pop(job_id, None)
        self._numbers.pop(job_id, None)

    def strikes(self, kind: FaultKind, endpoint: str, job_id: str, turn: int, *, now: float) -> Fault | None:
        """Return the rule that strikes a job; `turn` tells its attempts, or tries of one thing, apart."""
        for fault in (*self._own.get(job_id, ()), *self._in_force(now)):
            if fault.kind is kind and fault.concerns(endpoint):
                number = self._numbers.get(job_id, job_id)
                if self._draw(fault, endpoint, f"{number}/{turn}") < fault.probability:
                    return fault
        return None

    def is_down(self, now: float) -> bool:
        """True while a rule says that the store of sessions does not answer."""
        return any(fault.kind is FaultKind.STORE for fault in self._in_force(now))

    def latency_s(self, fault: Fault, endpoint: str, job_id: str, turn: int) -> float:
        """Return how long this job is held up."""
        draw = self._draw(fault, endpoint, f"{self._numbers.get(job_id, job_id)}/{turn}/latency")
        return max(0.0, fault.seconds + fault.spread_s * (2 * draw - 1))

    def _in_force(self, now: float) -> Iterable[Fault]:
        if not self.is_enabled or not self.faults:
            return ()
        return (fault for fault in self.faults if fault.is_on(now - self._set_at))

    def _draw(self, fault: Fault, endpoint: str, which: str) -> float:
        """Return a number from 0 to 1 that depends on nothing but its name."""
        name = f"{self.seed}/{endpoint}/{fault.kind.value}/{which}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(digest) / _LARGEST_DRAW


def read_job_faults(text: str | None) -> tuple[Fault, ...]:
    """Return the rules that a request brings for its own job.

    Raises:
        InputError: They cannot be read, or are of a kind that is not about a job.
    """
    if not text:
        return ()
    faults = parse_faults(text)
    for fault in faults:
        if fault.kind not in PER_JOB:
            raise InputError(
                f"the fault {fault.kind.value!r} is not one of a single job",
                hint=f"a request may bring {', '.join(sorted(kind.value for kind in PER_JOB))}",
                details={"fault": fault.kind.value},
            )
    return faults


def refuse_store_faults(faults: Iterable[Fault]) -> None:
    """Refuse rules about a store of sessions that the platform has no power over.

    Raises:
        InputError: There is one.
    """
    for fault in faults:
        if fault.kind is FaultKind.STORE:
            raise InputError(
                f"the fault {fault!s} cannot strike: the store of sessions is not the platform's own",
                hint="leave out --redis and FLASHKIT_STATE, and install redis-server or valkey-server",
                details={"fault": fault.kind.value},
            )


class FaultSettings(NamedTuple):
    """What a body of `PUT /_/faults` changes."""

    faults: tuple[Fault, ...] | None
    """None: the rules stay."""
    seed: int | None
    """None: the seed stays."""
    is_enabled: bool | None
    """None: they stay switched on or off; new rules are switched on."""


def read_fault_settings(data: Mapping[str, Any]) -> FaultSettings:
    """Return what a body that `PUT /_/faults` brings is to change.

    Raises:
        InputError: The body is something else, or changes nothing.
    """
    if unknown := sorted(data.keys() - _SETTINGS):
        raise InputError(
            f"the faults have no setting {unknown[0]!r}",
            hint=f"there are {', '.join(_SETTINGS)}",
            details={"field": unknown[0]},
        )
    if not data:
        raise InputError("the body says nothing of faults", hint=f'send {{"faults": ["…"]}}, {_EXAMPLES}')
    texts, seed, is_enabled = data.get("faults", []), data.get("seed"), data.get("enabled", "faults" in data or None)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"faults={texts!r} is no list of rules", hint=f'send {{"faults": ["…"]}}, {_EXAMPLES}')
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InputError(f"seed={seed!r} is not a whole number")
    if not isinstance(is_enabled, bool) and ("enabled" in data):
        raise InputError(f"enabled={is_enabled!r} is not true or false")
    faults = tuple(fault for text in texts for fault in parse_faults(text))
    return FaultSettings(faults if "faults" in data else None, seed, is_enabled)

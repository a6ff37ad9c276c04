"""The options of `flashkit dev` that shape the platform: cold starts, machines, time, faults.

Read from text here, handed to the `Emulator` as values, and said in the banner in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flashkit.emulator.clock import Clock
from flashkit.emulator.faults import parse_faults
from flashkit.emulator.fleet import ColdStart
from flashkit.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Emulation:
    """What was asked for, as it was written."""

    cold_starts: tuple[str, ...] = ()
    capacities: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    speed: str = "1x"
    random_seed: int | None = None
    has_flashboot: bool = False
    has_rate_limits: bool = False

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot be read, and endpoints that there are not.

        Raises:
            InputError: An option cannot be read or names no endpoint.
        """
        self.emulator_options()
        asked = [text.partition("=")[0] for text in (*self.cold_starts, *self.capacities) if "=" in text]
        asked += [fault.endpoint for text in self.faults for fault in parse_faults(text) if fault.endpoint != "*"]
        for name in asked:
            if name not in names:
                raise InputError(
                    f"an option names an endpoint {name!r}, which there is not",
                    hint=f"the endpoints are: {', '.join(names) or 'none'}",
                )

    def emulator_options(self) -> dict[str, Any]:
        """Return the options of the `Emulator`.

        Raises:
            InputError: One cannot be read.
        """
        for text in self.faults:
            parse_faults(text)
        return {
            "cold_start": read_each(self.cold_starts, _read_cold_start, option="--cold-start"),
            "capacity": read_each(self.capacities, _read_capacity, option="--capacity"),
            "faults": self.faults,
            "clock": Clock(speed=read_speed(self.speed)),
            "seed": self.random_seed,
            "flashboot": self.has_flashboot,
            "has_rate_limits": self.has_rate_limits,
        }

    def words(self) -> Iterator[str]:
        """Yield what the banner says."""
        speed = read_speed(self.speed)
        yield from (f"cold start {text} s" for text in self.cold_starts)
        yield from (f"capacity {text}" for text in self.capacities)
        yield from (f"clock {speed:g}x" for _ in range(speed != 1))
        yield from (f"fault {fault}" for text in self.faults for fault in parse_faults(text))
        yield from (f"random seed {seed}" for seed in (self.random_seed,) if seed is not None)
        yield from ("FlashBoot" for _ in range(self.has_flashboot))
        yield from ("rate limits" for _ in range(self.has_rate_limits))


def read_each(texts: Sequence[str], read: Callable[[str], T], *, option: str) -> T | dict[str, T] | None:
    """Return the value for every endpoint, or values by endpoint, of an option that was given so many times.

    Raises:
        InputError: A value cannot be read, or both forms are given.
    """
    named: dict[str, T] = {}
    common: list[T] = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            read_value = read(value)
        except ValueError as exc:
            raise InputError(f"{option} {text!r} cannot be read: {exc}", hint=f"write {option} 8, or NAME=8") from exc
        if equals:
            named[name] = read_value
        else:
            common.append(read_value)
    if named and common:
        raise InputError(f"{option} is given both for every endpoint and for single ones", hint="name every endpoint")
    return named or (common[-1] if common else None)


def _read_cold_start(text: str) -> ColdStart:
    return ColdStart(load_s=float(text.removesuffix("s")))


def _read_capacity(text: str) -> int:
    if (capacity := int(text)) < 0:
        raise ValueError("it is negative")
    return capacity


def read_speed(text: str) -> float:
    """Return how many times as fast as real time the clock goes: `60x`.

    Raises:
        InputError: It is no number above 0.
    """
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise InputError(f"--speed {text!r} is no speed", hint="write --speed 60x: a minute each second")
    return speed


_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_duration(text: str) -> float:
    """Return the seconds of `90`, `10s`, `5m`, `2h` or `1d`.

    Raises:
        InputError: It is no time.
    """
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNIT_SECONDS else (text, "s")
    try:
        seconds = float(number) * _UNIT_SECONDS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{text!r} is no time", hint="write 10s, 5m, 2h or 1d")
    return seconds

"""What BuildKit says while it builds, line by line in its plain form, as steps with a state.

Every version of Docker since 20.10 writes this form: `#5 [build 2/7] RUN …` opens a step, `#5 1.23 text` is a line of
its output, `#5 DONE 3.4s`, `#5 CACHED` and `#5 ERROR: …` close it. After a failure the place in the Dockerfile follows.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

_TAIL_LINES: Final = 30
_LINE: Final = re.compile(r"#(?P<number>\d+) (?P<rest>.*)")
_DONE: Final = re.compile(r"DONE (?P<seconds>[\d.]+)s")
_OUTPUT: Final = re.compile(r"[\d.]+ (?P<text>.*)")
_TRANSFER: Final = re.compile(r"(sha256:\w+|extracting|transferring|exporting|writing|naming|resolve) ")
_PLACE: Final = re.compile(r"(?P<file>[^\s:]*Dockerfile[^\s:]*):(?P<line>\d+)$")
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class State(StrEnum):
    """How far a step is."""

    RUNNING = "running"
    DONE = "done"
    CACHED = "cached"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class Step:
    """One step of a build."""

    number: int
    name: str
    """Such as `[build 2/7] RUN pip install …`."""
    state: State = State.RUNNING
    seconds: float | None = None
    error: str | None = None
    output: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))

    @property
    def is_internal(self) -> bool:
        """True for what no line of a Dockerfile asked for."""
        return self.name.startswith(
            ("[internal]", "[auth]", "[context ", "building with", "exporting", "importing", "resolving")
        )


class BuildLog:
    """The steps of one build, as far as they have been told."""

    def __init__(self) -> None:
        self.steps: dict[int, Step] = {}
        self.place: str | None = None
        """`Dockerfile:12`, once a build has failed there."""
        self.last_lines: deque[str] = deque(maxlen=_TAIL_LINES)
        """What belongs to no step; the reason of a failure is among the last."""

    @property
    def failed(self) -> Step | None:
        """The step that failed."""
        return next((step for step in self.steps.values() if step.state is State.FAILED), None)

    @property
    def running(self) -> list[Step]:
        """Steps of the Dockerfile that have begun and not ended."""
        return [step for step in self.steps.values() if step.state is State.RUNNING and not step.is_internal]

    def feed(self, line: str) -> Step | None:
        """Take a line, and return the step that it is about."""
        text = _ESCAPES.sub("", line).rstrip()
        match = _LINE.fullmatch(text)
        if match is None:
            self._take_other(text)
            return None
        number, rest = int(match["number"]), match["rest"]
        step = self.steps.get(number)
        if step is None:
            step = self.steps[number] = Step(number, rest)
        elif rest not in (step.name, "..."):
            _take_news(step, rest)
        return step

    def _take_other(self, text: str) -> None:
        if _PLACE.match(text):
            self.place = text
        if text:
            self.last_lines.append(text)


def _take_news(step: Step, rest: str) -> None:
    if done := _DONE.fullmatch(rest):
        step.state, step.seconds = State.DONE, float(done["seconds"])
    elif rest == "CACHED":
        step.state = State.CACHED
    elif rest.startswith(("ERROR:", "CANCELED")):
        step.error = rest.removeprefix("ERROR:").strip()
        step.state = State.FAILED if rest.startswith("ERROR") else State.DONE
    elif output := _OUTPUT.fullmatch(rest):
        step.output.append(output["text"])
    elif _TRANSFER.match(rest):
        step.output.append(rest)

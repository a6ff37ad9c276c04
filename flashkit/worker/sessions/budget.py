"""Ceilings for one turn of a session: steps, tokens, cost, and going round in circles.

A runaway agent does not crash, it goes on: it calls the same tool with the same arguments, or walks
through the same few steps for ever, while a GPU is paid for. Every step and call passes through
`Budget.admit`, and what it used through `Budget.spend`; the first ceiling that is hit ends the turn with
an error that names it.

A resumed turn counts again what it had counted before: its handler asks for the same steps, and what a step's
function used is in the step's record.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from flashkit.errors import BudgetExceeded

LONGEST_LOOP: Final = 8
"""Loops of up to this many different steps are recognised."""
_FAN_OUT: Final = re.compile(r"gather\d+")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What one turn of a session may use; None means no ceiling."""

    steps: int | None = 1_000
    tokens: int | None = None
    cost_usd: float | None = None
    repeats: int | None = 20
    """How often the same step with the same input, or the same round of steps, may follow itself."""

    def to_dict(self) -> dict[str, Any]:
        """Return the ceilings by name."""
        return asdict(self)


class Move(NamedTuple):
    """A step as the loop detector sees it: its name, and a digest of its input."""

    name: str
    digest: str


class LoopWatch:
    """Notices when the last steps are one round of steps over and over, at a few comparisons for each step."""

    def __init__(self) -> None:
        self._last: deque[Move] = deque(maxlen=LONGEST_LOOP)
        self._same_as = [0] * LONGEST_LOOP
        """How many of the last steps, without a gap, are the same as the one 1, 2, 3... steps before."""

    def add(self, move: Move) -> None:
        """Take in the next step."""
        if move in self._last:
            for index, earlier in enumerate(reversed(self._last)):
                self._same_as[index] = self._same_as[index] + 1 if earlier == move else 0
        else:
            self._same_as = [0] * LONGEST_LOOP
        self._last.append(move)

    def find(self, rounds: int) -> tuple[Move, ...] | None:
        """Return the shortest round that the last steps repeat `rounds` times in a row, None when there is none."""
        for length, same in enumerate(self._same_as, start=1):
            if same >= length * (rounds - 1) and len(self._last) >= length:
                return tuple(self._last)[-length:]
        return None


class Budget:
    """What one turn has used, and whether it may go on."""

    def __init__(self, ceilings: Ceilings = Ceilings()) -> None:
        self.ceilings = ceilings
        self.steps = 0
        self.tokens = 0
        self.cost_usd = 0.0
        self._loops: defaultdict[str, LoopWatch] = defaultdict(LoopWatch)

    def set_ceilings(self, ceilings: Ceilings) -> None:
        """Change what the rest of the turn may use; what was used counts on."""
        self.ceilings = ceilings

    def admit(self, move: Move, path: str = "") -> None:
        """Count a step that is about to run.

        Args:
            move: The step.
            path: The branch that asks for it. Branches overtake each other, and not in the same way when they are
                resumed, so a loop is looked for in each of them, through all fan-outs.

        Raises:
            BudgetExceeded: It is one too many, or the next round of a loop.
        """
        self.steps += 1
        loops = self._loops[_FAN_OUT.sub("gather", path) if path else path]
        loops.add(move)
        if self.ceilings.steps is not None and self.steps > self.ceilings.steps:
            raise BudgetExceeded(
                f"the session's turn wants a step more than its ceiling of {self.ceilings.steps}: {move.name!r}",
                hint="raise session.budget(steps=...), or give the agent's loop an end",
                details={"ceiling": "steps", "limit": self.ceilings.steps},
            )
        self._refuse_loop(loops)

    def spend(self, *, tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Count what a step has used.

        Raises:
            BudgetExceeded: The turn has used more than it may.
        """
        self.tokens += tokens
        self.cost_usd += cost_usd
        for name, used, limit in (
            ("tokens", self.tokens, self.ceilings.tokens),
            ("cost_usd", self.cost_usd, self.ceilings.cost_usd),
        ):
            if limit is not None and used > limit:
                raise BudgetExceeded(
                    f"the session's turn has used {used:g} {name} of {limit:g}",
                    hint=f"raise session.budget({name}=...), or let the agent do less",
                    details={"ceiling": name, "limit": limit, "used": used},
                )

    def _refuse_loop(self, loops: LoopWatch) -> None:
        if self.ceilings.repeats is None:
            return
        loop = loops.find(self.ceilings.repeats + 1)
        if loop is not None:
            names = " → ".join(move.name for move in loop)
            raise BudgetExceeded(
                f"the session goes round in circles: {names}, the same inputs {self.ceilings.repeats + 1} times "
                "in a row",
                hint="change what the agent does with the same result, or raise session.budget(repeats=...)",
                details={"ceiling": "repeats", "limit": self.ceilings.repeats, "loop": [move.name for move in loop]},
            )

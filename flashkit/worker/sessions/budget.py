"""Ceilings for a session: steps, tokens, cost, and going round in circles.

A runaway agent does not crash, it goes on: it calls the same tool with the same arguments, or walks
through the same few steps for ever, while a GPU is paid for. Every step and call passes through
`Budget.admit`, and what it used through `Budget.spend`; the first ceiling that is hit ends the turn with
an error that names it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from flashkit.errors import BudgetExceeded

LONGEST_LOOP: Final = 8
"""Loops of up to this many different steps are recognised."""


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


@dataclass(frozen=True, slots=True)
class Move:
    """A step as the loop detector sees it: its name, and a digest of its input."""

    name: str
    digest: str


class Budget:
    """What one turn has used, and whether it may go on."""

    def __init__(self, ceilings: Ceilings = Ceilings()) -> None:
        self.ceilings = ceilings
        self.steps = 0
        self.tokens = 0
        self.cost_usd = 0.0
        self._moves: deque[Move] = deque(maxlen=_span(ceilings))

    def set_ceilings(self, ceilings: Ceilings) -> None:
        """Change what the rest of the turn may use; what was used counts on."""
        self.ceilings = ceilings
        self._moves = deque(self._moves, maxlen=_span(ceilings))

    def admit(self, move: Move) -> None:
        """Count a step that is about to run.

        Raises:
            BudgetExceeded: It is one too many, or the next round of a loop.
        """
        self.steps += 1
        self._moves.append(move)
        if self.ceilings.steps is not None and self.steps > self.ceilings.steps:
            raise BudgetExceeded(
                f"the session's turn wants a step more than its ceiling of {self.ceilings.steps}: {move.name!r}",
                hint="raise session.budget(steps=...), or give the agent's loop an end",
                details={"ceiling": "steps", "limit": self.ceilings.steps},
            )
        self._refuse_loop()

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

    def _refuse_loop(self) -> None:
        if self.ceilings.repeats is None:
            return
        loop = find_loop(list(self._moves), rounds=self.ceilings.repeats + 1)
        if loop is not None:
            names = " → ".join(move.name for move in loop)
            raise BudgetExceeded(
                f"the session goes round in circles: {names}, the same inputs {self.ceilings.repeats + 1} times "
                "in a row",
                hint="change what the agent does with the same result, or raise session.budget(repeats=...)",
                details={"ceiling": "repeats", "limit": self.ceilings.repeats, "loop": [move.name for move in loop]},
            )


def _span(ceilings: Ceilings) -> int:
    """Return how many of the last steps the longest loop takes."""
    return LONGEST_LOOP * ((ceilings.repeats or 0) + 1)


def find_loop(moves: Sequence[Move], *, rounds: int) -> tuple[Move, ...] | None:
    """Return the shortest round that the last moves repeat `rounds` times in a row, None when there is none."""
    for length in range(1, LONGEST_LOOP + 1):
        span = length * rounds
        if span > len(moves):
            return None
        last = tuple(moves[-length:])
        tail = moves[-span:]
        if all(tail[index] == last[index % length] for index in range(span)):
            return last
    return None

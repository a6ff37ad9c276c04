"""Whether code runs inside of a step's function, and what it has used there.

What happens in a step's function happens once: when the session is resumed, the step answers from its record and
the function does not run. So what the function reports as used goes into the record, and what belongs to the
session (its history, its state) must not change there.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final

from flashkit.handler import encode_json
from flashkit.telemetry import AnySpan

log = logging.getLogger(__name__)

_scope: Final[ContextVar[StepScope | None]] = ContextVar("flashkit_step_scope", default=None)


@dataclass(slots=True)
class StepScope:
    """The step whose function runs; shared with the thread that runs it."""

    key: str
    tokens: int = 0
    cost_usd: float = 0.0
    _watched: tuple[Any, bytes] | None = None
    """The session's state, and what it was when the function first looked at it."""
    _token: Token[StepScope | None] | None = None

    def __enter__(self) -> StepScope:
        """Let what is called in here know that it runs in a step."""
        self._token = _scope.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let it no longer."""
        assert self._token is not None  # noqa: S101 - set on entering
        _scope.reset(self._token)

    @property
    def spent(self) -> dict[str, Any]:
        """What the record keeps of this."""
        if not self.tokens and not self.cost_usd:
            return {}
        return {"spent": {"tokens": self.tokens, "cost_usd": self.cost_usd}}

    def tell(self, span: AnySpan) -> None:
        """Say in the step's span what was used."""
        if self.tokens or self.cost_usd:
            span.set("flashkit.spent.tokens", self.tokens)
            span.set("flashkit.spent.cost_usd", self.cost_usd)

    def watch(self, state: Any) -> None:
        """Take note that the function looks at the session's state."""
        if self._watched is None:
            self._watched = state, encode_json(state)

    def warn_of_changes(self, session: str) -> None:
        """Warn if the state has changed since; only now, as a function that looks may change it afterwards."""
        if self._watched is not None and encode_json(self._watched[0]) != self._watched[1]:
            log.warning(
                "session %s: the state changed while the function of step %r ran; what that function changes is lost "
                "when the session is resumed: return it from the step, and change the state in the handler",
                session,
                self.key,
            )


def running_step() -> StepScope | None:
    """Return the step inside of which this is called, None in the handler itself."""
    return _scope.get()

"""A session run again from its journal: a copy of it in a store of its own, the handler in this process, no steps."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashkit.errors import InputError
from flashkit.settings import Settings

if TYPE_CHECKING:
    from flashkit.worker.sessions.replaying import Recorded


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay."""

    session: str
    endpoint: str
    turn: int
    steps: tuple[str, ...]
    """Those that answered from the journal."""
    output: Any = None
    recorded: Any = None
    error: str = ""
    ended_at: str = ""
    """The step at which the journal ends."""
    had_output: bool = False
    """The turn had come to its end."""

    @property
    def is_same(self) -> bool:
        """True when it came to what is recorded: the same output, or the end of the journal of an unfinished turn."""
        if self.had_output:
            return not self.error and not self.ended_at and self.output == self.recorded
        return bool(self.ended_at) and not self.error

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {name: getattr(self, name) for name in self.__slots__} | {"is_same": self.is_same}

    def render(self) -> str:
        """Return it for people."""
        import json

        lines = [f"session {self.session}, turn {self.turn} of {self.endpoint}: {len(self.steps)} steps replayed"]
        lines += [f"  {key}" for key in self.steps]
        if self.error:
            lines.append(self.error)
        elif self.ended_at:
            lines.append(f"the journal ends before step {self.ended_at!r}: that is where the task was when it ended")
        else:
            lines.append(json.dumps(self.output, ensure_ascii=False))
            lines.append("the same output as recorded" if self.is_same else f"recorded was {json.dumps(self.recorded)}")
        return "\n".join(lines)


async def replay(session: str, app: Path, *, turn: int | None, state_url: str | None) -> Replayed:
    """Run a turn of a session again from its journal.

    Raises:
        SessionNotFound: There is no such session.
        InputError: It has no such turn, or the app has not its endpoint.
    """
    from flashkit.worker.sessions.admin import open_session_store
    from flashkit.worker.sessions.replaying import read_turn

    settings = Settings.from_environment()
    store = open_session_store(settings, url=state_url)
    try:
        recorded = await read_turn(store, session, turn)
        with tempfile.TemporaryDirectory(prefix="flashkit-replay-") as folder:
            own = dataclasses.replace(
                settings,
                base_url=None,  # offline: there is no platform to call
                state_url=f"sqlite:///{folder}/sessions.db",
                is_state_shared=False,
                state_keys=None,
                traces_url=None,
                otlp_endpoint=None,
            )
            await recorded.copy_to(store, own)
            return await _run(recorded, app, own)
    finally:
        await store.close()


async def _run(recorded: Recorded, app: Path, settings: Settings) -> Replayed:
    from flashkit.handler import Definition, parse_json
    from flashkit.worker.job import HandBack
    from flashkit.worker.main import find_endpoint
    from flashkit.worker.runtime import Runtime

    definition = find_endpoint(str(app), recorded.endpoint).definition
    if not isinstance(definition, Definition):
        raise InputError(f"endpoint {recorded.endpoint!r} of {app.name} has no sessions")
    done = Replayed(
        recorded.session, recorded.endpoint, recorded.turn, recorded.steps,
        recorded=recorded.output, had_output=recorded.has_output,
    )  # fmt: skip
    runtime = Runtime(definition, settings)
    await runtime.start()
    try:
        runtime.hand_back()  # a step that the journal does not have ends the turn, before it begins
        outcome = await runtime.run({"id": "replay", "input": recorded.job_input}, emit=_drop)
    except HandBack as exc:
        return dataclasses.replace(done, ended_at=str(exc) or "the next one")
    finally:
        await runtime.stop()
    if outcome.error is not None:
        return dataclasses.replace(done, error=outcome.error.render())
    return dataclasses.replace(done, output=parse_json(outcome.output or b"null"))


async def _drop(chunk: bytes) -> None:
    """Drop partial outputs."""

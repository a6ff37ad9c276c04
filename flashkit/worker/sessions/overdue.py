"""Sessions that nobody goes on with by himself: a worker is gone in the middle of a turn, or a wait is over.

The platform hands a job out again whose worker died, but not every job, and not for ever; and nobody sends a job
when `wait_for(timeout=...)` has waited long enough. Whoever calls `resume_overdue` now and then sends it:
`flashkit dev` does, `flashkit sessions resume --due` does so once. A job too many does no harm, because a session
is taken by one job at a time. Several callers, and one that comes again, agree on who sends by a claim in the store.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final

from flashkit.client import Client
from flashkit.errors import FlashkitError
from flashkit.worker.sessions.admin import PERSON, wake
from flashkit.worker.sessions.store import Head, Status, Store

GRACE_S: Final = 30.0
"""A session whose worker is gone is left to the platform for this long."""
_AGAIN_S: Final = 60.0
"""After this long without progress the job is sent again."""
_KEPT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Resumed:
    """What was done about one session."""

    session: str
    endpoint: str | None
    job: str | None
    """The id of the job that was sent; None where none was."""
    problem: str = ""
    """Why not, for people."""


async def resume_overdue(
    store: Store, client: Client, *, endpoint: str | None = None, grace_s: float = GRACE_S, limit: int = 100
) -> tuple[Resumed, ...]:
    """Send the jobs that make sessions go on which nobody goes on with, and do not wait for them.

    What a person has forked, settled or rewound waits for that person.

    Args:
        store: Where the sessions are.
        client: Reaches the platform on which they run.
        endpoint: The one to send a job to where the journal does not tell.
        grace_s: How long the platform has for a session whose worker is gone.
        limit: At most so many.
    """
    caller = secrets.token_hex(8)
    done = []
    for head in await store.due(limit=limit):
        if _is_left_alone(head, grace_s):
            continue
        key = f"overdue:{head.session}:{head.fence}:{head.seq}"
        if (await store.claim(key, caller, lease_s=_AGAIN_S, keep_s=_KEPT_S)).mine:
            done.append(await _resume(store, client, head.session, endpoint))
    return tuple(done)


async def _resume(store: Store, client: Client, session: str, endpoint: str | None) -> Resumed:
    name = endpoint
    try:
        wanted = await wake(store, session)
        name = wanted.endpoint or endpoint
        if name is None:
            return Resumed(session, None, None, "its journal does not tell which endpoint runs it")
        return Resumed(session, name, (await client.endpoint(name).run(wanted.input)).id)
    except FlashkitError as exc:
        return Resumed(session, name, None, exc.report.message)


def _is_left_alone(head: Head, grace_s: float) -> bool:
    if head.status is not Status.RUNNING:
        return False
    return head.owner.startswith(PERSON) or time.time() - head.updated_ms / 1000 < grace_s

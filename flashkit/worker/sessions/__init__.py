"""An agent's session: steps that are never run twice, and calls to other endpoints.

What a step or call returned is written to a journal before the handler goes on. When the worker dies
and the job is handed to another one, the handler runs again from its first line, but completed steps
answer from the journal. The control flow is ordinary Python; only `step`, `call` and what they return
must be the same on the second run.
"""

from flashkit.worker.sessions.journal import Journal, Record, open_journal
from flashkit.worker.sessions.session import Session, SessionFactory

__all__ = ["Journal", "Record", "Session", "SessionFactory", "open_journal"]

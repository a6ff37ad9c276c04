"""An agent's session: steps that are never run twice, and calls to other endpoints.

What a step or call returned is in the store before the handler goes on. When the worker dies and the job
is handed to another one, the handler runs again from its first line, but completed steps answer from the
journal. The control flow is ordinary Python; only the steps that are asked for, and their order, must be
the same on the second run.

`session` is what handlers see; `runner` turns jobs into turns; `turn` and `writer` hold what one turn knows
and writes; `calls` reaches other endpoints; `store` says what sessions need of Redis and SQLite.
"""

from flashkit.worker.sessions.runner import SessionRunner
from flashkit.worker.sessions.session import Session, effect_key

__all__ = ["Session", "SessionRunner", "effect_key"]

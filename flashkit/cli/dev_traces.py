"""Where `flashkit dev` keeps traces: in SQLite beside its other state, or where FLASHKIT_TRACE_STORE says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flashkit.cli.dev_store import with_absolute_path
from flashkit.cli.trace import TRACES_FILE
from flashkit.errors import StoreUnavailable
from flashkit.telemetry.store import SQLITE, TraceStore, open_traces

_OFF = ("0", "off", "none")


def open_dev_traces(
    folder: Path, state_dir: Path, environ: Mapping[str, str], say: Callable[[str], None]
) -> TraceStore | None:
    """Return the store of traces; None where they are switched off, or cannot be kept in the usual place.

    Raises:
        ConfigurationError: FLASHKIT_TRACE_STORE names no store.
        StoreUnavailable: The one that it names does not answer.
    """
    named = environ.get("FLASHKIT_TRACE_STORE")
    if named and named.lower() in _OFF:
        return None
    if named:
        return open_traces(with_absolute_path(named, folder))
    try:
        return open_traces(f"{SQLITE}{state_dir / TRACES_FILE}")
    except StoreUnavailable as exc:
        say(f"no traces are kept: {exc.report.message}")
        return None

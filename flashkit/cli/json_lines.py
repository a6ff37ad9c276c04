"""What `flashkit dev --json` writes: one JSON object on each line, for programs and log collectors.

Every object has `at` (seconds since 1970) and `type`. Events are those of `GET /_/events`, field by field, without
their numbers; what flashkit itself says has the types `start`, `note` and `problem`. docs/reference/events.md
lists them all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import orjson

from flashkit import __version__
from flashkit.cli.apps import AppEndpoint
from flashkit.cli.http_lines import http_root
from flashkit.emulator.events import Event
from flashkit.emulator.recorder import Recorded, describe
from flashkit.errors import ErrorReport


class JsonLines:
    """Prints everything that happens, whatever the log level: who reads it can choose."""

    def __init__(self, *, log_level: str, stream: IO[str] | None = None) -> None:
        self.log_level = log_level
        self._stream = stream or sys.stdout

    def show_banner(
        self,
        endpoints: Sequence[AppEndpoint],
        *,
        url: str,
        state_dir: Path,
        is_reloading: bool,
        sessions: str | None = None,
        emulated: Sequence[str] = (),
        has_keys: bool = False,
    ) -> None:
        """Write what runs and where."""
        del has_keys
        self._write(
            "start",
            version=__version__,
            url=url,
            dashboard=f"{url}/",
            endpoints=[_describe_endpoint(endpoint, url) for endpoint in endpoints],
            state_dir=str(state_dir),
            sessions=sessions,
            emulated=list(emulated),
            is_reloading=is_reloading,
        )

    def show_event(self, event: Event) -> None:
        """Write an event of the platform."""
        fields = describe(Recorded(0, time.time(), event))
        del fields["n"]
        self._print(fields)

    def say(self, message: str, *, style: str = "") -> None:
        """Write what flashkit says."""
        del style
        self._write("note", text=message)

    def show_problem(self, report: ErrorReport) -> None:
        """Write an error of the user's app."""
        self._write("problem", error=report.to_dict())

    def clear(self) -> None:
        """Do nothing: lines that were written are not taken back."""

    def _write(self, name: str, **fields: Any) -> None:
        self._print({"at": time.time(), "type": name, **fields})

    def _print(self, fields: dict[str, Any]) -> None:
        self._stream.write(orjson.dumps(fields, default=str).decode(errors="replace") + "\n")
        self._stream.flush()


def _describe_endpoint(endpoint: AppEndpoint, url: str) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "kind": endpoint.spec.kind.value,
        "url": http_root(url, endpoint.name) if endpoint.spec.load_balanced else f"{url}/v2/{endpoint.name}",
        "where": endpoint.where,
        "workers": [endpoint.spec.workers.min, endpoint.spec.workers.max],
    }

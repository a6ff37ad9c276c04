"""A process that brings one model as a worker does, with short leases: `python puller.py SETTINGS_JSON`.

It prints a line when the first bytes have come, and the folder at the end, or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flashkit.errors import FlashkitError
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.downloading import Manner
from flashkit.worker.weights.fetching import fetch
from flashkit.worker.weights.hub import Hub
from flashkit.worker.weights.leases import Pace
from flashkit.worker.weights.progress import LogProgress


class Told(LogProgress):
    """Says when the first bytes are there."""

    is_first = True

    def advance(self, count: int) -> None:
        """Print once."""
        if self.is_first:
            self.is_first = False
            print("begun", flush=True)
        super().advance(count)


def main(text: str) -> int:
    options = json.loads(text)
    settings = Settings(
        volume_dir=Path(options["volume"]), hub_url=options["hub"], hub_cache=Path(options["volume"]) / "none"
    )
    weights = Weights("org/model")
    manner = Manner(
        pace=Pace(beat_seconds=0.1, dead_seconds=options.get("dead", 30.0), poll_seconds=0.05),
        part_bytes=options.get("part_bytes", 100_000),
        threads=options.get("threads", 2),
        make_progress=lambda: Told(lambda line, _: print(line, flush=True)),
    )
    try:
        found = fetch(Hub(weights, settings), weights, settings, manner=manner)
    except FlashkitError as exc:
        print(exc.report.render(), flush=True)
        return 1
    print(f"folder {found.folder}", flush=True)
    return 0


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    sys.exit(main(sys.argv[1]))

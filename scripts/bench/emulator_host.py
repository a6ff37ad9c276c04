"""An emulator in a process of its own, for scripts/bench/emulator.py: prints its URL, and ends with its input."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

HANDLERS = Path(__file__).parent / "handlers"


def endpoint(name: str, *, workers: WorkerBounds) -> LocalEndpoint:
    """Return an endpoint of the handlers' file."""
    spec = EndpointSpec(
        name=name, kind=Kind.CPU, cpu="cpu3c-2-4", workers=workers, idle_timeout=3600, concurrency=50, scaler_value=1
    )
    command = (sys.executable, "-m", "flashkit.worker", f"emulator_handlers.py:{name.replace('-', '_')}")
    return LocalEndpoint(spec=spec, command=command, cwd=HANDLERS)


async def main(workers: int) -> None:
    endpoints = [
        endpoint("noop", workers=WorkerBounds(workers, workers)),
        endpoint("tokens", workers=WorkerBounds(1, 1)),
        LocalEndpoint(
            spec=EndpointSpec(name="stuck", kind=Kind.CPU, cpu="cpu3c-2-4", workers=WorkerBounds(0, 1)),
            command=(sys.executable, "-c", "import time; time.sleep(600)"),  # never asks for a job
            cwd=HANDLERS,
        ),
    ]
    with tempfile.TemporaryDirectory(prefix="bench-emulator-") as folder:
        async with Emulator(endpoints, state_dir=Path(folder), shutdown_grace=1.0) as emulator:
            print(emulator.url, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=4)
    uvloop.run(main(parser.parse_args().workers))

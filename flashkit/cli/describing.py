"""The question that an app file is asked, and its answer: `python -m flashkit.worker --describe APP.py`.

Apart from `apps` so that commands that only read, such as `flashkit check`, load no emulator.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from flashkit.errors import DefinitionError, ErrorReport

DESCRIBE_TIMEOUT_SECONDS = 120.0
"""An import that takes longer hangs, or loads a model outside `setup`."""


async def ask_app(app: Path) -> dict[str, Any]:
    """Return what the app says of itself: its endpoints, and the files that it brought in.

    Raises:
        DefinitionError: It does not import.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flashkit.worker", "--describe", app.name),
            cwd=app.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise DefinitionError(
            f"{app.name} cannot be imported in {app.parent}: {exc.strerror}",
            hint="look whether the folder is still there",
        ) from exc
    try:
        async with asyncio.timeout(DESCRIBE_TIMEOUT_SECONDS):
            stdout, stderr = await process.communicate()
    except TimeoutError as exc:
        raise DefinitionError(
            f"importing {app.name} took longer than {DESCRIBE_TIMEOUT_SECONDS:g} s",
            hint="move slow work out of the module into setup()",
        ) from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _read_answer(app, stdout, stderr)


def no_endpoint_in(app: Path) -> DefinitionError:
    """Return the error for an app file that defines nothing to run."""
    return DefinitionError(
        f"{app.name} defines no endpoint",
        hint="decorate a function with @cpu_endpoint or @gpu_endpoint, or call runpod.serverless.start",
        where=str(app),
    )


def refuse_doubles(endpoints: Iterable[tuple[str, str]]) -> None:
    """Refuse two endpoints with one name.

    Args:
        endpoints: Names, and where they are defined.

    Raises:
        DefinitionError: Two have the same name.
    """
    seen: dict[str, str] = {}
    for name, where in endpoints:
        if name in seen:
            raise DefinitionError(
                f"two endpoints are named {name!r}: at {seen[name]} and at {where}",
                hint="names become URLs, so each must be different",
            )
        seen[name] = where


def _read_answer(app: Path, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """Return the JSON object on the last line; whatever the module printed while it was imported is above."""
    lines = stdout.splitlines()
    try:
        data = orjson.loads(lines[-1])
    except (IndexError, orjson.JSONDecodeError):
        data = None
    if isinstance(data, dict) and "endpoints" in data:
        return data
    if isinstance(data, dict) and "message" in data:
        raise DefinitionError.from_report(ErrorReport.from_dict(data))
    raise DefinitionError(
        f"importing {app.name} ended its process",
        hint="the module must be importable without side effects",
        details={"traceback": stderr.decode(errors="replace")},
    )

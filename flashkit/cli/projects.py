"""Where an app and what belongs to it are: the app's file, the project's folder, the sample input.

A folder is a project with its app under one of the usual names, as in Runpod's worker templates. The project's
folder of `src/handler.py` is the one above `src`, as that is where `test_input.json` and `.runpod` are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from flashkit.errors import InputError

USUAL_NAMES = ("app.py", "main.py", "handler.py", "rp_handler.py")
SAMPLE_FILE = "test_input.json"
_MARKS = ("Dockerfile", ".runpod", SAMPLE_FILE, "requirements.txt", "pyproject.toml", ".git")
"""What tells a project's folder."""


def find_app(folder: Path) -> Path | None:
    """Return the app file that the folder, or `src` in it, has under one of the usual names."""
    candidates = [place / name for place in (folder, folder / "src") for name in USUAL_NAMES]
    return next((path for path in candidates if path.is_file()), None)


def project_folder(app: Path) -> Path:
    """Return the folder of the app's project."""
    above = app.parent.parent
    is_below = app.parent.name == "src" and any((above / mark).exists() for mark in _MARKS)
    return above if is_below else app.parent


def read_sample(app: Path) -> Any:
    """Return the input in the project's `test_input.json`, None where there is no such file.

    Raises:
        InputError: The file holds no job.
    """
    for folder in dict.fromkeys((app.parent, project_folder(app))):
        file = folder / SAMPLE_FILE
        if file.is_file():
            return _read_job_input(file)
    return None


def _read_job_input(file: Path) -> Any:
    try:
        job = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as exc:
        raise InputError(
            f"{file.name} is not JSON: {exc.msg} (line {exc.lineno})", hint=f"python -m json.tool {file.name}"
        ) from exc
    if not isinstance(job, dict) or "input" not in job:
        raise InputError(f"{file.name} holds no job", hint='write {"input": {…}} with what the handler takes inside')
    return job["input"]

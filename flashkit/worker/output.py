"""Prints and log lines of a handler carry the id of their job.

On the platform a worker's log is lines of JSON with `requestId`, `message` and `level`; the SDK writes
its own lines so, but what a handler prints has no id. Here a line printed while a job runs, in whatever
task or thread, becomes such a line. Lines printed outside of jobs stay as they are.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import IO, Any, Final

from flashkit.worker.job import current_job_id

_LINE_LIMIT: Final = 4096
"""The platform cuts messages here (SDK logger)."""


class JobOutput(io.TextIOBase):
    """A text stream that labels complete lines with the job they were printed for."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._partial: dict[str, str] = {}

    def write(self, text: str) -> int:
        """Write text; a line of a job is kept back until it is complete or gets too long."""
        job_id = current_job_id()
        if job_id is None:
            return self._stream.write(text)
        *lines, rest = (self._partial.pop(job_id, "") + text).split("\n")
        if len(rest) >= _LINE_LIMIT:
            lines.append(rest)
            rest = ""
        if rest:
            self._partial[job_id] = rest
        for line in lines:
            self._write_line(job_id, line)
        return len(text)

    def flush(self) -> None:
        """Write what is complete to the real stream; unfinished lines of other jobs stay."""
        job_id = current_job_id()
        if job_id is not None and (rest := self._partial.pop(job_id, "")):
            self._write_line(job_id, rest)
        self._stream.flush()

    def writable(self) -> bool:
        """Say that text can be written."""
        return True

    def fileno(self) -> int:
        """Return the real stream's descriptor, for subprocesses of the handler."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Say whether the real stream is a terminal."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        """Encoding of the real stream."""
        return str(getattr(self._stream, "encoding", "utf-8"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write_line(self, job_id: str, line: str) -> None:
        if line.startswith('{"requestId"'):  # the SDK's own line: it names its job already
            self._stream.write(line + "\n")
            return
        for start in range(0, len(line), _LINE_LIMIT):
            record = {"requestId": job_id, "message": line[start : start + _LINE_LIMIT], "level": "INFO"}
            self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()


def attribute_output() -> None:
    """Label this process's output from now on, when it runs on a platform."""
    if "RUNPOD_ENDPOINT_ID" in os.environ and not isinstance(sys.stdout, JobOutput):
        sys.stdout = JobOutput(sys.stdout)
        sys.stderr = JobOutput(sys.stderr)

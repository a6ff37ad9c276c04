"""Processes that a test looks at while they come and go."""

from __future__ import annotations

import psutil


def arguments_of(process: psutil.Process) -> list[str]:
    """Return a process's command line; empty when it has ended and nobody has waited for it yet."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie counts as one
        return []

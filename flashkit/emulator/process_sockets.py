"""Which TCP ports the processes of a group talk from: read off /proc, so on Linux alone.

A frozen worker has connections of its own to the platform, a client's that calls other endpoints for one. They
must break as its polls do, and nothing in a request says whose it is.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
_PROC: Final = Path("/proc")
_INODE_COLUMN: Final = 9


def local_ports(group: int) -> set[int]:
    """Return the local ports of all TCP sockets that processes of this group have; nothing on other systems."""
    if sys.platform != "linux":
        return set()
    inodes = {inode for pid in _members(group) for inode in _socket_inodes(pid)}
    return {port for inode, port in _ports_by_inode() if inode in inodes}


def _members(group: int) -> Iterator[str]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # The name in parentheses may hold anything, so what counts begins after the last one.
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(state[2]) == group:
                    yield entry.name


def _socket_inodes(pid: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in (_PROC / pid / "fd").iterdir():
            with contextlib.suppress(OSError):
                if match := _SOCKET.fullmatch(str(entry.readlink())):
                    yield match[1]


def _ports_by_inode() -> Iterator[tuple[str, int]]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # without IPv6 there is no tcp6
            for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
                columns = line.split()
                yield columns[_INODE_COLUMN], int(columns[1].rpartition(":")[2], 16)

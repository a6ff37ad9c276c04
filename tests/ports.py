"""Ports for servers that are started, killed and started again by the tests."""

from __future__ import annotations

import random
import socket

# Outgoing connections get their ports from 32768 up (ip_local_port_range): a server's port among those may be taken
# between the moment it was found free and the moment the server binds it, or while the server is down.
_BELOW_OUTGOING = range(10_000, 32_000)
_choice = random.SystemRandom()  # the processes of one run must not all draw the same


def free_port() -> int:
    """Return a loopback port that is free and that no outgoing connection will take."""
    for _ in range(1000):
        port = _choice.choice(_BELOW_OUTGOING)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")

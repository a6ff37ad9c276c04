"""Kills the process groups it was told about, once the process that told it is gone, and removes their files.

Runs as a script, `reaper.py FOLDER`, started by the supervisor with a pipe as its standard input, of which the
supervisor alone holds the other end. A line `+123` adds process group 123, `-123` takes it off the list. When the
pipe closes, however its owner died, `kill -9` included, every group still listed gets SIGKILL, and the folder is
removed. Standard library only, and few modules of it: it starts in some 20 ms and stays at a few MB.
"""

import os
import signal
import sys
from collections.abc import Iterable


def read_groups(lines: Iterable[str]) -> set[int]:
    """Return the groups that are listed when the lines end."""
    groups: set[int] = set()
    for line in lines:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    return groups


def main() -> None:
    """Wait for the owner's end, then kill what it left behind."""
    # A terminal signals every process it can see; this one has to outlive its owner.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(0, encoding="ascii") as lines:
        groups = read_groups(lines)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue
    import shutil  # it has time for that now

    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()

"""The files by which clients find a running `flashkit dev`: one of each server, and `dev.json` of the newest.

Several servers may run in one folder. When the one that `dev.json` tells of ends, the newest of the others is put
back there; after one that was killed, clients look at the others' own files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from flashkit.settings import find_dev_records, read_dev_record


@contextlib.contextmanager
def kept_record(file: Path, record: bytes) -> Iterator[None]:
    """Keep this server's record beside the others', and in `file`, for as long as the block lasts."""
    for other in find_dev_records(file):
        if read_dev_record(other) is None:  # its server was killed
            other.unlink(missing_ok=True)
    own = file.with_suffix(f".{os.getpid()}.json")
    _write(own, record)
    _write(file, record)
    try:
        yield
    finally:
        own.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if file.read_bytes() == record:  # a later server in this folder may have put its own there
                _put_back_newest(file)


def _put_back_newest(file: Path) -> None:
    for other in find_dev_records(file):
        if other != file and read_dev_record(other) is not None:
            _write(file, other.read_bytes())
            return
    file.unlink()


def _write(file: Path, record: bytes) -> None:
    draft = file.with_suffix(f".{os.getpid()}")
    try:
        draft.touch(mode=0o600)  # the store's URL may hold a password
        draft.write_bytes(record)
        draft.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise

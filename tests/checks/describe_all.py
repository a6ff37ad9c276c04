"""Describe the app of each folder on the command line, as `--describe` does, all in this one process.

The answers are lines of JSON. A process of its own for each of two hundred small apps would only test the machine.
"""

import os
import sys
from pathlib import Path

from flashkit.worker.main import describe


def main(folders: list[str]) -> None:
    before, path = set(sys.modules), list(sys.path)
    for folder in map(Path, folders):
        os.chdir(folder)
        describe("app.py")
        own = [name for name, module in sys.modules.items() if name not in before and is_below(module, folder)]
        for name in own:
            del sys.modules[name]
        sys.path[:] = path


def is_below(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(folder)


if __name__ == "__main__":
    main(sys.argv[1:])

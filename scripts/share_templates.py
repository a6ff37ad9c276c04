"""Copy the files that all project templates share into each of them.

cookiecutter takes a template as one folder, so what they have in common is kept once, in `worker_templates/_shared`,
and copied. A template that has a file of its own in `_own` of its `cookiecutter.json` keeps it.

    python scripts/share_templates.py            copy
    python scripts/share_templates.py --check    copy nothing; fail when a copy is out of date
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

TEMPLATES = Path(__file__).parent.parent / "worker_templates"
SHARED = TEMPLATES / "_shared"


def stale_copies() -> list[tuple[Path, Path]]:
    """Return the shared files and their copies that differ or are missing."""
    return [
        (source, copy)
        for template in sorted(file.parent for file in TEMPLATES.glob("*/cookiecutter.json"))
        for source, copy in _copies(template)
        if not copy.is_file() or copy.read_bytes() != source.read_bytes()
    ]


def _copies(template: Path) -> list[tuple[Path, Path]]:
    own = set(json.loads((template / "cookiecutter.json").read_text()).get("_own", ()))
    files = [path.relative_to(SHARED) for path in sorted(SHARED.rglob("*")) if path.is_file()]
    # The first part of the name is the project's folder, which every template calls the same.
    return [(SHARED / file, template / file) for file in files if "/".join(file.parts[1:]) not in own]


def main() -> int:
    """Copy, or say what is out of date."""
    stale = stale_copies()
    if "--check" in sys.argv[1:]:
        for _, copy in stale:
            print(f"out of date: {copy.relative_to(TEMPLATES)}; run scripts/share_templates.py")
        return 1 if stale else 0
    for source, copy in stale:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
        print(f"wrote {copy.relative_to(TEMPLATES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

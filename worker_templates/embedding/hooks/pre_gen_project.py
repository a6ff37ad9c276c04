"""Refuse a folder name that cannot be imported or deployed, before anything is written."""

import re
import sys

SLUG = "{{ cookiecutter.project_slug }}"

if not re.fullmatch(r"[a-z][a-z0-9_]{1,48}", SLUG):
    print(
        f"project_slug {SLUG!r} cannot be used: start with a lower case letter and use only lower case letters, "
        "digits and underscores (2 to 49 characters), for example research_agent",
        file=sys.stderr,
    )
    sys.exit(1)

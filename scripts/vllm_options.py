"""Write flashkit/vllm_options.py: the options of the installed vLLM, beside those of the releases that are in it.

    .venv/bin/python scripts/vllm_options.py           merge the installed release into the file
    .venv/bin/python scripts/vllm_options.py --check   say what differs from it, and fail if anything does

Run it once in an environment of every release that flashkit serves in-process, the newest last.
"""

from __future__ import annotations

import argparse
import json
import pprint
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "flashkit" / "vllm_options.py"

HEADER = '''"""vLLM's options by their Python names, per release: what `VLLM(...)` accepts.

Written by scripts/vllm_options.py from vLLM's own command line parser; a test compares it with the installed release.
Each option has a kind, which says how it is written on that command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# fmt: off

'''


def read_installed() -> dict[str, Any]:
    """Return the installed release and its options, kinds, choices and names of parsers."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from flashkit.worker.engines.vllm_releases import find_release, installed_version

    del AsyncEngineArgs  # imported first: the other modules need its side effects
    version = installed_version() or ""
    parser = find_release(version).entry_points().make_arg_parser(FlexibleArgumentParser())
    actions = [action for action in parser._actions if action.option_strings and action.dest != "help"]  # noqa: SLF001
    return {
        "release": ".".join(version.split(".")[:2]),
        "options": {action.dest: kind_of(action) for action in actions},
        "choices": {action.dest: choices_of(action) for action in actions if action.choices},
        "quantizations": sorted(QUANTIZATION_METHODS),
        "tool_parsers": ToolParserManager.list_registered(),
        "reasoning_parsers": ReasoningParserManager.list_registered(),
    }


def kind_of(action: argparse.Action) -> str:
    """Return how an option is written: a switch, a flag, a list, or a value of some type."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return "switch"
    if isinstance(action, argparse._StoreTrueAction):  # noqa: SLF001
        return "flag"
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001
        return "repeated"
    base = base_type(action.type)
    if action.nargs == "+":
        return "integers" if base is int else "list"
    if base in (int, float):
        return base.__name__
    name = getattr(base, "__name__", "str")
    if name.startswith("human_readable_int"):
        return "size"
    return "json" if name in ("loads", "union_dict_and_str", "parse_dataclass") else "str"


def base_type(converter: Any) -> Any:
    """Return the type inside vLLM's wrappers for optional values."""
    while getattr(converter, "__name__", "") in ("_optional_type", "_parse_type"):
        inner = [cell.cell_contents for cell in converter.__closure__ or () if callable(cell.cell_contents)]
        converter = inner[0]
    return converter


def choices_of(action: argparse.Action) -> list[Any]:
    return sorted(
        (choice for choice in action.choices or () if choice is not None), key=lambda value: (str(type(value)), value)
    )


def merge(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with the installed release in them, and its day."""
    release = found["release"]
    releases = {**known["RELEASES"], release: datetime.now(UTC).date().isoformat()}
    releases = dict(sorted(releases.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    options = dict(sorted({**known["OPTIONS"], **found["options"]}.items()))
    missing = {name: set(where) for name, where in known["MISSING"].items()}
    for name in options:
        if name not in found["options"]:
            missing.setdefault(name, set()).add(release)
        elif name not in known["OPTIONS"]:
            missing[name] = set(releases) - {release}
        else:
            missing.get(name, set()).discard(release)
    lists = {
        key.upper(): tuple(sorted({*known[key.upper()], *found[key]}))
        for key in ("quantizations", "tool_parsers", "reasoning_parsers")
    }
    choices = {
        name: tuple(dict.fromkeys([*known["CHOICES"].get(name, ()), *found["choices"].get(name, ())]))
        for name in sorted({*known["CHOICES"], *found["choices"]})
        if name in found["choices"] or name not in found["options"]
    }
    return {
        "RELEASES": releases,
        "OPTIONS": options,
        "MISSING": {name: tuple(sorted(where)) for name, where in sorted(missing.items()) if where},
        "CHOICES": choices,
        **lists,
    }


DOCS = {
    "RELEASES": ("Mapping[str, str]", "Releases in these tables, and the day on which each was read."),
    "OPTIONS": ("Mapping[str, str]", "Options by name; the value is the kind."),
    "MISSING": ("Mapping[str, tuple[str, ...]]", "Options that some of the releases do not have."),
    "CHOICES": ("Mapping[str, tuple[str | int, ...]]", "What an option may be, where that is a closed set."),
    "QUANTIZATIONS": ("tuple[str, ...]", "What `quantization` may be; a plugin can bring others."),
    "TOOL_PARSERS": ("tuple[str, ...]", "What `tool_call_parser` may be; a plugin can bring others."),
    "REASONING_PARSERS": ("tuple[str, ...]", "What `reasoning_parser` may be; a plugin can bring others."),
}


def render(tables: dict[str, Any]) -> str:
    """Return the module's text."""
    parts = [HEADER]
    for name, (annotation, doc) in DOCS.items():
        parts.append(f'{name}: Final[{annotation}] = {literal(tables[name])}\n"""{doc}"""\n\n')
    return "".join(parts).rstrip() + "\n"


def literal(value: Any) -> str:
    """Return a table as Python text that fits into the lines of the house."""
    if not value:
        return repr(value)
    text = pprint.pformat(value, width=114, sort_dicts=False, compact=True)
    lines = [line.strip() for line in text[1:-1].splitlines()]
    body = "\n".join(f"    {line}" for line in lines)
    return f"{text[0]}\n{body},\n{text[-1]}".replace("'", '"')


def known_tables() -> dict[str, Any]:
    empty = {name: () if annotation.startswith("tuple") else {} for name, (annotation, _) in DOCS.items()}
    if not TARGET.exists():
        return empty
    scope: dict[str, Any] = {}
    exec(compile(TARGET.read_text(), TARGET, "exec"), scope)
    return {name: scope[name] for name in empty}


def differences(found: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return what the file says otherwise than the installed release."""
    release = found["release"]
    if release not in known["RELEASES"]:
        return {"release": f"{release} is not in the file"}
    stated = {name: kind for name, kind in known["OPTIONS"].items() if release not in known["MISSING"].get(name, ())}
    wrong = {name: [stated.get(name), kind] for name, kind in found["options"].items() if stated.get(name) != kind}
    wrong |= {name: [kind, None] for name, kind in stated.items() if name not in found["options"]}
    for key in ("quantizations", "tool_parsers", "reasoning_parsers"):
        if absent := set(found[key]) - set(known[key.upper()]):
            wrong[key] = sorted(absent)
    for name, choices in found["choices"].items():
        if absent := set(choices) - set(known["CHOICES"].get(name, ())):
            wrong[f"choices of {name}"] = sorted(map(str, absent))
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    found = read_installed()
    if arguments.check:
        wrong = differences(found, known_tables())
        print(json.dumps(wrong))
        return 1 if wrong else 0
    TARGET.write_text(render(merge(known_tables(), found)))
    print(f"wrote {TARGET.name} with vLLM {found['release']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

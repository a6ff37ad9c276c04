"""A Dockerfile as instructions, and which files `.dockerignore` keeps out of the image."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_HEREDOC: Final = re.compile(r"<<-?[\"']?(\w+)[\"']?")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    word: str
    """In upper case."""
    rest: str
    line: int

    @property
    def arguments(self) -> list[str]:
        """Words after it, without flags such as `--from=build`."""
        return [word for word in _split(self.rest) if not word.startswith("--")]

    @property
    def flags(self) -> Mapping[str, str]:
        """Flags by name, without dashes."""
        words = (word for word in _split(self.rest) if word.startswith("--"))
        return {name.removeprefix("--"): value for name, _, value in (word.partition("=") for word in words)}

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield names and values of an ENV or ARG."""
        words = self.arguments
        if self.word == "ENV" and len(words) >= 2 and "=" not in words[0]:  # noqa: PLR2004 - the old form: ENV name value
            yield words[0], " ".join(words[1:])
            return
        for word in words:
            name, _, value = word.partition("=")
            yield name, value


@dataclass(frozen=True, slots=True)
class Image:
    """What one Dockerfile builds."""

    path: str
    instructions: tuple[Instruction, ...]

    @property
    def last_stage(self) -> tuple[Instruction, ...]:
        """The instructions of the image itself, from its FROM on."""
        starts = [index for index, each in enumerate(self.instructions) if each.word == "FROM"]
        return self.instructions[starts[-1] :] if starts else ()

    @property
    def env(self) -> dict[str, str]:
        """Variables that the image gives its process."""
        return dict(pair for each in self.last_stage if each.word == "ENV" for pair in each.pairs())

    def bases(self) -> Iterator[tuple[Instruction, str]]:
        """Yield each FROM with the image it names, variables put in; names of earlier stages are left out."""
        known: dict[str, str] = {}
        stages: set[str] = set()
        for each in self.instructions:
            if each.word == "ARG":
                known.update(each.pairs())
            elif each.word == "FROM" and each.arguments:
                words = each.arguments
                base = expand(words[0], known)
                if base not in stages and base != "scratch":
                    yield each, base
                if len(words) > 2 and words[1].upper() == "AS":  # noqa: PLR2004 - image AS name
                    stages.add(words[2])

    def copies(self) -> Iterator[tuple[Instruction, Sequence[str], str]]:
        """Yield each COPY and ADD from the build's context: its sources and its destination."""
        for each in self.instructions:
            words = each.arguments
            if each.word in ("COPY", "ADD") and "from" not in each.flags and len(words) > 1:
                yield each, words[:-1], words[-1]


def read_dockerfile(path: str, text: str) -> Image:
    """Return the instructions of a Dockerfile; what cannot be read is left out."""
    return Image(path, tuple(_instructions(text)))


def is_in_image(path: str, image: Image, ignored: str | None) -> bool:
    """Return whether a COPY or ADD puts a file of the project into the image.

    Args:
        path: Relative to the build's context, the project's folder.
        image: Where it may be copied to.
        ignored: Text of `.dockerignore`, None where there is none.
    """
    if ignored is not None and is_matched(path, ignored):
        return False
    return any(_takes(source, path) for _, sources, _ in image.copies() for source in sources)


def is_matched(path: str, patterns: str) -> bool:
    """Return whether the patterns of a `.dockerignore` or `.gitignore` match a file; the last one that does decides."""
    is_out = False
    for line in patterns.splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        pattern = text.removeprefix("!").strip("/")
        if re.fullmatch(_as_expression(pattern), path):
            is_out = not text.startswith("!")
    return is_out


def expand(text: str, values: Mapping[str, str]) -> str:
    """Return the text with variables of the Dockerfile put in."""

    def value_of(found: re.Match[str]) -> str:
        name, default = found[1] or found[3], found[2] or ""
        return values.get(name) or default

    return _VARIABLE.sub(value_of, text)


def _takes(source: str, path: str) -> bool:
    source = source.removeprefix("./").strip("/")
    if source in ("", "."):
        return True
    return bool(re.fullmatch(_as_expression(source), path))


def _as_expression(pattern: str) -> str:
    """Return a regular expression for a pattern that matches a path or a folder above it."""
    parts = re.split(r"(\*\*/?|\*|\?)", pattern)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(words.get(part, re.escape(part)) for part in parts) + "(?:/.*)?"


def _instructions(text: str) -> Iterator[Instruction]:
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        first, words = index, ""
        while index < len(lines):
            line = lines[index].strip()
            index += 1
            if line.startswith("#") or (words and not line):
                continue
            words += line.removesuffix("\\")
            if not line.endswith("\\"):
                break
            words += " "
        for end in _HEREDOC.findall(words):
            while index < len(lines) and lines[index].strip() != end:
                index += 1
            index += 1
        word, _, rest = words.strip().partition(" ")
        if word.isalpha():
            yield Instruction(word.upper(), rest.strip(), _first_word_line(lines, first))


def _first_word_line(lines: Sequence[str], index: int) -> int:
    while index < len(lines) - 1 and (not lines[index].strip() or lines[index].lstrip().startswith("#")):
        index += 1
    return index + 1


def _split(text: str) -> list[str]:
    if text.startswith("["):
        return [word.strip(" \"'") for word in text.strip("[] ").split(",")]
    try:
        return shlex.split(text)
    except ValueError:  # a quote that is not closed
        return text.split()

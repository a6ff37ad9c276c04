"""GraphQL as far as clients of Runpod write it: one operation, fields with arguments, variables, nested selections.

No fragments, directives or subscriptions. `parse` reads a document; `select` cuts an answer down to what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

_TOKEN: Final = re.compile(
    r"""[\s,]+|\#[^\n]*|(?P<word>[_A-Za-z]\w*)|(?P<text>"(?:[^"\\\n]|\\.)*")"""
    r"""|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<mark>[{}()\[\]:$!=])"""
)
_DEEPEST: Final = 20


class GraphqlError(Exception):
    """A document that cannot be answered."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a selection."""

    name: str
    alias: str
    arguments: Mapping[str, Any]
    selection: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """A query or a mutation."""

    kind: str
    fields: tuple[Field, ...]


def parse(document: str, variables: Mapping[str, Any]) -> Operation:
    """Return the operation of a document, with its variables filled in.

    Raises:
        GraphqlError: It is not GraphQL, or more of it than is read here.
    """
    reader = _Reader(_tokens(document), variables)
    kind = reader.take() if reader.peek() in ("query", "mutation") else "query"
    while reader.peek() not in ("{", ""):  # the operation's name, and the types of its variables
        if reader.take() == "(":
            reader.skip_to(")")
    fields = reader.selection(0)
    if reader.peek():
        raise GraphqlError(f"unexpected {reader.peek()!r} after the operation")
    return Operation(kind, fields)


def select(value: Any, selection: tuple[Field, ...]) -> Any:
    """Return the parts of a value that a selection names.

    Raises:
        GraphqlError: It names one that there is not.
    """
    if isinstance(value, list):
        return [select(item, selection) for item in value]
    if not selection or value is None:
        return value
    unknown = [field.name for field in selection if field.name not in value]
    if unknown:
        raise GraphqlError(f"cannot query field {unknown[0]!r}")
    return {field.alias: select(value[field.name], field.selection) for field in selection}


def _tokens(document: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(document):
        match = _TOKEN.match(document, position)
        if match is None:
            raise GraphqlError(f"unexpected character {document[position]!r}")
        position = match.end()
        if match.lastgroup:
            tokens.append(match[0])
    return tokens


class _Reader:
    def __init__(self, tokens: list[str], variables: Mapping[str, Any]) -> None:
        self._tokens = tokens
        self._variables = variables
        self._position = 0

    def peek(self) -> str:
        """Return the next token, an empty one at the end."""
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise GraphqlError("the document ends too early")
        self._position += 1
        return token

    def expect(self, token: str) -> None:
        if (found := self.take()) != token:
            raise GraphqlError(f"expected {token!r}, found {found!r}")

    def skip_to(self, token: str) -> None:
        while self.take() != token:
            pass

    def selection(self, depth: int) -> tuple[Field, ...]:
        if depth > _DEEPEST:
            raise GraphqlError("the selection is nested too deeply")
        self.expect("{")
        fields: list[Field] = []
        while self.peek() != "}":
            fields.append(self._field(depth))
        self.expect("}")
        return tuple(fields)

    def _field(self, depth: int) -> Field:
        alias = name = self._name()
        if self.peek() == ":":
            self.take()
            name = self._name()
        arguments = self._arguments() if self.peek() == "(" else {}
        selection = self.selection(depth + 1) if self.peek() == "{" else ()
        return Field(name, alias, arguments, selection)

    def _name(self) -> str:
        name = self.take()
        if not (name[0].isalpha() or name[0] == "_"):
            raise GraphqlError(f"expected a name, found {name!r}")
        return name

    def _arguments(self) -> dict[str, Any]:
        self.expect("(")
        return self._pairs(")", depth=0)

    def _pairs(self, end: str, *, depth: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while self.peek() != end:
            name = self._name()
            self.expect(":")
            pairs[name] = self._value(depth + 1)
        self.expect(end)
        return pairs

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise GraphqlError("a value is nested too deeply")
        token = self.take()
        match token[0]:
            case "$":
                name = self._name()
                if name not in self._variables:
                    raise GraphqlError(f"variable ${name} is not given")
                return self._variables[name]
            case "{":
                return self._pairs("}", depth=depth)
            case "[":
                items: list[Any] = []
                while self.peek() != "]":
                    items.append(self._value(depth + 1))
                self.take()
                return items
            case '"' | "-" | "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9":
                return _literal(token)
        return {"true": True, "false": False, "null": None}.get(token, token)  # a bare word names an enum's value


def _literal(token: str) -> Any:
    try:
        return orjson.loads(token)
    except orjson.JSONDecodeError as exc:
        raise GraphqlError(f"{token[:40]} is not a value") from exc

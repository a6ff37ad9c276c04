"""LangGraph's values as bytes and back: msgpack of plain values, and of the few classes that are named here.

Stored bytes never name code. A class travels as a short tag, and the tag is looked up in a table that the
running program made: LangChain's messages and documents, LangGraph's own `Send`, `Interrupt`, `Overwrite` and
`Command`, dates, decimals, UUIDs and sets, and the classes the program passes in `types`. Anything else is
refused when it is written, so nothing is found out on the day of the resume.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NamedTuple
from uuid import UUID

import ormsgpack
from langchain_core import messages
from langchain_core.documents import Document
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Command, Interrupt, Overwrite, Send

from flashkit.errors import FlashkitError, InputError, RecordCorrupt

FORMAT: Final = "fk1"
"""Type that LangGraph stores beside our bytes."""

_TAGGED: Final = 1
"""The one msgpack extension: its data is the pair of a tag and plain values."""
_OPTIONS: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)


_PLAIN: Final[tuple[Any, ...]] = (str, int, float, dict, list, tuple)


class Form(NamedTuple):
    """How values of one class are stored."""

    tag: str
    dump: Callable[[Any], Any]
    """Returns plain values, or values that have a form themselves."""
    load: Callable[[Any], Any]


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _dump_model(value: Any) -> Any:
    return dict(value)  # fields and extras as they are: models in them have forms of their own


def _class_form(cls: type, tag: str) -> Form:
    dump = _dump_model if hasattr(cls, "model_validate") else _fields_of
    return Form(tag, dump, lambda values: cls(**values))


def _load_send(values: Any) -> Send:
    return Send(values[0], values[1])


def _dump_send(value: Send) -> tuple[str, Any]:
    if getattr(value, "timeout", None) is not None:
        raise InputError("a Send with a timeout cannot be stored in a checkpoint", hint="limit the node's time instead")
    return (value.node, value.arg)


_MESSAGES: Final = (
    messages.HumanMessage,
    messages.HumanMessageChunk,
    messages.AIMessage,
    messages.AIMessageChunk,
    messages.SystemMessage,
    messages.SystemMessageChunk,
    messages.ToolMessage,
    messages.ToolMessageChunk,
    messages.ChatMessage,
    messages.ChatMessageChunk,
    messages.FunctionMessage,
    messages.FunctionMessageChunk,
    messages.RemoveMessage,
)

_FORMS: Final[dict[type, Form]] = {
    datetime: Form("datetime", datetime.isoformat, datetime.fromisoformat),
    date: Form("date", date.isoformat, date.fromisoformat),
    time: Form("time", time.isoformat, time.fromisoformat),
    timedelta: Form("timedelta", lambda v: (v.days, v.seconds, v.microseconds), lambda v: timedelta(*v)),
    Decimal: Form("decimal", str, Decimal),
    UUID: Form("uuid", str, UUID),
    set: Form("set", list, set),
    frozenset: Form("frozenset", list, frozenset),
    deque: Form("deque", list, deque),
    bytearray: Form("bytearray", bytes, bytearray),
    Document: _class_form(Document, "document"),
    Send: Form("send", _dump_send, _load_send),
    Interrupt: Form("interrupt", lambda v: (v.value, v.id), lambda v: Interrupt(value=v[0], id=v[1])),
    Command: _class_form(Command, "command"),
    Overwrite: Form("overwrite", lambda v: v.value, Overwrite),
    _DeltaSnapshot: Form("delta", lambda v: v.value, _DeltaSnapshot),
    **{cls: _class_form(cls, f"message:{cls.__name__}") for cls in _MESSAGES},
}


class PlainValues:
    """LangGraph's serializer protocol over the values described above.

    Args:
        types: More classes that may be in the state: dataclasses and pydantic models. They are stored by
            their bare names, which therefore must differ.
    """

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._forms = dict(_FORMS)
        for cls in types:
            self._forms[cls] = _form_of_user(cls)
        self._loaders = {form.tag: form.load for form in self._forms.values()}
        if len(self._loaders) != len(self._forms):
            raise InputError("two classes in `types` have one name", hint="rename one of them")

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the format's name and the bytes.

        Raises:
            InputError: A value is of a class that is not named.
        """
        return FORMAT, self.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return the value. Raises `RecordCorrupt`."""
        kind, packed = data
        if kind != FORMAT:
            raise RecordCorrupt(f"a checkpoint's value is stored as {kind!r}, which this checkpointer never writes")
        return self.loads(packed)

    def dumps(self, obj: Any) -> bytes:
        """Return the value's bytes; see `dumps_typed`."""
        noted: list[Exception] = []
        try:
            packed: bytes = ormsgpack.packb(obj, default=_noting(self._tag, noted), option=_OPTIONS)
        except ormsgpack.MsgpackEncodeError as exc:
            cause = noted[0] if noted else exc
            if isinstance(cause, FlashkitError):
                raise cause from None
            raise InputError(f"the state cannot be stored: {cause}", hint="store plain values") from cause
        return packed

    def loads(self, packed: bytes) -> Any:
        """Return the bytes' value; see `loads_typed`."""
        noted: list[Exception] = []
        try:
            hook = _noting(self._untag, noted)
            return ormsgpack.unpackb(packed, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)
        except ormsgpack.MsgpackDecodeError as exc:
            cause = noted[0] if noted else exc
            if isinstance(cause, FlashkitError):
                raise cause from None
            raise RecordCorrupt(f"a checkpoint's value cannot be read: {cause}") from cause

    def _tag(self, value: Any) -> Any:
        form = self._forms.get(type(value))
        if form is not None:
            return ormsgpack.Ext(_TAGGED, self.dumps((form.tag, form.dump(value))))
        if isinstance(value, BaseException):
            return repr(value)  # what a failed task leaves behind, for people
        if isinstance(value, Enum):
            return value.value
        for plain in _PLAIN:  # subclasses of them: defaultdict, NamedTuple
            if isinstance(value, plain):
                return plain(value)
        name = type(value).__name__
        raise InputError(
            f"a {type(value).__module__}.{name} cannot be stored in a checkpoint",
            hint=f"keep plain values in the state, or name the class: FlashkitSaver(url, types=[{name}])",
        )

    def _untag(self, code: int, packed: bytes) -> Any:
        if code != _TAGGED:
            raise RecordCorrupt(f"a checkpoint's value has an extension {code}, which this checkpointer never writes")
        tag, plain = self.loads(packed)
        load = self._loaders.get(tag)
        if load is None:
            raise RecordCorrupt(
                f"a checkpoint holds a {str(tag).removeprefix('type:')!r}, which this program does not name",
                hint="pass the class in FlashkitSaver(url, types=[...])",
            )
        return load(plain)


def _noting(hook: Callable[..., Any], noted: list[Exception]) -> Callable[..., Any]:
    """Return the hook, which also notes what it raises: ormsgpack only says that a hook failed."""

    def call(*arguments: Any) -> Any:
        try:
            return hook(*arguments)
        except Exception as exc:
            noted.append(exc)
            raise

    return call


def _form_of_user(cls: type) -> Form:
    if not (dataclasses.is_dataclass(cls) or hasattr(cls, "model_validate")):
        raise InputError(
            f"types=[{cls.__name__}]: it is neither a dataclass nor a pydantic model", hint="store plain values instead"
        )
    return _class_form(cls, f"type:{cls.__name__}")

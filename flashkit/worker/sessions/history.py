"""A session's conversation: messages, how many tokens they take, and how they are made to fit.

Compaction loses the oldest first and tool output before words: tool output is cut to its head and tail, then the
oldest messages are handed to a summary hook (or dropped) until the rest fits. There is one summary: the next one
is made of it and of the messages that go then. System messages and the last message always stay, and what an
assistant asks of its tools stays or goes together with what they answer, because chat APIs refuse one without the
other.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal

from flashkit.errors import SessionError
from flashkit.handler import encode_json, parse_json
from flashkit.worker.sessions.scope import running_step

Role = Literal["system", "user", "assistant", "tool"]
CountTokens = Callable[[str], int]
Summarise = Callable[[Sequence["Message"]], str | Awaitable[str]]

CHARACTERS_PER_TOKEN: Final = 4
"""Rule of thumb for English text and byte-pair encodings; give `count_tokens` for your model's own count."""
TOKENS_PER_MESSAGE: Final = 4
"""What chat templates add around each message."""
TOKENS_PER_ATTACHMENT: Final = 1_000
"""Rule of thumb for a part that is not text; a photo takes vision models several hundred to 1,500."""
_SUMMARY: Final = "Summary of the conversation so far: "


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str | list[dict[str, Any]] | None
    """Text, a list of parts (text and images), or nothing beside `tool_calls`."""
    name: str | None = None
    """Which tool, for tool output."""
    tool_calls: list[dict[str, Any]] | None = None
    """What an assistant asks of its tools."""
    tool_call_id: str | None = None
    """Which of the calls a tool's output answers."""
    is_summary: bool = False
    """It stands for messages that were dropped."""

    @property
    def text(self) -> str:
        """The content's text, without its other parts."""
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content if _is_text(part))
        return self.content or ""

    def to_dict(self) -> dict[str, Any]:
        """Return the message in the shape that chat APIs take."""
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "is_summary"}
        return {"role": self.role, "content": self.content, **given}


def estimate_tokens(text: str) -> int:
    """Return roughly how many tokens a text has."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


class History:
    """The messages of a session, oldest first."""

    def __init__(self, messages: Iterable[Message] = (), *, count_tokens: CountTokens = estimate_tokens) -> None:
        self._messages = list(messages)
        self.count_tokens = count_tokens

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in the shape that chat APIs take."""
        return [message.to_dict() for message in self._messages]

    @property
    def tokens(self) -> int:
        """How many tokens the conversation takes."""
        return self._size_of(self._messages)

    def add(
        self,
        role: Role,
        content: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        name: str | None = None,
        tool_calls: Sequence[Any] | None = None,
        tool_call_id: str | None = None,
    ) -> None:
        """Append a message.

        Args:
            role: Who speaks.
            content: Text, or a list of parts as chat APIs take them; None only beside `tool_calls`.
            name: Which tool, for tool output.
            tool_calls: What the assistant asks of its tools, as the model's API returned it.
            tool_call_id: Which of the calls a tool's output answers.

        Raises:
            SessionError: It is no message, or this is the function of a step, which does not run again when the
                session is resumed.
        """
        _require_handler("add")
        if content is None and not tool_calls:
            raise SessionError(f"a message of {role!r} has neither content nor tool_calls", hint="give it a text")
        calls = _plain("tool_calls", tool_calls) if tool_calls else None
        parts = content if isinstance(content, str | None) else _plain("content", content)
        self._messages.append(Message(role, parts, name, calls, tool_call_id))

    def clear(self) -> None:
        """Forget the conversation."""
        _require_handler("clear")
        self._messages.clear()

    async def compact(
        self, max_tokens: int, *, tool_output_tokens: int = 400, summarise: Summarise | None = None
    ) -> int:
        """Make the conversation fit into `max_tokens` and return how many tokens it takes then.

        Args:
            max_tokens: What the model has room for, its answer not included.
            tool_output_tokens: Older tool output longer than this is cut in the middle.
            summarise: Turns the oldest messages, with the last summary as the first of them, into one text (sync or
                async); without it they are dropped. What is longer than the room it leaves is cut.

        Raises:
            SessionError: The system messages and the last message alone do not fit, or this is the function of a
                step. The conversation is left as it was.
        """
        _require_handler("compact")
        if self.tokens <= max_tokens:
            return self.tokens
        before = len(self._messages)
        kept = [self._cut_output(each, tool_output_tokens) if each.role == "tool" else each for each in self._messages]
        dropped = self._drop_oldest(kept, max_tokens - (max_tokens // 5 if summarise else 0))
        free = max_tokens - self._size_of(kept)
        if free < 0:
            raise SessionError(
                f"the system messages and the last message take {max_tokens - free} tokens, "
                f"more than the {max_tokens} there are",
                hint="shorten them, or use a model with a longer context",
            )
        if dropped and summarise:
            text = summarise(dropped)
            summary = self._fit_summary(await text if inspect.isawaitable(text) else text, free)
            kept[_after_system(kept) : _after_system(kept)] = summary
        self._messages[:before] = kept
        return self.tokens

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values for a snapshot."""
        return [
            {**message.to_dict(), "is_summary": True} if message.is_summary else message.to_dict()
            for message in self._messages
        ]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]], *, count_tokens: CountTokens = estimate_tokens) -> History:
        """Build the history from a snapshot."""
        known = {field.name for field in fields(Message)}
        messages = (Message(**{name: value for name, value in item.items() if name in known}) for item in data)
        return cls(messages, count_tokens=count_tokens)

    def _size(self, message: Message) -> int:
        size = self.count_tokens(message.text) + TOKENS_PER_MESSAGE
        if isinstance(message.content, list):
            size += TOKENS_PER_ATTACHMENT * sum(not _is_text(part) for part in message.content)
        if message.tool_calls:
            size += self.count_tokens(encode_json(message.tool_calls).decode())
        return size

    def _size_of(self, messages: Iterable[Message]) -> int:
        return sum(map(self._size, messages))

    def _drop_oldest(self, messages: list[Message], max_tokens: int) -> list[Message]:
        """Take the oldest messages out until the rest fits, and return them.

        The last summary goes with the first of them: what takes its place is made of both.
        """
        dropped: list[Message] = []
        size = self._size_of(messages)
        while size > max_tokens or (len(dropped) == 1 and dropped[0].is_summary):
            oldest = _oldest_unit(messages)
            if oldest is None:
                break
            size -= self._size_of(messages[oldest])
            dropped += messages[oldest]
            del messages[oldest]
        return dropped

    def _cut_output(self, message: Message, max_tokens: int) -> Message:
        """Return tool output that is cut in the middle; each text for itself where it has several."""
        if self._size(message) <= max_tokens:
            return message
        room = max_tokens - TOKENS_PER_MESSAGE
        if isinstance(message.content, list):
            texts = sum(map(_is_text, message.content)) or 1
            parts = [
                {**part, "text": self._cut(part["text"], room // texts)} if _is_text(part) else part
                for part in message.content
            ]
            return replace(message, content=parts)
        return replace(message, content=self._cut(message.text, room))

    def _cut(self, text: str, max_tokens: int) -> str:
        """Return a text's head and tail, as much as fits; without any room, only how much was left out."""
        shorter, kept = text, len(text)
        while kept and (size := self.count_tokens(shorter)) > max_tokens:
            kept = min(kept * 7 // 8, kept * max(0, max_tokens) // size)
            head, tail = text[: kept - kept // 2], text[len(text) - kept // 2 :]
            shorter = f"{head}\n[… {len(text) - kept:,} characters left out …]\n{tail}"
        return min(text, shorter, key=self.count_tokens)

    def _fit_summary(self, summary: str, max_tokens: int) -> list[Message]:
        """Return the summary's message, cut to what is free; nothing where not even its beginning fits."""
        content = self._cut(_SUMMARY + summary, max_tokens - TOKENS_PER_MESSAGE)
        message = Message("system", content, is_summary=True)
        return [message] if self._size(message) <= max_tokens else []


def _oldest_unit(messages: Sequence[Message]) -> slice | None:
    """Return the oldest messages that may go, together: a message, or an assistant's calls and what answers them."""
    start = 0
    while start < len(messages):
        end = start + 1
        if messages[start].tool_calls:
            while end < len(messages) and messages[end].role == "tool":
                end += 1
        if end == len(messages):
            return None
        if messages[start].role != "system" or messages[start].is_summary:
            return slice(start, end)
        start = end
    return None


def _after_system(messages: Sequence[Message]) -> int:
    """Return the place after the system messages with which a conversation begins."""
    return next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))


def _is_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str)


def _plain(what: str, value: Sequence[Any]) -> list[dict[str, Any]]:
    """Return values of a model's API, which may be its client's own objects, as plain JSON values."""
    try:
        parts = parse_json(encode_json(value))
    except (TypeError, ValueError) as exc:
        raise SessionError(f"{what} of a message cannot be kept: {exc}", hint="give it as plain values") from exc
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise SessionError(f"{what} of a message is {value!r}", hint="give a list of objects, as chat APIs take it")
    return parts


def _require_handler(method: str) -> None:
    if step := running_step():
        raise SessionError(
            f"session.history.{method}() was called in the function of step {step.key!r}, which does not run again "
            "when the session is resumed: the change would be lost",
            hint="return the value from the step, and change the history in the handler",
        )

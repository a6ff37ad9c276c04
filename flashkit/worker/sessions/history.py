"""A session's conversation: messages, how many tokens they take, and how they are made to fit.

Compaction loses the oldest first and tool output before words: tool output is cut to its head and tail,
then the oldest messages are handed to a summary hook (or dropped) until the rest fits. System messages
and the last message always stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from flashkit.errors import SessionError

Role = Literal["system", "user", "assistant", "tool"]
CountTokens = Callable[[str], int]
Summarise = Callable[[Sequence["Message"]], str | Awaitable[str]]

CHARACTERS_PER_TOKEN: Final = 4
"""Rule of thumb for English text and byte-pair encodings; give `count_tokens` for your model's own count."""
TOKENS_PER_MESSAGE: Final = 4
"""What chat templates add around each message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    name: str | None = None
    """Which tool, for tool output."""

    def to_dict(self) -> dict[str, Any]:
        """Return the message in the shape that chat APIs take."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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
        return sum(map(self._size, self._messages))

    def add(self, role: Role, content: str, *, name: str | None = None) -> None:
        """Append a message."""
        self._messages.append(Message(role, content, name))

    def clear(self) -> None:
        """Forget the conversation."""
        self._messages.clear()

    async def compact(
        self, max_tokens: int, *, tool_output_tokens: int = 400, summarise: Summarise | None = None
    ) -> int:
        """Make the conversation fit into `max_tokens` and return how many tokens it takes then.

        Args:
            max_tokens: What the model has room for, its answer not included.
            tool_output_tokens: Older tool output longer than this is cut in the middle.
            summarise: Turns the oldest messages into one text (sync or async); without it they are dropped.

        Raises:
            SessionError: The system messages and the last message alone do not fit.
        """
        if self.tokens <= max_tokens:
            return self.tokens
        self._messages = [
            self._cut(message, tool_output_tokens) if message.role == "tool" else message for message in self._messages
        ]
        dropped: list[Message] = []
        reserve = max_tokens // 5 if summarise else 0
        while self.tokens > max_tokens - reserve and (oldest := self._oldest_droppable()) is not None:
            dropped.append(self._messages.pop(oldest))
        if dropped and summarise:
            await self._insert_summary(dropped, summarise, reserve)
        if self.tokens > max_tokens:
            raise SessionError(
                f"the system messages and the last message take {self.tokens} tokens, "
                f"more than the {max_tokens} there are",
                hint="shorten them, or use a model with a longer context",
            )
        return self.tokens

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values for a snapshot."""
        return self.messages

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]], *, count_tokens: CountTokens = estimate_tokens) -> History:
        """Build the history from a snapshot."""
        messages = (Message(item["role"], item["content"], item.get("name")) for item in data)
        return cls(messages, count_tokens=count_tokens)

    def _size(self, message: Message) -> int:
        return self.count_tokens(message.content) + TOKENS_PER_MESSAGE

    def _oldest_droppable(self) -> int | None:
        last = len(self._messages) - 1
        return next((i for i, message in enumerate(self._messages) if message.role != "system" and i != last), None)

    def _cut(self, message: Message, max_tokens: int) -> Message:
        if self._size(message) <= max_tokens:
            return message
        kept = max_tokens * CHARACTERS_PER_TOKEN // 2
        left_out = len(message.content) - 2 * kept
        content = f"{message.content[:kept]}\n[… {left_out:,} characters left out …]\n{message.content[-kept:]}"
        return Message(message.role, content, message.name)

    async def _insert_summary(self, dropped: Sequence[Message], summarise: Summarise, reserve: int) -> None:
        text = summarise(dropped)
        summary = await text if inspect.isawaitable(text) else text
        position = next(
            (i for i, message in enumerate(self._messages) if message.role != "system"), len(self._messages)
        )
        content = f"Summary of the conversation so far: {summary}"
        self._messages.insert(position, self._cut(Message("system", content), reserve))

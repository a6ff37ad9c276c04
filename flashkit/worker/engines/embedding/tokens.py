"""From texts to tokens: what is accepted, how long it may be, and what was cut off.

Texts are checked on the loop, before anything else, so that a caller's mistake is that caller's alone. Tokenizing runs
in a thread, many texts in one call of the Rust library, which lets go of the interpreter meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flashkit.errors import ConfigurationError, InputError
from flashkit.worker.engines.embedding.layout import Layout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHARACTERS_PER_TOKEN: Final = 64
"""What lies beyond so many for each token that a text may have is cut off unread: no language needs half of it."""
_SHOWN: Final = 40

Input = str | tuple[str, str] | tuple[int, ...]
"""A text, a pair of texts for a cross-encoder, or a text's tokens."""


class Tokens(NamedTuple):
    """A text as the model reads it."""

    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.int32] | None
    """Which of two texts each token is of."""
    is_truncated: bool


def check_texts(texts: Any, *, what: str = "texts") -> list[str]:
    """Return a caller's texts as a list.

    Raises:
        InputError: They are no texts, or one of them has no UTF-8 form; the message names it.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"{what} is {_kind(texts)}, not a list of texts", hint="put a single text into a list: [text]")
    if not texts:
        raise InputError(f"{what} is empty", hint="send one text at least")
    for index, text in enumerate(texts):
        check_text(text, f"{what}[{index}]")
    return list(texts)


def check_text(text: Any, what: str) -> str:
    """Return a text.

    Raises:
        InputError: It is none, or has no UTF-8 form.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is {_kind(text)}, not a text", hint="send strings")
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as exc:
        raise InputError(
            f"{what} has half of a surrogate pair at character {exc.start}: {text[exc.start]!a}",
            hint="it was cut, or decoded wrongly; text.encode('utf-8', 'replace').decode() replaces such characters",
        ) from None
    return text


def check_ids(ids: Sequence[int], what: str, *, vocabulary: int) -> tuple[int, ...]:
    """Return a text's tokens.

    Raises:
        InputError: There are none, or one is not in the model's vocabulary.
    """
    if not ids:
        raise InputError(f"{what} has no tokens", hint="send one token at least")
    wrong = next((token for token in ids if type(token) is not int or not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"{what} has the token {wrong!r}, and the model knows those from 0 to {vocabulary - 1}",
            hint="send texts: tokens of another model's tokenizer mean something else here",
        )
    return tuple(ids)


def _kind(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer, used by one thread at a time."""

    backend: Any
    max_length: int
    vocabulary: int
    lower_case: bool = False
    refuses_long: bool = False
    tells_types: bool = True
    """Says for tokens of a pair which of the two texts they are of."""

    @classmethod
    def load(cls, layout: Layout, *, refuses_long: bool, trust_remote_code: bool) -> Tokenizer:
        """Return the tokenizer of a model's folder.

        Raises:
            ConfigurationError: It is not there, or not one of the quick ones.
        """
        tokenizer = _load(layout.folder, trust_remote_code=trust_remote_code)
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        if not refuses_long:
            backend.enable_truncation(layout.max_length)
        return cls(
            backend,
            layout.max_length,
            len(tokenizer),
            lower_case=layout.lower_case,
            refuses_long=refuses_long,
            tells_types="token_type_ids" in tokenizer.model_input_names,
        )

    def encode(self, inputs: Sequence[Input]) -> list[Tokens | InputError]:
        """Return the tokens of each input, or why it has none that the model could read."""
        positions = [index for index, given in enumerate(inputs) if not _is_ids(given)]
        encodings = self.backend.encode_batch_fast([self._cut(inputs[index]) for index in positions])
        encoded = dict(zip(positions, encodings, strict=True))
        return [
            self._of_encoding(encoded[index], given) if index in encoded else self._of_ids(given)
            for index, given in enumerate(inputs)
        ]

    def _cut(self, given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(map(self._cut, given))
        text = given.lower() if self.lower_case else given
        return text if self.refuses_long else text[: self.max_length * CHARACTERS_PER_TOKEN]

    def _was_cut(self, given: Any) -> bool:
        texts = given if isinstance(given, tuple) else (given,)
        return not self.refuses_long and any(len(text) > self.max_length * CHARACTERS_PER_TOKEN for text in texts)

    def _of_encoding(self, encoding: Any, given: Input) -> Tokens | InputError:
        import numpy as np

        ids = np.array(encoding.ids, dtype=np.int32)
        if not len(ids):
            return InputError("the text has no tokens", hint="leave empty texts out")
        if len(ids) > self.max_length:
            return self._too_long(len(ids))
        has_types = self.tells_types and isinstance(given, tuple)
        types = np.array(encoding.type_ids, dtype=np.int32) if has_types else None
        return Tokens(ids, types, bool(encoding.overflowing) or self._was_cut(given))

    def _of_ids(self, given: Any) -> Tokens | InputError:
        import numpy as np

        if len(given) > self.max_length and self.refuses_long:
            return self._too_long(len(given))
        return Tokens(np.array(given[: self.max_length], dtype=np.int32), None, len(given) > self.max_length)

    def _too_long(self, length: int) -> InputError:
        return InputError(
            f"the text has {length} tokens, and the model reads {self.max_length}",
            hint="send shorter pieces, or let Embedding(too_long='truncate') cut them",
            details={"tokens": length, "max_length": self.max_length},
        )


def _is_ids(given: Input) -> bool:
    return isinstance(given, tuple) and isinstance(given[0], int)


def _load(folder: Path, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, ImportError) as exc:
        raise ConfigurationError(
            f"the tokenizer in {folder} cannot be loaded: {exc}", hint="look whether all files of the model are there"
        ) from exc
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ConfigurationError(
            f"there is no tokenizer in {folder}", hint="look whether all files of the model are there"
        )
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"the tokenizer in {folder} ({type(tokenizer).__name__}) is written in Python, and is too slow to serve",
            hint="convert it to a tokenizer.json, or choose another model",
        )
    return tokenizer

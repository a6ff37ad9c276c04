"""The values that travel between the endpoints, as JSON on the wire."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Author = Literal["model", "model and quotes", "quotes", "nobody"]


class Value(BaseModel):
    """A value that does not change once made."""

    model_config = ConfigDict(frozen=True)


class Page(Value):
    """A web page as text: headings are lines that start with `#`, blocks are separated by blank lines."""

    url: str
    """Where the page was in the end, after redirects."""
    title: str
    text: str


class Passage(Value):
    """A few sentences of one document, small enough for a small model's context."""

    source: str
    """URL or file name of the document."""
    title: str
    """Title of the document and heading of the section."""
    text: str


class Hit(Passage):
    """A passage that was found for a query."""

    score: float
    """Cosine similarity of the passage and the query, at most 1."""


class Message(Value):
    """One turn of a chat with the language model."""

    role: Literal["system", "user", "assistant"]
    content: str


class Generation(Value):
    """Text that the language model wrote."""

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float


class Claim(Value):
    """One sentence of the answer with the evidence that was found for it."""

    text: str
    support: float
    """Cosine similarity of the sentence and the closest sentence of the sources."""
    evidence: str
    """That closest sentence."""
    citation: int | None = None
    """Number of the source, or None when nothing supports the sentence."""
    quoted: bool = False
    """True for a source's own sentence, False for one that the model wrote."""


class Source(Value):
    """A numbered document that the answer cites."""

    number: int
    title: str
    source: str


class Critique(Value):
    """What the checks found: the model's opinion, and the measured support of each sentence."""

    opinion: str
    """The language model's own words, empty when it wandered off; a small model's opinion is worth little."""
    unsupported: list[Claim]
    """Sentences that no source supports. They were taken out of the answer."""
    unanswered: list[str]
    """Sub-queries that no sentence of the answer is about."""


class Report(Value):
    """A cited answer, and everything a reader needs to check it."""

    question: str
    answer: str
    """Sentences with citations such as [1]."""
    written_by: Author
    """Who wrote the answer's sentences; `nobody` when no source is about the question."""
    sources: list[Source]
    claims: list[Claim]
    critique: Critique
    sub_queries: list[str]
    failed_pages: list[str] = Field(default_factory=list)
    """Why pages are missing, one line each."""

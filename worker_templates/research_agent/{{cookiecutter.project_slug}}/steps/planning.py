"""From a question to three sub-queries, and from search results to the passages worth reading.

The language model proposes sub-queries. A model of this size repeats itself or wanders off, so what it
writes is filtered, and queries made from the question's own words fill the gaps: there are always three.
"""

import re
from collections.abc import Iterable, Sequence

from steps.schema import Hit, Message

SUB_QUERIES = 3
MIN_SCORE = 0.25
"""Below this similarity all-MiniLM-L6-v2 has found something else."""

_EXAMPLE_QUESTION = "How do bees find flowers and tell the others?"
_EXAMPLE_PARTS = "1. How do bees find flowers?\n2. What do bees look for in a flower?\n3. How do bees tell other bees?"
_STOP_WORDS = frozenset(
    """
    a about all also an and any are as at be because been but by can cannot could did do does doing each every for
    from get give had has have how i if in into is it its keep like make many may me more most much must my need no
    not of on once one only or other others our out over own same she he should so some such than that the their
    them then there these they this those to too two under until up use used using very was we were what when
    where which while who whom whose why will with without would you your
    """.split()  # noqa: SIM905 - a hundred words read better as text
)


def decomposition_prompt(question: str) -> list[Message]:
    """Return the chat that asks for three sub-questions, with one worked example."""
    return [
        Message(role="user", content=_ask_to_split(_EXAMPLE_QUESTION)),
        Message(role="assistant", content=_EXAMPLE_PARTS),
        Message(role="user", content=_ask_to_split(question)),
    ]


def choose_sub_queries(question: str, draft: str) -> list[str]:
    """Return three different sub-queries: the usable ones of the model's draft, then ones made from the question."""
    chosen: dict[frozenset[str], str] = {}
    for candidate in (*_usable_lines(question, draft), *_clauses(question), question, *_variants(question)):
        chosen.setdefault(frozenset(content_words(candidate)), candidate)
    return list(chosen.values())[:SUB_QUERIES]


def content_words(text: str) -> list[str]:
    """Return the words that carry meaning, in lower case and without plural endings, for comparing texts."""
    words = re.findall(r"[a-z][a-z0-9]+", text.lower())
    return [_singular(word) for word in words if word not in _STOP_WORDS]


def choose_passages(found: Sequence[Sequence[Hit]], limit: int) -> list[Hit]:
    """Return the best passages of several searches: each search's best one first, then by score."""
    best = [hits[0] for hits in found if hits]
    others = sorted((hit for hits in found for hit in hits[1:]), key=lambda hit: -hit.score)
    unique = {hit.text: hit for hit in reversed([*best, *others]) if hit.score >= MIN_SCORE}
    return list(reversed(unique.values()))[:limit]


def _ask_to_split(question: str) -> str:
    return f"Split the question into three short questions.\nQuestion: {question}"


def _usable_lines(question: str, draft: str) -> Iterable[str]:
    subject = set(content_words(question))
    foreign = set(content_words(_EXAMPLE_QUESTION)) - subject
    for line in draft.splitlines():
        numbered = re.match(r"\s*(?:\d+[.)]|[-*])\s+(.+?)\s*$", line)
        words = set(content_words(numbered[1])) if numbered else set()
        if numbered and len(words) > 1 and words & subject and not words & foreign:
            yield numbered[1]


def _clauses(question: str) -> Iterable[str]:
    parts = re.split(r"[,;]\s*(?:and|or|but)?\s+|\s+and\s+(?=how|what|why|when|which|who|where)", question, flags=re.I)
    if len(parts) > 1:
        yield from (part.strip(" ?.") for part in parts if len(content_words(part)) > 1)


def _variants(question: str) -> Iterable[str]:
    words = [word for word in re.findall(r"\w+", question) if word.lower() not in _STOP_WORDS]
    topic = " ".join(words) or question
    yield f"causes and problems: {topic}"
    yield f"recommended practice: {topic}"
    yield f"limits and costs: {topic}"


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word

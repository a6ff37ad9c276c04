"""Citations by measurement: every sentence of an answer is matched with the closest sentence of the sources.

A small model cannot be trusted to cite, so it is not asked to. A sentence counts as supported when a
source sentence means nearly the same (cosine similarity), when all its words but one and all its numbers
occur in that source's passage, and when both or neither contain a negation. This catches inventions; it
is not a proof, since a sentence can reuse a source's words and still twist them.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from steps.documents import split_sentences
from steps.planning import content_words
from steps.schema import Author, Claim, Hit, Message, Passage, Source

MIN_SUPPORT = 0.9
MAX_FOREIGN_WORDS = 1
MIN_SHARED_WORDS = 0.8
MIN_RELEVANCE = 0.45
"""Similarity with the question below which a sentence is true and beside the point."""
MIN_WORDS = 5
MAX_SENTENCES = 4
MIN_SENTENCES = 3
"""With fewer supported sentences, the sources' own closest sentences are quoted as well."""
MIN_COVERAGE = 0.4
"""Similarity above which a sentence of the answer counts as being about a sub-query."""
DRAFT = "draft"
"""Source of sentences that the model wrote, while they are ranked."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NEGATION = re.compile(r"\b(?:not|no|never|none|nothing|cannot|without)\b|n't\b", re.IGNORECASE)
_SUMMARY = (
    "Provide a concise, objective summary of the input text in up to three sentences, focusing on key actions "
    "and intentions without using second or third person pronouns."
)
"""The instruction that SmolLM2 was trained on for summaries; it follows it far better than free wording."""
_CRITIQUES = (
    (
        "Why is the sky blue, and why is it red in the evening?",
        "Air scatters blue light more than red light.",
        "The answer does not say why the sky is red in the evening.",
    ),
    (
        "How do I bake bread without an oven?",
        "Bread can be baked in a pan with a lid on low heat.",
        "The answer does not say how long the bread takes.",
    ),
)


class Written(NamedTuple):
    """The sentences that survived, in the answer's order, and those that did not."""

    kept: list[Claim]
    dropped: list[Claim]


class Cited(NamedTuple):
    """The sentences of the answer and the sources that they cite."""

    claims: list[Claim]
    sources: list[Source]


def summary_prompt(passage: Passage) -> list[Message]:
    """Return the chat that asks for a summary of one passage."""
    return [
        Message(role="system", content=_SUMMARY),
        Message(role="user", content=passage.text.replace("\n", " ")),
    ]


def critique_prompt(question: str, answer: str) -> list[Message]:
    """Return the chat that asks what an answer leaves open, with two worked examples."""
    chat = [
        message
        for asked, answered, missing in _CRITIQUES
        for message in (
            Message(role="user", content=_ask_for_gap(asked, answered)),
            Message(role="assistant", content=missing),
        )
    ]
    return [*chat, Message(role="user", content=_ask_for_gap(question, answer))]


def whole_sentences(text: str) -> list[str]:
    """Return the complete, different sentences of generated text; a cut-off last one is left out."""
    complete = [sentence for sentence in split_sentences(text) if sentence.endswith((".", "!", '."'))]
    return list(dict.fromkeys(sentence for sentence in complete if len(sentence.split()) >= MIN_WORDS))


def evidence_of(passages: Iterable[Passage]) -> list[Passage]:
    """Return every sentence of the passages as a passage of its own, to compare sentences with."""
    sentences = [
        Passage(source=passage.source, title="", text=sentence)
        for passage in passages
        for sentence in split_sentences(passage.text)
        if len(sentence.split()) >= MIN_WORDS
    ]
    return list({(sentence.source, sentence.text): sentence for sentence in sentences}.values())


def drafts_of(sentences: Iterable[str]) -> list[Passage]:
    """Return the model's sentences as passages, to rank them together with the sources' sentences."""
    return [Passage(source=DRAFT, title="", text=sentence) for sentence in sentences]


def number_sources(passages: Sequence[Passage]) -> list[Source]:
    """Return the documents of the passages, numbered from 1 in order of first appearance."""
    titles = {passage.source: passage.title.partition(":")[0] for passage in reversed(passages)}
    order = dict.fromkeys(passage.source for passage in passages)
    return [Source(number=number, title=titles[source], source=source) for number, source in enumerate(order, 1)]


def judge(sentence: str, evidence: Hit, passages: Iterable[Passage], sources: Iterable[Source]) -> Claim:
    """Return a written sentence with its citation, or without one when the evidence does not support it.

    Args:
        sentence: What the model wrote.
        evidence: The closest sentence of the sources.
        passages: What the model read; the evidence comes from one of them.
        sources: The numbered documents.
    """
    context = " ".join(
        passage.text for passage in passages if passage.source == evidence.source and evidence.text in passage.text
    )
    supported = evidence.score >= MIN_SUPPORT and _stays_within(sentence, evidence.text, context)
    return Claim(
        text=sentence,
        support=evidence.score,
        evidence=evidence.text,
        citation=_number_of(evidence, sources) if supported else None,
    )


def quote(evidence: Hit, sources: Iterable[Source]) -> Claim:
    """Return a source's own sentence as part of the answer."""
    return Claim(
        text=f'"{evidence.text}"',
        support=1.0,
        evidence=evidence.text,
        citation=_number_of(evidence, sources),
        quoted=True,
    )


def select(claims: Sequence[Claim], ranked: Sequence[Hit], sources: Sequence[Source]) -> Written:
    """Return the supported sentences, the most relevant first, filled up with quotes when there are too few.

    Args:
        claims: The model's sentences, judged.
        ranked: Every sentence, the model's and the sources', with its similarity to the question, best first.
        sources: The numbered documents.
    """
    relevance = {hit.text: hit.score for hit in ranked if hit.score >= MIN_RELEVANCE}
    quotes = [quote(hit, sources) for hit in ranked if hit.text in relevance and hit.source != DRAFT]
    supported = {claim.evidence: claim for claim in reversed(claims) if claim.citation is not None}
    kept = sorted(
        (claim for claim in supported.values() if claim.text in relevance),
        key=lambda claim: -relevance[claim.text],
    )[:MAX_SENTENCES]
    spare = [claim for claim in quotes if not _is_said(claim.evidence, kept)]
    return Written(
        kept=kept + spare[: max(0, MIN_SENTENCES - len(kept))],
        dropped=[claim for claim in claims if claim.citation is None],
    )


def author(claims: Iterable[Claim]) -> Author:
    """Return who wrote the answer's sentences."""
    quoted = {claim.quoted for claim in claims}
    if not quoted:
        return "nobody"
    if len(quoted) == 1:
        return "quotes" if True in quoted else "model"
    return "model and quotes"


def usable_opinion(question: str, text: str) -> str:
    """Return the model's critique, or nothing when it is about one of the examples and not about the question."""
    words = set(content_words(text))
    foreign = {word for example in _CRITIQUES for word in content_words(example[0])} - set(content_words(question))
    return "" if words & foreign else text


def cited_text(claims: Iterable[Claim]) -> str:
    """Return the answer: each sentence followed by the number of its source."""
    return " ".join(f"{claim.text} [{claim.citation}]" for claim in claims)


def renumber(claims: Iterable[Claim], sources: Iterable[Source]) -> Cited:
    """Return the claims and the sources they cite, numbered from 1 in the order in which the answer cites them."""
    claims = list(claims)
    numbers = {old: new for new, old in enumerate(dict.fromkeys(claim.citation for claim in claims), 1)}
    used = [source for source in sources if source.number in numbers]
    return Cited(
        claims=[claim.model_copy(update={"citation": numbers[claim.citation]}) for claim in claims],
        sources=sorted(
            (source.model_copy(update={"number": numbers[source.number]}) for source in used),
            key=lambda source: source.number,
        ),
    )


def _ask_for_gap(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}\nWhat does the answer not say?"


def _stays_within(sentence: str, evidence: str, context: str) -> bool:
    words = set(content_words(sentence))
    foreign = len(words - set(content_words(context)))
    known_words = foreign <= min(MAX_FOREIGN_WORDS, (1 - MIN_SHARED_WORDS) * len(words))
    numbers_known = set(_NUMBER.findall(sentence)) <= set(_NUMBER.findall(context))
    same_sense = bool(_NEGATION.search(sentence)) == bool(_NEGATION.search(evidence))
    return known_words and numbers_known and same_sense


def _is_said(sentence: str, claims: Iterable[Claim]) -> bool:
    words = set(content_words(sentence))
    return any(sentence == claim.evidence or words <= set(content_words(claim.text)) for claim in claims)


def _number_of(evidence: Passage, sources: Iterable[Source]) -> int:
    return next(source.number for source in sources if source.source == evidence.source)

import pytest

from steps.citing import (
    DRAFT,
    cited_text,
    evidence_of,
    judge,
    number_sources,
    renumber,
    select,
    usable_opinion,
    whole_sentences,
)
from steps.schema import Claim, Hit, Passage

JOURNAL = Passage(
    source="state.md",
    title="State: Journal",
    text="The orchestrator writes every completed step to Redis.\nAn idle worker stops after 300 seconds.",
)
LIMITS = Passage(source="http://site/limits", title="Limits", text="A page that hangs for 30 seconds fails alone.")
SOURCES = number_sources([LIMITS, JOURNAL])


def evidence(text: str, score: float, source: str = "state.md") -> Hit:
    return Hit(source=source, title="", text=text, score=score)


def claim(sentence: str, score: float = 0.9, *, against: str | None = None) -> Claim:
    return judge(sentence, evidence(against or JOURNAL.text.splitlines()[0], score), [JOURNAL, LIMITS], SOURCES)


def test_a_supported_sentence_cites_the_source_it_matches():
    assert claim("The orchestrator writes every step to Redis.").citation == 2


@pytest.mark.parametrize(
    ("sentence", "score"),
    [
        ("The orchestrator writes every step to Redis.", 0.5),
        ("The orchestrator never writes a step to Redis.", 0.9),
        ("The orchestrator writes 12 steps to Redis.", 0.9),
        ("The orchestrator writes quarterly marketing figures to Redis.", 0.9),
    ],
    ids=["other meaning", "negated", "unknown number", "invented words"],
)
def test_an_unsupported_sentence_gets_no_citation(sentence: str, score: float):
    assert claim(sentence, score).citation is None


def test_numbers_and_words_may_come_from_the_same_passage():
    sentence = "An idle worker stops after 300 seconds."

    assert claim(sentence, against=sentence).citation == 2


def test_unsupported_sentences_are_dropped_and_replaced_by_quotes():
    good = claim("The orchestrator writes every step to Redis.")
    bad = claim("Bees like flowers more than Redis.", 0.1)
    ranked = [evidence(good.text, 0.8, DRAFT), evidence(good.evidence, 0.8), evidence(LIMITS.text, 0.7, LIMITS.source)]

    written = select([good, bad], ranked, SOURCES)

    assert written.dropped == [bad]
    cited = renumber(written.kept, SOURCES)
    assert cited_text(cited.claims) == (
        'The orchestrator writes every step to Redis. [1] "A page that hangs for 30 seconds fails alone." [2]'
    )
    assert [(source.number, source.title) for source in cited.sources] == [(1, "State"), (2, "Limits")]


def test_sources_that_are_not_cited_are_not_listed():
    cited = renumber([claim("The orchestrator writes every step to Redis.")], SOURCES)

    assert [(source.number, source.title) for source in cited.sources] == [(1, "State")]


def test_two_sentences_from_the_same_evidence_are_kept_once():
    first, second = (
        claim("The orchestrator writes steps to Redis."),
        claim("The orchestrator writes every step to Redis."),
    )

    ranked = [evidence(first.text, 0.8, DRAFT), evidence(second.text, 0.8, DRAFT)]

    assert select([first, second], ranked, SOURCES).kept == [first]


def test_the_answer_starts_with_the_most_relevant_sentence_and_leaves_out_what_is_beside_the_point():
    journal = claim("The orchestrator writes every step to Redis.")
    idle = claim("An idle worker stops after 300 seconds.", against=JOURNAL.text.splitlines()[1])
    ranked = [
        evidence(idle.text, 0.7, DRAFT),
        evidence(journal.text, 0.5, DRAFT),
        evidence(LIMITS.text, 0.1, LIMITS.source),
    ]

    assert select([journal, idle], ranked, SOURCES).kept == [idle, journal]
    assert select([journal], ranked[2:], SOURCES).kept == []


def test_a_quote_does_not_repeat_what_is_said():
    said = claim("The orchestrator writes every completed step to Redis.")
    ranked = [evidence(said.text, 0.8, DRAFT), evidence(said.evidence, 0.8)]

    assert select([said], ranked, SOURCES).kept == [said]


def test_an_opinion_about_the_prompts_examples_is_left_out():
    assert usable_opinion("What is a lease?", "The answer does not say how long the bread takes.") == ""
    assert usable_opinion("What is a lease?", "The answer does not say who owns the lease.")


def test_generated_text_is_cut_to_whole_different_sentences():
    text = "The worker stops when idle. The worker stops when idle. Oh no. And then the rest was"

    assert whole_sentences(text) == ["The worker stops when idle."]


def test_evidence_is_every_sentence_once():
    assert len(evidence_of([JOURNAL, JOURNAL, LIMITS])) == 3

import pytest

from steps.planning import SUB_QUERIES, choose_passages, choose_sub_queries, content_words
from steps.schema import Hit

QUESTION = "Why do cold starts hurt agents, and what helps?"


def hit(text: str, score: float) -> Hit:
    return Hit(source="doc.md", title="Doc", text=text, score=score)


def test_a_good_draft_is_used_as_it_is():
    draft = "1. Why are cold starts slow?\n2. How do agents suffer?\n3. How are cold starts avoided?"

    assert choose_sub_queries(QUESTION, draft) == [line[3:] for line in draft.splitlines()]


@pytest.mark.parametrize(
    "draft",
    [
        "",
        "I cannot help with that.",
        "1. Why do cold starts hurt agents?\n2. Why do cold starts hurt agents?\n3. What do bees eat?",
        "1. 1. 1. 1.",
    ],
)
def test_there_are_always_three_different_sub_queries(draft: str):
    queries = choose_sub_queries(QUESTION, draft)

    assert len({frozenset(content_words(query)) for query in queries}) == SUB_QUERIES
    assert not any("bee" in query for query in queries)


@pytest.mark.parametrize("question", ["", "?", "why", "Über"])
def test_even_an_odd_question_gets_sub_queries(question: str):
    assert choose_sub_queries(question, "")


def test_every_search_contributes_its_best_passage():
    found = [[hit("a", 0.9), hit("b", 0.8)], [hit("c", 0.4), hit("d", 0.3)], []]

    assert [chosen.text for chosen in choose_passages(found, 3)] == ["a", "c", "b"]


def test_passages_about_something_else_are_left_out():
    assert choose_passages([[hit("a", 0.1)]], 3) == []

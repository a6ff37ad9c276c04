"""Ceilings end a runaway turn and name what ran away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.errors import BudgetExceeded
from flashkit.worker.sessions.budget import Budget, Ceilings, Move, find_loop


def moves(text: str) -> list[Move]:
    """Return a step for each letter, all with the same input."""
    return [Move(letter, "input") for letter in text]


def test_the_step_after_the_ceiling_is_refused() -> None:
    budget = Budget(Ceilings(steps=2))
    budget.admit(Move("search", "a"))
    budget.admit(Move("search", "b"))
    with pytest.raises(BudgetExceeded, match="ceiling of 2: 'write'"):
        budget.admit(Move("write", "c"))


@pytest.mark.parametrize(("ceiling", "used"), [("tokens", {"tokens": 60}), ("cost_usd", {"cost_usd": 0.6})])
def test_spending_past_a_ceiling_says_how_much_was_used(ceiling: str, used: dict[str, float]) -> None:
    budget = Budget(Ceilings(**{ceiling: 100 if ceiling == "tokens" else 1.0}))
    budget.spend(**used)
    with pytest.raises(BudgetExceeded) as caught:
        budget.spend(**used)
    assert caught.value.report.details["ceiling"] == ceiling


def test_the_same_step_with_the_same_input_over_and_over_is_a_loop() -> None:
    budget = Budget(Ceilings(repeats=3))
    for _ in range(3):
        budget.admit(Move("search", "same"))
    with pytest.raises(BudgetExceeded, match="circles: search, the same inputs 4 times"):
        budget.admit(Move("search", "same"))


def test_a_round_of_several_steps_is_a_loop_and_is_named() -> None:
    budget = Budget(Ceilings(repeats=2))
    for move in moves("xabcabcab"):
        budget.admit(move)
    with pytest.raises(BudgetExceeded) as caught:
        budget.admit(Move("c", "input"))
    assert caught.value.report.details["loop"] == ["a", "b", "c"]


def test_the_same_step_with_other_inputs_is_work() -> None:
    budget = Budget(Ceilings(repeats=2))
    for index in range(50):
        budget.admit(Move("search", str(index)))


def test_no_ceiling_means_no_ceiling() -> None:
    budget = Budget(Ceilings(steps=None, repeats=None))
    for _ in range(5_000):
        budget.admit(Move("search", "same"))
    budget.spend(tokens=10**9, cost_usd=10**6)


@given(prefix=st.text("abcdef", max_size=10), loop=st.text("abc", min_size=1, max_size=8), rounds=st.integers(2, 5))
def test_every_short_loop_is_found_whatever_came_before(prefix: str, loop: str, rounds: int) -> None:
    found = find_loop(moves(prefix + loop * rounds), rounds=rounds)
    assert found is not None
    assert len(found) <= len(loop)

"""Ceilings end a runaway turn and name what ran away."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit import Session
from flashkit.errors import BudgetExceeded
from flashkit.worker.sessions.budget import LONGEST_LOOP, Budget, Ceilings, LoopWatch, Move
from flashkit.worker.sessions.records import Kind


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
    watch = LoopWatch()
    for move in moves(prefix + loop * rounds):
        watch.add(move)
    found = watch.find(rounds)
    assert found is not None
    assert len(found) <= len(loop)


@given(text=st.text("ab", max_size=60), rounds=st.integers(2, 5))
def test_the_loop_found_is_the_one_that_looking_back_finds(text: str, rounds: int) -> None:
    watch = LoopWatch()
    for end, move in enumerate(moves(text), start=1):
        watch.add(move)
        lengths = (length for length in range(1, LONGEST_LOOP + 1) if length * rounds <= end)
        shortest = next((n for n in lengths if text[:end].endswith(text[end - n : end] * rounds)), None)
        found = watch.find(rounds)
        assert (found and "".join(move.name for move in found)) == (shortest and text[end - shortest : end])


def test_the_order_in_which_branches_come_does_not_make_a_loop() -> None:
    """Resumed branches answer from the journal one after the other, where the first run took turns."""
    for order in (["a", "b"] * 6, ["a"] * 6 + ["b"] * 6):
        budget, counts = Budget(Ceilings(repeats=6)), dict.fromkeys("ab", 0)
        for branch in order:
            counts[branch] += 1
            budget.admit(Move("same", "input"), f"gather1[{branch}]")
        with pytest.raises(BudgetExceeded, match="circles: same"):
            budget.admit(Move("same", "input"), "gather2[a]"), budget.admit(Move("same", "input"), "gather3[a]")


async def test_what_steps_have_used_counts_on_in_another_worker(lab):
    def ask(session: Session[None]) -> str:
        session.spend(tokens=30, cost_usd=0.5)
        return "x" * 2_000_000  # too large for the journal itself

    async def fail(session: Session[None]) -> None:
        session.spend(tokens=10)
        raise ConnectionError("no network")

    async def agent(session: Session[None], q: str) -> None:
        session.budget(tokens=100)
        await session.step("ask", ask, session)
        with contextlib.suppress(ConnectionError):
            await session.step("fail", fail, session)
        await session.effect("order", ask, session)
        await session.wait_for("go")
        session.spend(tokens=29)
        await session.step("fits", str, "fits")
        await session.step("last", ask, session)

    await (await lab.worker(agent)).answer("j1", session_id="s", q="a")
    error = await (await lab.worker(agent, "w2")).error("j2", session_id="s", event={"name": "go"})
    assert (error.code, error.details["used"]) == ("budget_exceeded", 129)
    async with lab.store() as store:
        image = await store.load("s")
    assert image is not None
    assert [record.key for record in image.tail if record.kind is Kind.RESULT][-1] == "fits"


@pytest.mark.parametrize("used", [-5, float("nan"), float("inf"), True, "7"])
@pytest.mark.parametrize("name", ["tokens", "cost_usd"])
async def test_what_is_no_amount_cannot_be_spent(lab, name, used):
    async def agent(session: Session[None], q: str) -> None:
        session.spend(**{name: used})

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert (error.code, name in error.message) == ("session_error", True)


@pytest.mark.parametrize("ceiling", [0, -1, float("nan"), True, "7"])
async def test_what_is_no_number_is_no_ceiling(lab, ceiling):
    async def agent(session: Session[None], q: str) -> None:
        session.budget(tokens=ceiling)

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert "is not a ceiling" in error.message

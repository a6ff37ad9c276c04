"""What a step raised is what came of it, as soon as the handler goes on: a resumed handler goes the same way."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.errors import BudgetExceeded, JobFailed, JobTimedOut, PayloadTooLarge, SessionError, StepError
from flashkit.worker.sessions.failures import encode_error, rebuild_error
from tests.sessions.session_lab import Steps


class Declined(Exception):
    """An error of the user's, with a constructor of its own."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class Plain(Exception):
    """An error of the user's that takes what it is given."""


class PlainTimeout(TimeoutError):
    """One that is also one of Python's."""


@pytest.fixture
def steps() -> Steps:
    return Steps()


class Dying:
    """A handler's way to die like its worker: the turn stays as the journal has it."""

    def __init__(self) -> None:
        self.times = 1

    def die(self) -> None:
        if self.times:
            self.times -= 1
            raise WorkerDied


class WorkerDied(BaseException):
    """No error of a step: it goes past every handler of exceptions."""


@pytest.fixture
def dying() -> Dying:
    return Dying()


class Fickle:
    """A service that fails the first time only."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def ask(self) -> str:
        self.calls += 1
        if self.calls == 1:
            raise self.error
        return "answer"


# ------------------------------------------------------------------ the same way again


@pytest.mark.parametrize("method", ["step", "effect"])
async def test_an_error_that_was_caught_is_raised_again_after_a_death(lab, steps, dying, method):
    service = Fickle(ConnectionError("no network"))

    async def agent(session) -> list[str]:
        try:
            found = await getattr(session, method)("search", service.ask)
        except ConnectionError as exc:
            found = await session.step("fallback", steps.upper, str(exc))
        dying.die()
        return [found, await session.step("write", steps.lower, "B")]

    await (await lab.worker(agent)).error("j1", session_id="s")
    assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s") == ["NO NETWORK", "b"]
    assert service.calls == 1


async def test_an_error_costs_no_write_of_its_own(lab, steps):
    service = Fickle(ConnectionError("no network"))
    writes = []

    async def agent(session) -> str:
        commit = store.commit

        async def counted(lease, records=(), change=None):
            writes.append([record.kind.name for record in records])
            return await commit(lease, records, change)

        store.commit, store.commit_soon = counted, lambda *call: False
        try:
            return await session.step("search", service.ask)
        except ConnectionError:
            return await session.step("fallback", steps.upper, "a")

    worker = await lab.worker(agent)
    store = worker.runtime._sessions._store
    await worker.answer("j1", session_id="s")
    assert writes == [["ERROR", "RESULT"], []]


@pytest.mark.parametrize("partial", [False, True])
async def test_errors_in_a_gather_come_back_in_their_places(lab, steps, dying, partial):
    service = Fickle(ValueError("odd"))

    async def agent(session) -> list[str]:
        calls = [session.step("good", steps.upper, "a"), session.step("bad", service.ask)]
        try:
            results = await session.gather(*calls, partial=partial)
        except ValueError as exc:
            results = [exc]
        names = [type(result).__name__ for result in results]
        await session.step("next", steps.upper, "b")
        dying.die()
        return names

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s")
    assert await worker.answer("j1", session_id="s") == (["str", "ValueError"] if partial else ["ValueError"])
    assert service.calls == 1


async def test_an_error_caught_before_the_session_waits_is_kept(lab, steps):
    service = Fickle(KeyError("k"))

    async def agent(session, q: str) -> list[object]:
        try:
            way = await session.step("search", service.ask)
        except KeyError:
            way = "other"
        return [way, await session.wait_for("ok")]

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a")
    assert await worker.answer("j2", session_id="s", event={"name": "ok", "value": 1}) == ["other", 1]
    assert service.calls == 1


async def test_a_result_that_was_too_large_is_too_large_again(lab, steps, dying):
    runs = []

    def large() -> str:
        runs.append("x")
        return "x" * (9_000_000 if len(runs) == 1 else 1)

    async def agent(session) -> str:
        try:
            await session.step("large", large)
        except PayloadTooLarge:
            await session.step("small", steps.upper, "a")
        dying.die()
        return "done"

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s")
    assert await worker.answer("j1", session_id="s") == "done"
    assert runs == ["x"]


# ------------------------------------------------------------------ a retry of a failed turn


async def test_a_step_whose_error_ends_the_turn_runs_again(lab, steps):
    service = Fickle(ConnectionError("no network"))

    async def agent(session) -> list[str]:
        return [await session.step("one", steps.upper, "a"), await session.step("search", service.ask)]

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    assert await worker.answer("j1", session_id="s") == ["A", "answer"]


@pytest.mark.parametrize("how", ["raise", "cause", "context", "group"])
async def test_a_recorded_error_that_ends_the_turn_after_all_lets_its_step_run_again(lab, steps, how):
    service = Fickle(ConnectionError("no network"))

    async def agent(session) -> list[str]:
        try:
            found = await session.step("search", service.ask)
        except ConnectionError as exc:
            await session.step("note", steps.upper, "failed")
            if how == "cause":
                raise RuntimeError("wrapped") from exc
            if how == "context":
                raise RuntimeError("wrapped")  # noqa: B904
            if how == "group":
                raise ExceptionGroup("several", [exc]) from None
            raise
        return [found, await session.step("write", steps.upper, "b")]

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s")
    assert await worker.answer("j1", session_id="s") == ["answer", "B"]
    assert (service.calls, steps.seen) == (2, ["failed", "b"])


async def test_a_step_that_fails_again_leads_the_same_way_without_its_steps_running_twice(lab, steps):
    async def agent(session) -> None:
        try:
            await session.step("search", steps.fail)
        except ConnectionError:
            await session.step("note", steps.upper, "failed")
            raise

    worker = await lab.worker(agent)
    for _ in range(3):
        assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    assert steps.seen == ["fail", "failed", "fail", "fail"]


async def test_what_an_error_was_answered_with_stands_when_something_else_ends_the_turn(lab, steps):
    """The second airline was booked because the first one failed: a retry must not book the first one too."""
    first, later = Fickle(LookupError("full")), Fickle(ConnectionError("no network"))

    async def agent(session) -> list[str]:
        try:
            booked = await session.effect("first", first.ask)
        except LookupError:
            booked = await session.effect("second", steps.upper, "second")
            sent = await session.step("send", later.ask)
        return [booked, sent]

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    assert await worker.answer("j1", session_id="s") == ["SECOND", "answer"]
    assert (first.calls, later.calls) == (1, 2)


async def test_another_way_after_an_effect_is_a_mismatch(lab, steps):
    """The charge was refunded because the parcel could not be sent: it must not be sent all the same."""
    service = Fickle(ConnectionError("no network"))

    async def agent(session) -> str:
        await session.effect("charge", steps.upper, "charge")
        try:
            await session.step("pack", service.ask)
        except ConnectionError:
            await session.effect("refund", steps.upper, "refund")
            raise
        return await session.effect("send", steps.upper, "send")

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s")
    assert (await worker.error("j1", session_id="s")).code == "replay_mismatch"
    assert steps.seen == ["charge", "refund"]


async def test_the_code_of_a_failed_step_may_change(lab, steps):
    async def agent(session) -> str:
        try:
            return await session.step("search", steps.fail)
        except ConnectionError:
            await session.step("note", steps.upper, "a")
            raise

    async def mended(session) -> str:
        return await session.step("look up", steps.upper, "b")

    await (await lab.worker(agent)).error("j1", session_id="s")
    assert await (await lab.worker(mended, "w2")).answer("j1", session_id="s") == "B"


async def test_a_failed_effect_that_ended_the_turn_is_still_for_a_person_to_settle(lab, steps):
    """Its exception came beside the end of another step, so it was written down before the turn ended."""
    is_done = asyncio.Event()

    async def slow() -> None:
        await is_done.wait()

    async def fail() -> None:
        steps.seen.append("fail")
        is_done.set()
        raise ConnectionError("no network")

    async def agent(session) -> None:
        results = await session.gather(session.effect("pay", fail), session.step("slow", slow), partial=True)
        raise results[0]

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    assert (await worker.error("j1", session_id="s")).code == "outcome_unknown"
    assert steps.seen == ["fail"]


async def test_what_ends_the_turn_is_not_what_came_of_a_step(lab, steps):
    def work() -> None:
        raise BudgetExceeded("too much")

    async def agent(session) -> str:
        try:
            return await session.step("work", work)
        except BudgetExceeded:
            await session.step("note", steps.upper, "a")
            raise

    assert (await (await lab.worker(agent)).error("j1", session_id="s")).code == "budget_exceeded"
    async with lab.store() as store:
        assert [record.kind.name for record in (await store.load("s")).records] == ["TURN"]
    assert steps.seen == []


# ------------------------------------------------------------------ in which class it comes back


def rebuilt(exc: Exception, *catches: type[Exception]) -> Exception:
    """Return the error as a resumed handler gets it."""
    return rebuild_error(encode_error(exc), {each.__name__: each for each in catches})


@pytest.mark.parametrize(
    "error",
    [
        ValueError(), ValueError("a"), ValueError("a", 2), KeyError("k"), IndexError(3), ZeroDivisionError("division"),
        TimeoutError(), ConnectionRefusedError(111, "refused"), FileNotFoundError(2, "No such file", "x"),
        RuntimeError("ä\ud800"), RecursionError("deep"), AssertionError(None),
    ],
    ids=repr,
)  # fmt: skip
def test_errors_of_python_come_back_as_themselves(error):
    again = rebuilt(error)
    assert (type(again), str(again)) == (type(error), str(error))


@given(st.lists(st.one_of(st.text(), st.integers(), st.none(), st.booleans()), max_size=3))
def test_arguments_of_an_error_come_back(arguments):
    assert rebuilt(ValueError(*arguments)).args == tuple(arguments)


def test_errors_of_flashkit_keep_their_report():
    error = JobTimedOut("late", hint="wait", details={"a": 1}, request_id="j")
    again = rebuilt(error)
    assert type(again) is JobTimedOut
    assert again.report == error.report
    failed = JobFailed.from_report(error.report)
    assert rebuilt(failed).report == failed.report
    assert type(rebuilt(failed)) is JobFailed


def test_the_nearest_class_that_is_known_counts():
    try:
        json.loads("{")
    except ValueError as exc:
        error = exc
    assert (type(rebuilt(error)), str(rebuilt(error))) == (ValueError, str(error))
    assert type(rebuilt(PlainTimeout("x"))) is TimeoutError
    assert type(rebuilt(PlainTimeout("x"), PlainTimeout)) is PlainTimeout
    assert type(rebuilt(type("Sub", (Plain,), {})("x"), Plain)) is Plain


def test_an_error_of_an_unknown_class_comes_back_as_a_step_error():
    again = rebuilt(Declined(7, "no money"))
    assert isinstance(again, StepError)
    assert (again.report.type, again.report.message, str(again)) == ("Declined", "no money (7)", "no money (7)")


def test_a_class_that_takes_other_arguments_comes_back_with_its_text():
    again = rebuilt(Declined(7, "no money"), Declined)
    assert (type(again), str(again)) == (Declined, "no money (7)")


def test_an_error_that_drags_much_along_is_cut():
    output = encode_error(ValueError("x" * 10_000_000))
    assert len(output) < 300_000
    assert type(rebuild_error(output, {})) is ValueError
    assert len(encode_error(JobFailed("m", details={"log": "y" * 10_000_000}))) < 300_000


def test_an_error_whose_text_cannot_be_had_is_kept_all_the_same():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert isinstance(rebuilt(Mute(Path("x"))), StepError)
    assert type(rebuilt(Mute(Path("x")), Mute)) is Mute


@pytest.mark.parametrize("is_named", [False, True])
async def test_an_error_of_ones_own_is_named_once_and_comes_back(lab, steps, dying, caplog, is_named):
    service = Fickle(Declined(7, "no money"))

    async def agent(session) -> str:
        if is_named:
            session.catches(Declined)
        try:
            return await session.step("pay", service.ask)
        except Declined as exc:
            text = await session.step("note", steps.upper, str(exc))
        dying.die()
        return text

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s")
    assert ("name it with session.catches(Declined)" in caplog.text) is not is_named
    if is_named:
        assert await worker.answer("j1", session_id="s") == "NO MONEY (7)"
    else:
        error = await worker.error("j1", session_id="s")
        assert (error.type, error.message) == ("Declined", "no money (7)")


@pytest.mark.parametrize("what", ["Declined", Declined(1, "x"), BaseException, int])
async def test_what_is_no_class_of_exceptions_cannot_be_named(lab, what):
    async def agent(session) -> None:
        with pytest.raises(SessionError, match="does not name a class of exceptions"):
            session.catches(what)

    await (await lab.worker(agent)).answer("j1")

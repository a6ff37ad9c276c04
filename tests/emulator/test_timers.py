"""The timers against a plain dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashkit.emulator.timers import Timers

keys = st.integers(0, 5)
times = st.integers(0, 20).map(float)
steps = st.one_of(
    st.tuples(st.just("set"), keys, times),
    st.tuples(st.just("drop"), keys, times),
    st.tuples(st.just("pop"), keys, times),
)


@given(st.lists(steps, max_size=60))
def test_the_earliest_deadline_of_each_key_comes_due_once(calls):
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    for name, key, when in calls:
        if name == "set":
            timers.set(key, when)
            model[key] = min(when, model.get(key, when))
        elif name == "drop":
            timers.drop(key)
            model.pop(key, None)
        else:
            popped = timers.pop_due(when)
            assert (popped is None) == all(due > when for due in model.values())
            if popped is not None:
                assert model[popped] == min(model.values())
                del model[popped]
        assert timers.first() == min(model.values(), default=None)
        assert len(timers) == len(model)


def test_deadlines_that_were_overtaken_take_no_memory():
    timers: Timers[str] = Timers()
    for when in range(10_000, 0, -1):
        timers.set("job", float(when))
    assert timers.first() == 1.0
    assert len(timers._heap) < 100

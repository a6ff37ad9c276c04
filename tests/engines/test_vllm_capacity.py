"""What the engine's steps say of its pace, and how many tokens go into a chunk of a stream by that."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from flashkit.worker.engines.vllm import chunk_seconds
from flashkit.worker.engines.vllm_capacity import Capacity


@dataclass
class Stats:
    """The two figures of vLLM's `SchedulerStats` that are read."""

    num_running_reqs: int
    kv_cache_usage: float = 0.0


@pytest.mark.parametrize(("streams", "seconds"), [(0, 0.1), (1, 0.1), (8, 0.1), (16, 0.2), (20, 0.25), (500, 0.25)])
def test_chunks_are_farther_apart_the_more_streams_there_are(streams, seconds):
    assert chunk_seconds(streams) == pytest.approx(seconds)


def test_streams_that_all_end_and_begin_anew_at_once_still_count():
    capacity = Capacity()
    assert capacity.streams == 0
    capacity.note_step(Stats(16), None, 0)
    assert capacity.streams == 16
    for _ in range(100):
        capacity.note_step(Stats(4), None, 0)
    assert capacity.streams == pytest.approx(4, abs=0.1)
    for _ in range(6):
        capacity.enter()
    assert capacity.streams == 6


def test_a_slow_model_gives_a_token_at_a_time_and_a_fast_one_not_more_than_the_most():
    capacity = Capacity()
    assert capacity.tokens_in(0.1, most=32) == 1
    capacity.step_seconds = 0.2
    assert capacity.tokens_in(0.1, most=32) == 1
    capacity.step_seconds = 0.01
    assert capacity.tokens_in(0.1, most=32) == 10
    capacity.step_seconds = 0.001
    assert capacity.tokens_in(0.1, most=32) == 32

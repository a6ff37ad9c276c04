"""What a worker's log says of a download, and what a terminal shows."""

import logging

import pytest

from flashkit.worker.weights.progress import LogProgress, format_size, make_progress, percent


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def told(clock):
    lines = []
    progress = LogProgress(lambda text, numbers: lines.append((text, numbers)), clock)
    return progress, lines


def test_a_line_for_each_tenth_and_one_at_the_end(told, clock):
    progress, lines = told
    with progress:
        progress.begin("model", total=1_000_000_000)
        for _ in range(100):
            clock.now += 0.5
            progress.advance(10_000_000)
    texts = [text for text, _ in lines]
    assert texts[0] == "model: 1 GB"
    assert texts[1] == "model: 10 %, 100 MB, 20 MB/s, 45 s left"
    assert texts[-1] == "model: 100 %, 1 GB, 20 MB/s, took 50.0 s"
    assert len(texts) == 11
    assert lines[1][1] == {"done_bytes": 100_000_000, "total_bytes": 1_000_000_000, "bytes_per_second": 20_000_000}


def test_a_fast_download_does_not_flood_the_log(told, clock):
    progress, lines = told
    with progress:
        progress.begin("model", total=1_000)
        for _ in range(1_000):
            clock.now += 0.001
            progress.advance(1)
    assert len(lines) == 2


def test_a_slow_download_is_heard_of_every_ten_seconds(told, clock):
    progress, lines = told
    with progress:
        progress.begin("model", total=1_000_000)
        for _ in range(60):
            clock.now += 1
            progress.advance(1)
    assert len(lines) == 1 + 6 + 1


def test_a_resumed_download_says_what_was_there_and_counts_its_speed_without_it(told, clock):
    progress, lines = told
    with progress:
        progress.begin("model", total=1000, done=600)
        clock.now += 4
        progress.advance(200)
    assert lines[0][0] == "model: 1 KB, 600 B of them from before"
    assert "80 %, 800 B, 50 B/s, 4 s left" in lines[1][0]


def test_a_failure_has_no_last_line(told):
    progress, lines = told
    with pytest.raises(KeyError), progress:  # noqa: PT012 - begun, then broken
        progress.begin("model", total=10)
        raise KeyError
    assert len(lines) == 1


def test_lines_go_to_the_log_with_numbers_for_programs(caplog):
    with caplog.at_level(logging.INFO, "flashkit.weights"), LogProgress() as progress:
        progress.begin("model", total=5)
        progress.advance(5)
    assert caplog.records[0].event == "weights_progress"
    assert caplog.records[0].total_bytes == 5


def test_without_a_terminal_progress_is_lines():
    assert isinstance(make_progress(), LogProgress)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1_500, "1.5 KB"), (269_060_552, "269 MB"), (16.1e9, "16.1 GB"), (4e12, "4 TB")],
)
def test_sizes_are_in_decimal_units(size, text):
    assert format_size(size) == text


def test_a_share_of_nothing_is_all_of_it():
    assert (percent(0, 0), percent(1, 3)) == ("100 %", "33 %")

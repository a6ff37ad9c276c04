"""What a worker counts from its spans."""

from __future__ import annotations

import threading

import pytest

from flashkit.telemetry.metrics import BY_NAME, METRICS, MOST_SERIES, OTHER, Histogram, LabelGuard, Source
from flashkit.telemetry.metrics_worker import WorkerMetrics, watch_gauge
from flashkit.telemetry.spans import Op, Recorder, Span


class Lab:
    """Spans of a process, without anything that makes them."""

    def __init__(self):
        self.metrics = WorkerMetrics()
        self.recorder = Recorder()
        self.recorder.observers.append(self.metrics.observe)

    def end(self, op, name="x", *, seconds=0.5, error="", **attributes):
        given = {key.replace("__", "."): value for key, value in attributes.items()}
        span = Span(self.recorder, op, name, given)
        span.error = error
        span.start_ns, span.end_ns = 1_000_000_000, 1_000_000_000 + round(seconds * 1e9)
        self.recorder.finish(span)

    def count(self, name, *values):
        return self.metrics.totals().counters.get((name, values))

    def times(self, name, *values):
        histogram = self.metrics.totals().histograms.get((name, values))
        return None if histogram is None else (histogram.count, pytest.approx(histogram.sum))


@pytest.fixture
def lab():
    return Lab()


def test_jobs_are_timed_by_how_they_ended(lab):
    lab.end(Op.JOB, seconds=2)
    lab.end(Op.JOB, seconds=1, error="it broke", error__type="job_failed")
    lab.end(Op.JOB, flashkit__handed_back=True)
    lab.end(Op.REQUEST, seconds=3, http__response__status_code=200)
    lab.end(Op.REQUEST, seconds=4, http__response__status_code=502)
    assert lab.times("flashkit.worker.job.duration", "ok") == (2, 5.0)
    assert lab.times("flashkit.worker.job.duration", "error") == (2, 5.0)


def test_spans_are_not_kept_until_somebody_asks(lab):
    for _ in range(1_000):
        lab.end(Op.JOB, seconds=1)
    assert len(lab.metrics._ended) < 256
    assert lab.times("flashkit.worker.job.duration", "ok") == (1_000, 1_000.0)


def test_turns_of_sessions_are_counted_by_how_they_ended(lab):
    for outcome, tokens in (("completed", 120), ("waiting", 40), ("over_budget", 900), ("handed_back", 7)):
        lab.end(Op.JOB, flashkit__turn__outcome=outcome, flashkit__turn__tokens=tokens)
        assert lab.count("flashkit.session.turns", outcome) == 1
    assert lab.times("flashkit.session.turn.tokens") == (1, 120)


def test_tools_are_counted_by_name_and_calls_of_models_are_none(lab):
    lab.end(Op.STEP, "search#2", flashkit__step__name="search", seconds=0.2)
    lab.end(Op.EFFECT, "mail", flashkit__step__name="mail", error="refused")
    lab.end(Op.TOOL, "notes", gen_ai__tool__name="notes", flashkit__step__name="call:notes")
    lab.end(Op.CALL, "llm", seconds=3)
    assert lab.count("flashkit.tool.calls", "search", "ok") == 1
    assert lab.count("flashkit.tool.calls", "mail", "error") == 1
    assert lab.count("flashkit.tool.calls", "notes", "ok") == 1
    assert lab.count("flashkit.tool.calls", "llm", "ok") is None
    assert lab.times("flashkit.session.step.duration", "call", "ok") == (2, 3.5)
    assert lab.times("flashkit.session.step.duration", "effect", "error") == (1, 0.5)


def test_calls_of_models_are_timed_with_their_tokens_and_their_first_one(lab):
    lab.end(
        Op.LLM, seconds=2, gen_ai__operation__name="chat", gen_ai__request__model="m",
        gen_ai__usage__input_tokens=30, gen_ai__usage__output_tokens=12, gen_ai__response__time_to_first_chunk=0.2,
    )  # fmt: skip
    lab.end(
        Op.EMBEDDING, gen_ai__operation__name="embeddings", gen_ai__request__model="e", gen_ai__usage__input_tokens=5
    )
    assert lab.times("gen_ai.client.operation.duration", "chat", "m", "") == (1, 2.0)
    assert lab.times("gen_ai.client.token.usage", "input", "chat", "m") == (1, 30)
    assert lab.times("gen_ai.client.token.usage", "output", "chat", "m") == (1, 12)
    assert lab.times("gen_ai.client.token.usage", "input", "embeddings", "e") == (1, 5)
    assert lab.times("gen_ai.server.time_to_first_token", "m") == (1, 0.2)


def test_a_refused_request_does_not_bring_its_model_into_a_label(lab):
    for number in range(500):
        lab.end(Op.LLM, gen_ai__request__model=f"no-{number}", error="HTTP 404", error__type="404")
    assert lab.times("gen_ai.client.operation.duration", "", "", "404") == (500, 250.0)


def test_what_sessions_spend_is_added_up_wherever_it_is_spent(lab):
    lab.end(Op.STEP, flashkit__spent__cost_usd=0.25)
    lab.end(Op.JOB, flashkit__spent__cost_usd=0.5)
    assert lab.count("flashkit.session.cost.usd") == 0.75


def test_a_start_is_a_cold_start(lab):
    lab.end(Op.COLD_START, seconds=9)
    assert lab.times("flashkit.worker.start.duration") == (1, 9.0)


def test_spans_without_a_figure_count_nothing(lab):
    for op in (Op.COMMIT, Op.QUEUE, Op.PHASE, Op.PLATFORM):
        lab.end(op)
    assert lab.metrics.totals().is_empty


def test_a_gauge_is_read_when_figures_are(lab):
    values = [0.5, None]
    watch_gauge("flashkit.engine.kv_cache.usage", lambda: values[0])
    assert lab.metrics.totals().gauges == {"flashkit.engine.kv_cache.usage": 0.5}
    values[0] = None
    assert lab.metrics.totals().gauges == {}


def test_a_gauge_whose_source_changes_while_it_is_read_is_left_out_once(lab):
    def read():
        raise RuntimeError("dictionary changed size during iteration")

    watch_gauge("flashkit.engine.requests", read)
    assert "flashkit.engine.requests" not in lab.metrics.totals().gauges
    watch_gauge("flashkit.engine.requests", lambda: None)


def test_totals_tell_what_has_come_since_earlier_ones(lab):
    lab.end(Op.JOB, seconds=1)
    before = lab.metrics.totals()
    lab.end(Op.JOB, seconds=2)
    lab.end(Op.STEP, flashkit__step__name="s")
    since = lab.metrics.totals().since(before)
    histogram = since.histograms["flashkit.worker.job.duration", ("ok",)]
    assert (histogram.count, histogram.sum) == (1, 2.0)
    assert since.counters == {("flashkit.tool.calls", ("s", "ok")): 1}
    assert since.began_ns == before.at_ns
    assert lab.metrics.totals().since(lab.metrics.totals()).is_empty


def test_threads_that_count_at_once_lose_nothing(lab):
    def work():
        for _ in range(500):
            lab.metrics.add("flashkit.telemetry.dropped", 1, {"signal": "spans"})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lab.count("flashkit.telemetry.dropped", "spans") == 4_000


def test_every_metric_of_workers_comes_from_a_span_a_gauge_or_a_loss(lab):
    watch_gauge("flashkit.engine.kv_cache.usage", lambda: 0.1)
    watch_gauge("flashkit.engine.requests", lambda: 2)
    lab.end(Op.JOB, flashkit__turn__outcome="completed", flashkit__turn__tokens=1, flashkit__spent__cost_usd=0.1)
    lab.end(Op.STEP)
    lab.end(Op.COLD_START)
    lab.end(Op.LLM, gen_ai__usage__input_tokens=1, gen_ai__response__time_to_first_chunk=0.2)
    lab.metrics.add("flashkit.telemetry.dropped", 1, {"signal": "metrics"})
    totals = lab.metrics.totals()
    told = {name for name, _ in (*totals.counters, *totals.histograms)} | totals.gauges.keys()
    assert told == {metric.name for metric in METRICS if metric.source is Source.WORKER}


# ---------------------------------------------------------------------- labels


def test_labels_that_come_again_are_found_and_odd_ones_made_text():
    guard, metric = LabelGuard(), BY_NAME["flashkit.tool.calls"]
    assert guard.values(metric, {"tool": "search", "outcome": "ok"}) == ("search", "ok")
    assert guard.values(metric, {"tool": "search", "outcome": "ok"}) == ("search", "ok")
    assert guard.values(metric, {"tool": ["a", 1], "outcome": None}) == ("['a', 1]", OTHER)
    assert guard.values(metric, {"tool": "x" * 5_000}) == ("x" * 80, "")
    assert guard.values(metric, {"tool": "a\nb\x00c"}) == ("a b c", "")


def test_one_value_too_many_becomes_other_and_those_before_stay():
    guard, metric = LabelGuard(most=2), BY_NAME["flashkit.tool.calls"]
    for tool in ("a", "b"):
        assert guard.values(metric, {"tool": tool, "outcome": "ok"}) == (tool, "ok")
    assert guard.values(metric, {"tool": "c", "outcome": "error"}) == (OTHER, "error")
    assert guard.values(metric, {"tool": "a", "outcome": "ok"}) == ("a", "ok")
    assert guard.folded == 1


def test_closed_labels_are_never_too_many():
    guard, metric = LabelGuard(most=1), BY_NAME["flashkit.session.turns"]
    for outcome in metric.labels[0].values:
        assert guard.values(metric, {"outcome": outcome}) == (outcome,)


def test_hundreds_of_thousands_of_values_take_bounded_memory():
    guard, metric = LabelGuard(), BY_NAME["flashkit.tool.calls"]
    for number in range(20_000):
        guard.values(metric, {"tool": f"t{number}", "outcome": "ok"})
    assert len(guard._seen[metric.name]) == MOST_SERIES
    assert len(guard._known) <= 2_000


def test_a_histogram_counts_a_bound_as_at_most():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1]
    assert (histogram.count, histogram.sum) == (4, 12.0)

"""Traces in the terminal: trees with bars, and text of others that stays text."""

import io

from rich.console import Console

from flashkit.cli.trace_text import trace_tree, traces_table
from flashkit.telemetry.clean import one_line
from flashkit.telemetry.store import summarize
from flashkit.telemetry.tree import build_trace
from tests.telemetry.records import BEGIN_NS, job, record

NOW_NS = BEGIN_NS + 60_000_000_000


def rendered(what, *, width=160):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(what)
    return out.getvalue()


def tree_of(*records):
    return rendered(trace_tree(build_trace(records, now_ns=NOW_NS)))


def test_a_tree_has_a_bar_a_duration_and_what_a_model_used():
    text = tree_of(
        job("agent", 0, 1000),
        record("chat", "llm", 500, 1000, below="agent", gen_ai__usage__input_tokens=7, gen_ai__usage__output_tokens=9,
               gen_ai__response__time_to_first_chunk=0.05, gen_ai__response__finish_reasons=["stop"]),
    )  # fmt: skip
    lines = text.splitlines()
    assert "2 spans · 1 s" in lines[0]
    assert lines[1].startswith("job agent")
    assert "█" * 32 in lines[1]
    assert lines[2].startswith("  llm chat")
    assert "7 in + 9 out tokens · first token 50 ms · stop" in lines[2]
    assert f"{' ' * 16}{'█' * 16}" in lines[2]


def test_what_hung_is_said_at_the_top_and_at_its_line():
    text = tree_of(
        job("platform", 0, 5_000, op="platform", worker="", error="ended by the platform"),
        job("agent", 10, None),
        record("search", "tool", 100, None, below="agent"),
    )
    assert "tool 'search' was running for 4.9 s and never ended; ended by the platform" in text
    assert next(line for line in text.splitlines() if "tool search" in line).rstrip().endswith("never ended")


def test_a_clock_that_is_off_is_said():
    text = tree_of(record("call", "call", 100, 200), job("a", 5_100, 5_150, worker="w2", below="call"))
    assert "clock of w2 is off by up to 4.95 s" in text


def test_hostile_text_controls_nothing():
    hostile = "\x1b]0;owned\x07\x1b[2J[bold red]x[/bold red]\u202eevil\n\r\t" + "long " * 1_000
    text = tree_of(
        job(hostile, error=hostile), record("x", "llm", below=hostile, gen_ai__response__finish_reasons=[hostile])
    )
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "[bold red]" in text
    assert max(map(len, text.splitlines())) <= 160


def test_a_long_trace_is_cut_and_says_so():
    text = tree_of(
        job("agent", 0, 10), *(record(str(number), start=number / 1000, below="agent") for number in range(900))
    )
    assert "… and 501 more" in text


def test_the_list_shows_jobs_their_age_and_their_errors():
    summary = summarize([job("agent", 0, 1500, error="it \x1b[31mbroke")])
    text = rendered(traces_table([summary], now_s=BEGIN_NS / 1e9 + 90))
    assert "job-1" in text
    assert "1.5 min ago" in text
    assert "1.5 s" in text
    assert "it �[31mbroke" in text


def test_one_line_keeps_what_people_write():
    assert one_line("Grüße, 世界 🎌", 100) == "Grüße, 世界 🎌"
    assert one_line("a\nb" * 10, 5) == "a ba…"

"""Tokens are read wherever models' outputs count them, and nothing else is taken for them."""

from __future__ import annotations

import pytest

from flashkit.telemetry.tokens import Tokens, read_tokens, speaks_of_tokens

COUNTED = 'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n'
NOT_YET = 'data: {"choices": [], "usage": null}\n\n'
DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("output", "tokens"),
    [
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, Tokens(1, 2)),
        ({"usage": {"input_tokens": 1, "output_tokens": 2}}, Tokens(1, 2)),
        ([{"delta": "a"}, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}], Tokens(1, 2)),
        ([NOT_YET, COUNTED, DONE], Tokens(1, 2)),
        (NOT_YET + COUNTED + DONE, Tokens(1, 2)),
        ('data: {"usage": {"prompt_tokens": broken\n', Tokens()),
        ({"usage": {"prompt_tokens": "many", "completion_tokens": -1}}, Tokens()),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 10**30}}, Tokens(1, 0)),
        ({"usage": "none"}, Tokens()),
        ([[[]]], Tokens()),
        ([], Tokens()),
        ("text that names usage", Tokens()),
        (None, Tokens()),
    ],
)
def test_tokens_are_read_where_they_are(output, tokens):
    assert read_tokens(output) == tokens


def test_parts_that_count_tokens_are_told_from_others():
    assert speaks_of_tokens(COUNTED)
    assert speaks_of_tokens({"usage": {}})
    assert not speaks_of_tokens(NOT_YET)
    assert not speaks_of_tokens({"usage": None})
    assert not speaks_of_tokens(None)

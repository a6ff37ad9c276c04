"""Which values are secret, what may be shown of them, and that nothing secret is in any text."""

from __future__ import annotations

import pytest

from flashkit.deploy.confidential import looks_secret, reference_to, scrub, secrets_named, shown


@pytest.mark.parametrize(("name", "value"), [
    ("HF_TOKEN", "hf_" + "aB3" * 12), ("ANYTHING", "rpa_" + "aB3x" * 10), ("DB_PASSWORD", "hunter2"),
    ("API_KEY", "correct-horse"), ("REDIS_URL", "redis://user:sw0rdfish@db.example:6379/0"),
    ("FLASHKIT_STATE", "rediss://:pa55word@db.example:6380"), ("SECRET", "x"),
])  # fmt: skip
def test_secret(name: str, value: str):
    assert looks_secret(name, value)
    assert shown(name, value) == "•••"


@pytest.mark.parametrize(("name", "value"), [
    ("LOG_LEVEL", "debug"), ("MAX_TOKENS", "4096"), ("TOKENIZERS_PARALLELISM", "false"), ("USE_AUTH_TOKEN", "true"),
    ("HF_TOKEN", "{{ RUNPOD_SECRET_hf }}"), ("HF_TOKEN", ""), ("REDIS_URL", "redis://db.example:6379/0"),
    ("STATE", "redis://:{{ RUNPOD_SECRET_pw }}@db.example:6379"), ("MODEL", "Qwen/Qwen3-8B"),
])  # fmt: skip
def test_not_secret(name: str, value: str):
    assert not looks_secret(name, value)
    assert shown(name, value) == value


def test_what_is_said_to_be_plain_is_plain():
    assert not looks_secret("API_KEY", "correct-horse", plain=["API_KEY"])
    assert shown("API_KEY", None) is None


def test_references_are_found_wherever_they_stand():
    env = {"A": reference_to("one"), "B": "redis://:{{RUNPOD_SECRET_two.x}}@h", "C": "none"}
    assert secrets_named(env) == ["one", "two.x"]


def test_values_are_taken_out_of_texts_the_longest_first():
    assert scrub("a key-long and a key", ["key", "key-long", ""]) == "a ••• and a •••"

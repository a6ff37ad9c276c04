"""Keys are found by their form or their name, and never shown."""

from __future__ import annotations

import random
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.checks.secrets import find_secrets, is_telling_name, redact, secret_in_value

LETTERS = string.ascii_letters + string.digits


def made(prefix: str, length: int, letters: str = LETTERS) -> str:
    """Return a key of this form that nobody has ever issued."""
    return prefix + "".join(random.Random(f"{prefix}{length}").choices(letters, k=length))


KEYS = {
    "a Hugging Face token": made("hf_", 34),
    "a Runpod API key": made("rpa_", 44, string.ascii_uppercase + string.digits),
    "a key of Runpod's S3": made("rps_", 40),
    "an Anthropic key": made("sk-ant-api03-", 90),
    "an OpenAI key": made("sk-proj-", 60),
    "an AWS access key": made("AKIA", 16, string.ascii_uppercase + string.digits),
    "a GitHub token": made("ghp_", 36),
    "a GitLab token": made("glpat-", 20),
    "a LangSmith key": made("lsv2_pt_", 42),
    "a Slack token": made("xoxb-", 40),
    "a Google API key": made("AIza", 35),
    "a Stripe key": made("sk_live_", 24),
    "a JSON web token": ".".join([made("eyJ", 20), made("eyJ", 30), made("", 40)]),
    "a private key": "-----BEGIN " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_known_by_its_form_wherever_it_stands(kind: str):
    key = KEYS[kind]
    for line in (key, f'token = "{key}"', f"  # was {key}", f'{{"k": "{key}"}}', f"curl -H 'X: {key}' a.example"):
        found = list(find_secrets(f"first line\n{line}\n"))
        assert [each.kind for each in found] == [kind], line
        assert found[0].line == 2
        assert key not in found[0].shown
        assert f"({len(key)} characters)" in found[0].shown
    assert secret_in_value("ANYTHING", key) is not None


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "q7Rz0xWkP4vLm2Td9sY8"',
        "DB_PASSWORD=q7Rz0xWkP4vLm2Td9sY8",
        '{"client_secret": "0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c"}',
        'TOKEN: str = "q7Rz0xWkP4vLm2Td9sY8"',
        "redis://:q7Rz0xWkP4vLm2Td9sY8@10.0.0.1:6379/0",
        "postgresql://user:q7Rz0x@db.example/app",
    ],
)
def test_a_random_value_with_a_telling_name_is_a_secret(line: str):
    [found] = find_secrets(line)
    assert "q7Rz0xWk" not in found.shown
    assert "0f9a8b7c" not in found.shown


@pytest.mark.parametrize(
    "line",
    [
        "api_key = os.environ['API_KEY_OF_SERVICE_1']",
        "token = settings.hub_token_of_service_1",
        'token = "your-token-goes-here-1234"',
        'password = "correct horse battery staple"',
        "api_key=<your key of 32 characters 1>",
        'HF_TOKEN = "{{ RUNPOD_SECRET_hf_token_1 }}"',
        "HF_TOKEN=${HF_TOKEN_OF_ACCOUNT_1}",
        "max_new_tokens = 16_384_000_000_000_000",
        "tokenizer = 'sentence-transformers/all-MiniLM-L6-v2'",
        'token = "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"',
        "secret_path = '/run/secrets/hf_token_of_account_1'",
        'URL = "redis://:password@127.0.0.1:6379"',
        'URL = "redis://user:${REDIS_PASSWORD}@127.0.0.1:6379"',
        "revision = '0123456789abcdef0123456789abcdef01234567'",
        "image: python@sha256:" + "0f9a8b7c" * 8,
        "see https://docs.example.com/a:b@c",
        "",
    ],
)
def test_what_only_looks_like_a_secret_is_left_alone(line: str):
    assert list(find_secrets(line)) == []


TELLING = (
    "HF_TOKEN",
    "OPENAI_API_KEY",
    "DB_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "db.password",
    "CREDENTIALS",
    "SIGNING_KEY",
)
PLAIN = ("MAX_TOKENS_PER_MINUTE", "MONKEY", "TOKENIZER", "KEYBOARD", "LOG_LEVEL", "PGPASSFILE")


@pytest.mark.parametrize("name", TELLING + PLAIN)
def test_names_tell_of_secrets(name: str):
    assert is_telling_name(name) == (name in TELLING)


def test_a_short_word_in_a_variable_is_no_secret_and_a_short_random_password_is():
    assert secret_in_value("DB_PASSWORD", "postgres") is None
    assert secret_in_value("DB_PASSWORD", "q7Rz0xW2") is not None
    assert secret_in_value("LOG_LEVEL", "q7Rz0xWkP4vLm2Td9sY8") is None


@given(st.text(max_size=200))
def test_any_text_can_be_searched(text: str):
    for found in find_secrets(text):
        assert 1 <= found.line <= max(1, len(text.splitlines()))


@given(st.text(alphabet=LETTERS, min_size=30, max_size=60))
def test_nothing_of_a_key_but_its_prefix_is_shown(body: str):
    for found in find_secrets(f"hf_{body}"):
        assert found.shown == redact(f"hf_{body}", prefix="hf_") == f"hf_… ({len(body) + 3} characters)"


def test_long_lines_are_searched_in_steps_that_grow_with_their_length():
    """A pattern that looks back from each place would take minutes for one line of a minified file."""
    started = time.process_time()
    assert list(find_secrets("a_token-" * 50_000 + "\n" + "x" * 200_000 + "\n" + "key=" * 50_000)) == []
    assert time.process_time() - started < 20

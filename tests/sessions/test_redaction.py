"""What people are shown of a session hides secrets; what is stored, and what steps answer with, does not."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from flashkit import Session
from flashkit.worker.sessions import admin
from flashkit.worker.sessions.redaction import HIDDEN, hide_in_json, hide_in_text, hide_in_value, is_secret_name

KEY = "hunter2-hunter2"


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "api_key",
        "apiKey",
        "X-Api-Key",
        "githubToken",
        "client_secret",
        "Authorization",
        "AWS_SECRET_ACCESS_KEY",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "token_count", "key", "secretary", "path", "author"])
def test_names_of_other_things(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no entry for Bearer abc.def in the list", f"no entry for Bearer {HIDDEN} in the list"),
        ("redis://user:pw@host:6379/0 is away", f"redis://user:{HIDDEN}@host:6379/0 is away"),
        (f"wrong key sk-{'a' * 24}!", f"wrong key {HIDDEN}!"),
        (f"hf_{'a' * 24}", HIDDEN),
        ("http://127.0.0.1:8000/v2/agent", "http://127.0.0.1:8000/v2/agent"),
        ("a risk-taking skeleton", "a risk-taking skeleton"),
    ],
)
def test_the_look_of_keys(text, shown):
    assert hide_in_text(text) == shown


def test_values_keep_their_shape():
    value = {"token": {"a": 1}, "n": [{"password": 7, "user": "ada"}], "secret": None, "cookie": True, "api_key": ""}
    assert hide_in_value(value) == {
        "token": HIDDEN, "n": [{"password": HIDDEN, "user": "ada"}], "secret": None, "cookie": True, "api_key": ""
    }  # fmt: skip


def test_what_is_no_json_is_hidden_by_its_look():
    assert hide_in_json(b'{"token": Bearer abcdef') == f'{{"token": Bearer {HIDDEN}'.encode()


class Login(BaseModel):
    """State with a secret in it."""

    user: str = ""
    password: str = ""


async def agent(session: Session[Login], q: str, password: str) -> dict[str, Any]:
    """Log in, keep the password, and fail with it if it is told to."""
    token = await session.step("login", lambda: {"user": q, "token": KEY})
    session.state.user, session.state.password = q, password
    if q == "fail":
        raise ConnectionError(f"refused: Bearer {KEY}")
    return {"works": token["token"] == KEY}


async def test_people_see_no_secret_and_steps_do(lab):
    worker = await lab.worker(agent, keep_journals=True)
    assert (await worker.error("j1", session_id="s", q="fail", password=KEY)).type == "ConnectionError"
    for session in ("a", "b"):
        answer = await worker.answer(f"job-{session}", session_id=session, q=session, password=KEY + session)
        assert answer == {"works": True}
    async with lab.store() as store:
        views = [await admin.describe(store, session) for session in ("s", "a")]
        found = await admin.diff(store, ("a", None), ("b", None))
    assert HIDDEN in views[0].summary.reason
    assert json.loads(views[1].turns[0].preview) == {"q": "a", "password": HIDDEN}
    assert json.loads(views[1].turns[0].steps[0].preview) == {"user": "a", "token": HIDDEN}
    assert [(each.path, each.before, each.after) for each in found] == [
        ("$.state.user", "a", "b"),
        ("$.state.password", HIDDEN, HIDDEN),
    ]
    assert KEY not in repr((views, found))


class Account(BaseModel):
    """What a step returns, with a secret that is marked as one."""

    user: str
    password: SecretStr


def log_in(password: str) -> Account:
    """Return the account."""
    return Account(user="ada", password=SecretStr(password))


async def test_a_marked_secret_and_an_argument_are_not_stored(lab):
    async def marked(session: Session[None]) -> str:
        account = await session.step("login", log_in, KEY)
        return account.password.get_secret_value()

    worker = await lab.worker(marked, keep_journals=True)
    assert await worker.answer("j1", session_id="s") == "**********"
    async with lab.store() as store:
        raw = await store.export("s")
    assert KEY.encode() not in b"".join(data for _, data in raw.journal) + (raw.snapshot or b"")

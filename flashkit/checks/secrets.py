"""Keys and passwords in text: known by their form, or by a telling name and too much disorder for a word.

What is found is never shown: `Secret.shown` has the issuer's prefix and the length, so a report can be pasted anywhere.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_FORMS: Final[tuple[tuple[str, str, re.Pattern[str]], ...]] = tuple(
    (kind, prefix, re.compile(pattern))
    for kind, prefix, pattern in (
        ("a Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),
        ("a Runpod API key", "rpa_", r"\brpa_[A-Za-z0-9]{30,}\b"),
        ("a key of Runpod's S3", "rps_", r"\brps_[A-Za-z0-9]{20,}\b"),
        ("an Anthropic key", "sk-ant-", r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
        ("an OpenAI key", "sk-", r"\bsk-(?!ant-)(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}"),
        ("an AWS access key", "AKIA", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("a GitHub token", "gh", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})\b"),
        ("a GitLab token", "glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("a LangSmith key", "lsv2_", r"\blsv2_[a-z]{2}_[A-Za-z0-9_]{20,}\b"),
        ("a Slack token", "xox", r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
        ("a Google API key", "AIza", r"\bAIza[0-9A-Za-z_-]{35}\b"),
        ("a Stripe key", "sk_live_", r"\b[rs]k_live_[0-9A-Za-z]{20,}\b"),
        ("a JSON web token", "eyJ", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
        ("a private key", "-----BEGIN", r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"),
    )
)
"""What each issuer's keys look like, by their own documentation, and how much of one may be shown."""
_PASSWORD_IN_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"`]*:(?P<value>[^\s/@'\"`]{3,})@", re.IGNORECASE)
_NAMED: Final = re.compile(
    r"""(?ix) (?<![\w.-]) (?P<name> [\w.-]*
            (?:api[_-]?key|access[_-]?key|secret|token|passw(?:or)?d|passwd|credential|private[_-]?key) [\w.-]* )
         ["']? \s* (?::\s*[A-Za-z_.\[\]| ]+)? \s* [:=] \s* ["']? (?P<value> [^\s"'`,;)}\]#]{12,} ) """,
)
_TELLING_NAME: Final = re.compile(
    r"(?i)(^|[_.-])((api[_-]?key|access[_-]?key|secret|passw(or)?d|passwd|pwd|credential|private[_-]?key)s?|token)($|[_.-])"
    r"|(_|^)key$"
)
_PLACEHOLDER: Final = re.compile(
    r"(?i)^(your|my|the|some|insert|replace|change|example|dummy|fake|test|local|placeholder|todo|none|null|x{3,}|\*{3,}"
    r"|\.{3}|<|\$|%|\{\{|\{)|(here|example|placeholder|changeme|xxxx|\.\.\.)$"
)
_CODE: Final = re.compile(
    r"^[A-Za-z_][\w.]*[\[(.]|^(os|self|settings|config|env|str|int|bool|none|true|false)\b|^/|^\./|^\w+://"
)
_LEAST_DISORDER: Final = 3.2
"""Bits for each character; words of a language have less, random letters and digits of such a length more."""
_SHORTEST_KEY: Final = 16
_LONGEST_LINE: Final = 4_000
"""Longer lines are data or minified; they are cut, not skipped."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that must not stand where it was found."""

    kind: str
    """In words, such as `a Hugging Face token`."""
    shown: str
    """Enough to find it, never enough to use it."""
    line: int


def find_secrets(text: str) -> Iterator[Secret]:
    """Yield what looks like a key or password, one a line and kind."""
    for number, line in enumerate(text.splitlines(), 1):
        yield from _in_line(line[:_LONGEST_LINE], number)


def secret_in_value(name: str, value: str) -> Secret | None:
    """Return what makes the value of a variable a secret, None where nothing does."""
    if found := next(_by_form(value, 1), None):
        return found
    if _TELLING_NAME.search(name) and _is_random(value, least=8):
        return Secret(f"the value of {name}", redact(value), 1)
    return None


def is_telling_name(name: str) -> bool:
    """Return whether a variable of this name holds a secret: `HF_TOKEN`, `DB_PASSWORD`."""
    return bool(_TELLING_NAME.search(name))


def redact(value: str, *, prefix: str = "") -> str:
    """Return what may be shown of a secret."""
    return f"{prefix}… ({len(value)} characters)"


def _in_line(line: str, number: int) -> Iterator[Secret]:
    by_form = list(_by_form(line, number))
    yield from by_form
    if by_form:
        return
    named = _NAMED.search(line)
    if named and _TELLING_NAME.search(named["name"]) and _is_random(named["value"], least=_SHORTEST_KEY):
        yield Secret(f"the value of {named['name']}", redact(named["value"]), number)


def _by_form(text: str, number: int) -> Iterator[Secret]:
    for kind, prefix, pattern in _FORMS:
        if (found := pattern.search(text)) and not _is_filler(found[0].removeprefix(prefix)):
            yield Secret(kind, redact(found[0], prefix=prefix), number)
    url = _PASSWORD_IN_URL.search(text)
    if url and not _PLACEHOLDER.search(url["value"]) and url["value"].lower() not in ("password", "secret", "pass"):
        yield Secret("a password in an address", redact(url["value"]), number)


def _is_filler(text: str) -> bool:
    """True for `xxxxxxxx` and `0000`, as examples have them."""
    return len(set(text)) <= 2  # noqa: PLR2004 - one letter, and perhaps a dash


def _is_random(value: str, *, least: int) -> bool:
    if len(value) < least or _PLACEHOLDER.search(value) or _CODE.search(value):
        return False
    has_both = any(letter.isdigit() for letter in value) and any(letter.isalpha() for letter in value)
    return has_both and _disorder(value) >= min(_LEAST_DISORDER, 0.8 * math.log2(len(value)))


def _disorder(text: str) -> float:
    """Return Shannon's entropy of the characters, in bits for each."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())

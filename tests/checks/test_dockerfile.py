"""Dockerfiles as instructions, and what `.dockerignore` keeps out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.checks.dockerfile import expand, is_in_image, is_matched, read_dockerfile

DOCKERFILE = r"""
# syntax and comments
ARG VERSION=3.11
FROM python:${VERSION}-slim AS build

RUN --mount=type=cache,target=/root/.cache/pip \
    # a comment inside

    pip install a \
    && pip install b
COPY <<EOF /etc/app.conf
FROM not-an-instruction
EOF
COPY --from=build --chown=1000:1000 /opt /opt
from python:$VERSION
env A=1 B="two words" \
    C=3
ENV OLD form of it
COPY ["a file", "b", "/app/"]
ADD src/ ./
user 1000
CMD ["python", "app.py"]
"""


def test_instructions_are_read_with_their_lines_and_joined():
    image = read_dockerfile("Dockerfile", DOCKERFILE)
    assert [(each.word, each.line) for each in image.instructions] == [
        ("ARG", 3), ("FROM", 4), ("RUN", 6), ("COPY", 11), ("COPY", 14), ("FROM", 15), ("ENV", 16), ("ENV", 18),
        ("COPY", 19), ("ADD", 20), ("USER", 21), ("CMD", 22),
    ]  # fmt: skip
    run = image.instructions[2]
    assert "pip install a" in run.rest
    assert "pip install b" in run.rest
    assert "comment" not in run.rest
    assert run.flags == {"mount": "type=cache,target=/root/.cache/pip"}


def test_bases_have_their_variables_and_stages_are_none():
    image = read_dockerfile("Dockerfile", DOCKERFILE + "FROM build\nFROM ${UNKNOWN:-debian:12}\nFROM scratch\n")
    assert [base for _, base in image.bases()] == ["python:3.11-slim", "python:3.11", "debian:12"]


def test_variables_and_copies_of_the_image_itself():
    image = read_dockerfile("Dockerfile", DOCKERFILE)
    assert image.env == {"A": "1", "B": "two words", "C": "3", "OLD": "form of it"}
    assert [(list(sources), target) for _, sources, target in image.copies()] == [
        (["<<EOF"], "/etc/app.conf"), (["a file", "b"], "/app/"), (["src/"], "./"),
    ]  # fmt: skip
    assert image.last_stage[0].line == 15


def test_an_empty_or_broken_dockerfile_has_no_instructions():
    for text in ("", "# nothing\n", "\\\n", "FROM", 'RUN "open', "123 x\n", "RUN a \\"):
        image = read_dockerfile("Dockerfile", text)
        assert image.last_stage == () or image.last_stage[0].word == "FROM"
        assert list(image.bases()) == []
        assert list(image.copies()) == []


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str):
    image = read_dockerfile("Dockerfile", text)
    list(image.bases())
    list(image.copies())
    assert isinstance(image.env, dict)


@pytest.mark.parametrize(
    ("patterns", "path", "is_out"),
    [
        (".env", ".env", True),
        (".env*", ".env.local", True),
        ("/.env", ".env", True),
        ("**/.env", "deep/er/.env", True),
        ("**/.env", ".env", True),
        ("*", ".env", True),
        ("secrets", "secrets/key.pem", True),
        ("secrets/*.pem", "secrets/key.pem", True),
        ("secrets/?ey.pem", "secrets/key.pem", True),
        ("*.pem", "secrets/key.pem", False),
        (".env\n!.env", ".env", False),
        ("!.env\n.env", ".env", True),
        ("# .env", ".env", False),
        ("", ".env", False),
        ("a+b", "a+b", True),
    ],
)
def test_patterns_match_as_docker_matches_them(patterns: str, path: str, is_out: bool):
    assert is_matched(path, patterns) == is_out


@pytest.mark.parametrize(
    ("copy", "ignored", "is_in"),
    [
        ("COPY . /app", None, True),
        ("COPY ./ /app", None, True),
        ("COPY / /app", None, True),
        ("COPY .env /app", None, True),
        ("COPY *.py /app", None, False),
        ("COPY . /app", ".env\n", False),
        ("COPY --from=a . /app", None, False),
        ("RUN cp . /app", None, False),
    ],
)
def test_files_get_into_the_image_by_copy_and_add(copy: str, ignored: str | None, is_in: bool):
    assert is_in_image(".env", read_dockerfile("Dockerfile", f"FROM a\n{copy}\n"), ignored) == is_in


def test_variables_are_put_in_where_they_are_known():
    assert expand("a:${TAG}-$KIND-${NONE:-x}${NONE}", {"TAG": "1", "KIND": "slim"}) == "a:1-slim-x"

"""Cases of the rules for images."""

from __future__ import annotations

from tests.checks.cases.building import Case, app, cpu

CASES: dict[str, Case] = {
    "FK601": Case(
        broken=(
            app(cpu(), dockerfile="FROM python\n"),
            app(cpu(), dockerfile="FROM python:latest\n"),
            app(cpu(), dockerfile="ARG TAG=latest\nFROM registry:5000/python:${TAG}\n"),
            app(cpu(), dockerfile="FROM python:3.11-slim\n"),
        ),
        fine=(
            app(cpu(), dockerfile="FROM python:3.11-slim@sha256:" + "a" * 64 + "\n"),
            app(cpu()),
            app(cpu(), dockerfile="FROM scratch\n"),
            app(cpu(), dockerfile="ARG BASE\nFROM ${BASE}\n"),
            app(cpu(), dockerfile="FROM a@sha256:" + "a" * 64 + " AS build\nFROM build\n"),
        ),
    ),
    "FK602": Case(
        broken=(
            app(cpu(), dockerfile="FROM python:3.11\n"),
            app(cpu(), dockerfile="FROM python:3.11\nUSER 1000\nRUN true\nUSER root\n"),
            app(cpu(), dockerfile="FROM a:1 AS build\nUSER 1000\nFROM a:1\nCOPY --from=build /a /a\n"),
        ),
        fine=(
            app(cpu(), dockerfile="FROM python:3.11\nUSER 1000:1000\n"),
            app(cpu(), dockerfile="FROM flashkit-worker:cpu\n"),
            app(cpu()),
        ),
    ),
    "FK603": Case(
        broken=(app(cpu(), dockerfile="FROM a:1\nCOPY . /app\n"), app(cpu(), dockerfile="FROM a:1\nADD ./ /app\n")),
        fine=(
            app(cpu(), dockerfile="FROM a:1\nCOPY . /app\n", dockerignore=".git\n"),
            app(cpu(), dockerfile="FROM a:1\nCOPY app.py /app/\n"),
            app(cpu()),
        ),
    ),
    "FK604": Case(
        broken=(
            app(cpu(), requirements="httpx\n"),
            app(cpu(), requirements="orjson==3.10\nrich[x] ; python_version > '3'  # why\n"),
        ),
        fine=(
            app(
                cpu(),
                requirements="# tools\nhttpx==0.28.1\nrich>=13\n-r other.txt\n--index-url https://example.com\n./wheel.whl\n",
            ),
            app(cpu(), requirements="httpx\n", constraints="httpx==0.28.1\n"),
            app(cpu()),
        ),
    ),
}

"""Cases of the rules for operation, and of comments."""

from __future__ import annotations

import json

from tests.checks.cases.building import Case, agent, app, cpu

CASES: dict[str, Case] = {
    "FK701": Case(
        broken=(app(agent()), app(agent(env={"FLASHKIT_STATE": "sqlite:////data/sessions.db"}))),
        fine=(
            app(agent(env={"FLASHKIT_STATE": "{{ RUNPOD_SECRET_redis_url }}"})),
            app(agent(), toml='[endpoints.agent.env]\nFLASHKIT_STATE = "{{ RUNPOD_SECRET_redis_url }}"\n'),
            app(cpu()),
            app(
                agent(),
                hub=json.dumps({"config": {"env": [{"key": "FLASHKIT_STATE", "value": "redis://redis.example:6379"}]}}),
            ),
        ),
    ),
    "FK702": Case(
        broken=(
            app(cpu()),
            app(cpu(), agent()),
            app(cpu(env={"FLASHKIT_TRACE_CONTENT": "1", "OTEL_SERVICE_NAME": "tools"})),
            app(cpu(env={"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example", "OTEL_TRACES_EXPORTER": "none"})),
        ),
        fine=(
            app(cpu(env={"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example"})),
            app(cpu(), agent(env={"LANGSMITH_TRACING": "true"})),
            app(cpu(), dockerfile="FROM a:1\nENV OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://otel.example/v1/traces\n"),
        ),
    ),
    "FK703": Case(
        broken=(
            app(cpu()),
            app(cpu()) | {".flashkit/local-runs.json": '{"tool": {"code": "of another day"}}'},
            app(cpu()) | {".flashkit/local-runs.json": "not JSON"},
        ),
        fine=(app(cpu()) | {".flashkit/local-runs.json": "THE DIGEST OF THIS APP"},),
    ),
    "FK901": Case(
        broken=(
            app("# flashkit: ignore[FK999]\n" + cpu()),
            app(cpu() + "  # flashkit: ignore"),
            app(cpu(), dockerfile="# flashkit: ignore[dockerfile]\nFROM a:1\n"),
        ),
        fine=(app("# flashkit: ignore[FK703]\n" + cpu()), app(cpu(), 'TEXT = "# flashkit: ignore[FK999]"')),
    ),
    "FK902": Case(
        broken=(
            app("# flashkit: ignore[FK301]\n" + cpu()),
            app("# flashkit: ignore[FK703, FK301]\n" + cpu()),
            app(cpu() + "\n# flashkit: ignore[FK703]"),
        ),
        fine=(app("# flashkit: ignore[FK703, FK109]\n" + cpu()),),
    ),
}

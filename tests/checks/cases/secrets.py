"""Cases of the rules for secrets."""

from __future__ import annotations

import json

from tests.checks.cases.building import HF_TOKEN, OPENAI_KEY, RANDOM_VALUE, RUNPOD_KEY, Case, app, cpu

CASES: dict[str, Case] = {
    "FK301": Case(
        broken=(
            app(cpu(), f'TOKEN = "{HF_TOKEN}"'),
            app(cpu(), f'client = dict(api_key="{RANDOM_VALUE}")'),
            app(cpu(), script=f"export OPENAI_API_KEY={OPENAI_KEY}\n"),
            app(cpu(), f'URL = "redis://:{RANDOM_VALUE}@redis.example:6379/0"'),
        ),
        fine=(
            app(cpu(), "import os", 'TOKEN = os.environ.get("HF_TOKEN", "")'),
            app(cpu(), 'api_key = "your-api-key-goes-here"'),
            app(cpu(), 'token = "hf_' + "x" * 34 + '"'),
            app(cpu(), 'URL = "redis://:password@127.0.0.1:6379/0"'),
            app(cpu(), 'max_tokens = "sixteen thousand and a few"'),
        ),
    ),
    "FK302": Case(
        broken=(app(cpu(env={"HF_TOKEN": HF_TOKEN})), app(cpu(env={"DB_PASSWORD": RANDOM_VALUE}))),
        fine=(
            app(cpu(env={"HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}"})),
            app(cpu(env={"LOG_LEVEL": "debug"})),
            app(cpu(env={"PAGE_TOKEN": RANDOM_VALUE}), toml='plain = ["PAGE_TOKEN"]\n'),
            app(cpu(env={"HF_TOKEN": "${HF_TOKEN}"})),
        ),
    ),
    "FK303": Case(
        broken=(
            app(cpu(), dockerfile="FROM a:1\nARG HF_TOKEN\n"),
            app(cpu(), dockerfile=f"FROM a:1\nENV API_KEY={RANDOM_VALUE}\n"),
            app(cpu(), dockerfile=f"FROM a:1\nRUN curl -H 'Authorization: Bearer {HF_TOKEN}' https://example.com\n"),
        ),
        fine=(
            app(cpu(), dockerfile="FROM a:1\nRUN --mount=type=secret,id=hf_token cat /run/secrets/hf_token\n"),
            app(cpu(), dockerfile="FROM a:1\nENV HF_TOKEN_PATH=/run/secrets/hf_token PYTHONUNBUFFERED=1\n"),
        ),
    ),
    "FK304": Case(
        broken=(
            app(cpu(), dockerfile="FROM a:1\nCOPY . /app\n", env="A=1\n"),
            app(cpu(), dockerfile="FROM a:1\nCOPY --chown=1000:1000 .env* /app/\n", env="A=1\n", dockerignore=".git\n"),
            app(cpu(), dockerfile="FROM a:1\nADD . .\n", env="A=1\n", dockerignore=".env*\n!.env\n"),
        ),
        fine=(
            app(cpu(), dockerfile="FROM a:1\nCOPY . /app\n", env="A=1\n", dockerignore="# secrets\n.env*\n"),
            app(cpu(), dockerfile="FROM a:1\nCOPY app.py /app/\n", env="A=1\n"),
            app(cpu(), dockerfile="FROM a:1\nCOPY . /app\n", env_example="A=1\n"),
            app(cpu(), env="A=1\n"),
            app(cpu(), dockerfile="FROM a:1 AS build\nFROM a:1\nCOPY --from=build . /app\n", env="A=1\n"),
        ),
    ),
    "FK305": Case(
        broken=(
            app(cpu(), env_example=f"HF_TOKEN={HF_TOKEN}\n"),
            app(cpu(), settings=f'openai_key = "{OPENAI_KEY}"\n'),
            app(cpu(), hub=json.dumps({"config": {"runsOn": "CPU", "env": [{"key": "KEY", "value": RUNPOD_KEY}]}})),
        ),
        fine=(
            app(cpu(), env_example="HF_TOKEN=\n"),
            app(cpu(), env=f"HF_TOKEN={HF_TOKEN}\n"),
            app(cpu(), settings='openai_key = "${OPENAI_API_KEY}"\n'),
        ),
    ),
    "FK306": Case(
        broken=(
            app(cpu(), env=f"HF_TOKEN={HF_TOKEN}\n"),
            app(cpu(), env=f"HF_TOKEN={HF_TOKEN}\n", gitignore="*.pyc\n"),
        ),
        fine=(
            app(cpu(), env=f"HF_TOKEN={HF_TOKEN}\n", gitignore=".env\n"),
            app(cpu(), env="LOG_LEVEL=debug\n"),
            app(cpu(), env=f"HF_TOKEN={HF_TOKEN}\n", gitignore="*\n"),
        ),
    ),
}

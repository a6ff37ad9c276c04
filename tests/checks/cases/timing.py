"""Cases of the rules for time."""

from __future__ import annotations

from tests.checks.cases.building import IMPORTS, VOLUME, Case, agent, api, app, cpu, gpu, llm

CASES: dict[str, Case] = {
    "FK201": Case(
        broken=(
            app('@cpu_endpoint(name="tool")\ndef tool(text: str) -> str:\n    return text'),
            app('make = cpu_endpoint(name="tool")\n\n\n@make\ndef tool(text: str) -> str:\n    return text'),
            app('def plain(text: str) -> str:\n    return text\n\n\ntool = cpu_endpoint(name="tool")(plain)'),
        ),
        fine=(
            app(cpu()),
            app(
                'options = {"execution_timeout_ms": 9_000}\n\n\n@cpu_endpoint(name="tool", **options)\n'
                "def tool(text: str) -> str:\n    return text"
            ),
        ),
    ),
    "FK202": Case(
        broken=(app(cpu(execution_timeout_ms=600_000)), app(agent(execution_timeout_ms=120_000))),
        fine=(
            app(cpu(execution_timeout_ms=90_000)),
            app(api(execution_timeout_ms=330_000)),
            app(cpu(execution_timeout_ms=600_000), agent("return await session.call(tool, question, timeout=700)")),
        ),
    ),
    "FK203": Case(
        broken=(
            app(cpu(), agent("return await session.call(tool, question)")),
            app(cpu(), agent("return await session.call(tool, question, timeout=None)")),
            app(
                cpu(),
                "async def ask(session: Session, text: str) -> str:\n    return await session.call(tool, text)",
                agent("return await ask(session, question)"),
            ),
            app(
                "import tools",
                agent("return await session.call(tools.fetch, question)"),
                "from tools import fetch",
                tools=IMPORTS + cpu("fetch"),
            ),
        ),
        fine=(
            app(cpu(), agent("return await session.call(tool, question, timeout=30)")),
            app(cpu(), agent("options = {'timeout': 3}\nreturn await session.call(tool, question, **options)")),
            app(cpu(), agent("return await tool.remote(question)")),
        ),
    ),
    "FK204": Case(
        broken=(
            app(cpu(execution_timeout_ms=60_000), agent("return await session.call(tool, question, timeout=30)")),
            app(
                "MINUTE = 60",
                cpu(execution_timeout_ms=61_000),
                agent("return await session.call(tool, 'x', timeout=MINUTE)"),
            ),
        ),
        fine=(
            app(cpu(execution_timeout_ms=30_000), agent("return await session.call(tool, question, timeout=30)")),
            app(
                "MINUTE = 60",
                cpu(execution_timeout_ms=90_000),
                agent("return await session.call(tool, 'x', timeout=MINUTE * 3 / 2)"),
            ),
            app(cpu(), agent("return await session.call(tool, question, timeout=float(question))")),
        ),
    ),
    "FK205": Case(
        broken=(
            app(cpu(), agent("return await session.call(tool, question, timeout=60)", execution_timeout_ms=60_000)),
        ),
        fine=(
            app(cpu(), agent("return await session.call(tool, question, timeout=60)", execution_timeout_ms=90_000)),
            app(agent()),
        ),
    ),
    "FK206": Case(
        broken=(
            app(agent(idle_timeout=60)),
            app(gpu(idle_timeout=5), agent("return await session.call(model, question, timeout=60)")),
        ),
        fine=(
            app(agent(idle_timeout=300)),
            app(agent(idle_timeout=5, workers=(3, 3))),
            app(gpu(idle_timeout=5)),
            app(gpu(idle_timeout=60), agent("return await session.call(model, question, timeout=60)")),
        ),
    ),
    "FK207": Case(
        broken=(
            app(llm("Qwen/Qwen-72B", gpu_count=4, vllm="tensor_parallel_size=4", volume=VOLUME)),
            app(llm("Qwen/Qwen-14B")),
        ),
        fine=(
            app(llm("Qwen/Qwen-14B", volume=VOLUME)),
            app(llm("Qwen/Qwen-14B", env={"RUNPOD_INIT_TIMEOUT": "900"})),
            app(llm("Qwen/Qwen-14B"), toml="[endpoints.llm]\nmodel_cache = true\n"),
            app(llm("Qwen/Qwen3-8B")),
            app(llm("org/model")),
        ),
    ),
}

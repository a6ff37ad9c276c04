"""Cases of the rules for GPUs, workers and costs."""

from __future__ import annotations

from tests.checks.cases.building import COMMIT, HUB, Case, agent, api, app, config, cpu, gpu, llm

CASES: dict[str, Case] = {
    "FK101": Case(
        broken=(
            app(gpu(gpu="AMPERE_24")),
            app(cpu(), hub='{"config": {"runsOn": "GPU"}}'),
            app(cpu(), hub='{"config": {"runsOn": "GPU", "gpuIds": "ADA_24,ANY"}}'),
        ),
        fine=(
            app(gpu(gpu=["L40S", "A100"])),
            app(gpu(gpu="AMPERE_80")),
            app(cpu(), hub=HUB),
            app(cpu(), hub='{"config": {"runsOn": "CPU"}}'),
        ),
    ),
    "FK102": Case(
        broken=(app(gpu(gpu=["L4", "H100"])), app(gpu(gpu=["A40", "AMPERE_24"]))),
        fine=(app(gpu(gpu=["L40S", "A100"])), app(gpu(gpu="ADA_80_PRO")), app(cpu())),
    ),
    "FK103": Case(
        broken=(
            app(gpu(workers=(0, 3))),
            app(agent(workers=(0, 3)), agent(name="other", body="return await session.call(agent, 'x', timeout=90)")),
        ),
        fine=(
            app(gpu(workers=(1, 3))),
            app(cpu(workers=(0, 3))),
            app(llm(workers=(0, 3))),  # FK104 asks for more already
        ),
    ),
    "FK104": Case(
        broken=(
            app(agent(workers=(3, 9)), toml="[environments.production.endpoints.agent]\nworkers = [1, 2]\n"),
            app(agent(workers=(1, 3))),
            app(llm(workers=(0, 3))),
        ),
        fine=(
            app(agent(workers=(3, 9))),
            app(agent(workers=(0, 1)), toml="[endpoints.agent]\nworkers = [3, 9]\n"),
            app(agent(workers=(3, 9)), toml="[environments.staging.endpoints.agent]\nworkers = [1, 2]\n"),
            app(gpu(workers=(1, 3))),
            app(cpu()),
            app(
                llm(workers=(1, 3)),
                agent("return await session.call(llm, prompt=question, timeout=90)", workers=(3, 9)),
            ),
        ),
    ),
    "FK105": Case(broken=(app(api(workers=(1, 3))),), fine=(app(api(workers=(2, 3))), app(cpu()))),
    "FK106": Case(
        broken=(
            app(
                cpu(workers=(0, 2)),
                agent(
                    "found = await session.gather(session.call(tool, 'a', timeout=60),\n"
                    "    session.call(tool, 'b', timeout=60), session.call(tool, 'c', timeout=60))\n"
                    "return found[0]"
                ),
            ),
            app(
                "TOPICS = ['a', 'b', 'c', 'd']",
                cpu(workers=(0, 3)),
                agent(
                    "calls = [session.call(tool, topic, timeout=60) for topic in TOPICS]\n"
                    "return (await session.gather(*calls))[0]"
                ),
            ),
            app(
                cpu(workers=(0, 1)),
                agent("return (await session.gather(*(session.call(tool, each, timeout=60) for each in question)))[0]"),
            ),
            app(
                cpu(workers=(0, 3)),
                agent(
                    "return (await session.gather(*(session.call(tool, str(n), timeout=60) for n in range(2 * 2))))[0]"
                ),
            ),
            app(
                cpu(workers=(0, 2)),
                "async def ask(session: Session, text: str) -> str:\n"
                "    return await session.call(tool, text, timeout=60)",
                agent("return (await session.gather(*[ask(session, 'a'), ask(session, 'b'), ask(session, 'c')]))[0]"),
            ),
        ),
        fine=(
            app(
                cpu(workers=(0, 3)),
                agent("return (await session.gather(*(session.call(tool, each, timeout=60) for each in question)))[0]"),
            ),
            app(
                cpu(workers=(0, 1), concurrency=3),
                agent("return (await session.gather(*(session.call(tool, str(n), timeout=60) for n in range(3))))[0]"),
            ),
            app(cpu(workers=(0, 1)), agent("return await session.call(tool, question, timeout=60)")),
        ),
    ),
    "FK107": Case(
        broken=(app(gpu(flashboot=False)),),
        fine=(app(gpu()), app(cpu(flashboot=False)), app(gpu(flashboot=False, workers=(2, 2)))),
    ),
    "FK108": Case(
        broken=(app(gpu(workers=(2, 3))),),
        fine=(app(gpu(workers=(0, 3))), app(cpu(workers=(2, 3))), app(gpu(gpu="RTX 5090", workers=(1, 3)))),
    ),
    "FK109": Case(
        broken=(app(cpu(workers=(0, 3))),),
        fine=(
            app(cpu(workers=(1, 3))),
            app(cpu(workers=(0, 3)), agent("return await session.call(tool, question, timeout=60)", workers=(3, 3))),
        ),
    ),
    "FK110": Case(
        broken=(app(cpu(cpu="cpu3c-1-2")), app(agent(cpu="cpu5c-1-2"))),
        fine=(
            app(cpu(cpu="cpu3c-2-4")),
            app(gpu()),
            app(cpu(cpu="cpu3c-1-2", env={"RUNPOD_MIN_MEMORY_GB": "1"})),
            app(cpu(cpu="cpu3c-1-2"), dockerfile="FROM a:1\nENV RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=true\n"),
        ),
    ),
    "FK111": Case(
        broken=(
            app(llm("org/model", vllm="tensor_parallel_size=3", gpu_count=3), config=config()),
            app(
                gpu(
                    gpu_count=2,
                    engine=f'Embedding(Weights("org/model", "{COMMIT}"))',
                    body="def {}(engine, text: str) -> str:\n    return text",
                )
            ),
        ),
        fine=(
            app(llm("org/model", vllm="tensor_parallel_size=2", gpu_count=2), config=config()),
            app(llm("org/model")),
            app(gpu(gpu_count=2)),
        ),
    ),
    "FK112": Case(
        broken=(
            app(cpu(), tests='{"tests": [], "config": {"interruptible": true}}'),
            app(cpu(), agent(), hub='{"config": {"runsOn": "CPU", "pods": [{"interruptible": true}]}}'),
        ),
        fine=(
            app(agent(), tests='{"tests": [], "config": {"interruptible": true}}'),
            app(cpu(), tests='{"tests": [], "config": {"interruptible": false}}'),
            app(cpu(), tests="not JSON"),
        ),
    ),
}

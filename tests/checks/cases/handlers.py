"""Cases of the rules for handlers."""

from __future__ import annotations

from tests.checks.cases.building import Case, agent, api, app, cpu, gpu, llm

CASES: dict[str, Case] = {
    "FK501": Case(
        broken=(
            app(cpu(body="def {}(text, limit: int = 3):\n    return text")),
            app(gpu(name="Model", body="class {}:\n    def run(self, text):\n        return text")),
            app(api() + '\n\n\n@api.post("/items")\ndef add(name) -> int:\n    return 1'),
        ),
        fine=(
            app(cpu()),
            app(agent()),
            app(gpu(name="Model", body="class {}:\n    def run(self, text: str) -> str:\n        return text")),
            app(
                gpu(
                    name="Model",
                    body="class {}:\n    def setup(self): ...\n\n    def go(self, text: str) -> str: ...",
                )
            ),
            app(llm()),
            app(api()),
            app(
                '@embedding_endpoint(name="e", gpu="L4", execution_timeout_ms=9_000, weights=Weights("o/m"))\n'
                "async def e(texts: list[str], embed) -> list: ..."
            ),
        ),
    ),
    "FK502": Case(
        broken=(
            app(cpu(body="async def {}(text: str) -> str:\n    time.sleep(1)\n    return text")),
            app(
                "from time import sleep as wait",
                "async def slow() -> None:\n    wait(1)",
                cpu(body="async def {}(text: str) -> str:\n    await slow()\n    return text"),
            ),
            app(
                "import tools",
                cpu(body="async def {}(text: str) -> str:\n    return await tools.fetch(text)"),
                tools="import urllib.request as web\n\n\nasync def fetch(url: str) -> str:\n"
                "    return web.urlopen(url).read()\n",
            ),
            app(
                "from tools import Fetcher",
                gpu(
                    name="Model",
                    body="class {}:\n    async def run(self, text: str) -> str:\n"
                    "        return await Fetcher().fetch(text)",
                ),
                tools="import subprocess\n\n\nclass Fetcher:\n    async def fetch(self, url: str) -> str:\n"
                "        return subprocess.check_output(['curl', url])\n",
            ),
        ),
        fine=(
            app(cpu(body="def {}(text: str) -> str:\n    time.sleep(1)\n    return text")),
            app(
                cpu(body="async def {}(text: str) -> str:\n    await asyncio.to_thread(time.sleep, 1)\n    return text")
            ),
            app(
                cpu(
                    body="async def {}(text: str) -> str:\n    def work() -> None:\n        time.sleep(1)\n\n"
                    "    await asyncio.to_thread(work)\n    return text"
                )
            ),
            app(
                "def unused() -> None:\n    time.sleep(1)", cpu(body="async def {}(text: str) -> str:\n    return text")
            ),
        ),
    ),
    "FK503": Case(
        broken=(
            app(cpu(body="async def {}(text: str) -> str:\n    await asyncio.sleep(1)\n    return text")),
            app(
                "async def wait() -> None:\n    await asyncio.sleep(1)",
                cpu(body="async def {}(text: str) -> str:\n    return str(wait())"),
            ),
        ),
        fine=(
            app(
                cpu(concurrency=8, body="async def {}(text: str) -> str:\n    await asyncio.sleep(1)\n    return text")
            ),
            app(cpu(body="async def {}(text: str) -> str:\n    return text")),
            app(cpu()),
            app(api()),
        ),
    ),
    "FK504": Case(
        broken=(app(cpu(concurrency=64)),),
        fine=(
            app(cpu(concurrency=16)),
            app(cpu(concurrency=64, body="async def {}(text: str) -> str:\n    return text")),
            app(api()),  # 32 requests by default
        ),
    ),
    "FK505": Case(
        broken=(
            app(cpu(body="def {}(data: bytes) -> str:\n    return ''")),
            app(cpu(body="def {}(name: str) -> bytes:\n    return b''")),
            app(
                "from dataclasses import dataclass",
                "@dataclass\nclass Page:\n    data: bytes",
                cpu(body="def {}(page: Page) -> str:\n    return ''"),
            ),
            app(api() + '\n\n\n@api.post("/items")\ndef add(data: "list[bytes]") -> int:\n    return 1'),
        ),
        fine=(app(cpu()), app(api()), app(llm())),
    ),
    "FK506": Case(
        broken=(app(api()),),
        fine=(
            app(api(health=True)),
            app(cpu()),
            app(api() + "\n\n\ndef is_fit() -> bool:\n    return True\n\n\napi.health(is_fit)"),
        ),
    ),
    "FK507": Case(
        broken=(
            app(api(env={"HEALTH_CHECK_PATH": "/healthz"})),
            app(api(), dockerfile="FROM a:1\nENV HEALTH_CHECK_PATH=/healthz\n"),
        ),
        fine=(
            app(api(env={"HEALTH_CHECK_PATH": "/items"})),
            app(api(env={"HEALTH_CHECK_PATH": "/ping"})),
            app(api()),
            app(cpu(env={"HEALTH_CHECK_PATH": "/healthz"})),
            app(
                api(env={"HEALTH_CHECK_PATH": "/healthz"})
                + "\n\n\nasync def other(scope, receive, send): ...\n\n\napi.mount(other)"
            ),
        ),
    ),
}

"""`with_engine`: an app's endpoints on scripted models."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flashkit import LLM, VLLM, DefinitionError, Embedding, ScriptedLLM, Weights, cpu_endpoint, gpu_endpoint
from flashkit.testing import LocalWorker, with_engine

MODEL = VLLM(Weights("organisation/model"))
llm = gpu_endpoint(name="llm", gpu="A100", workers=(1, 2), engine=MODEL)


@gpu_endpoint(name="tell", gpu="A100", engine=MODEL)
async def tell(topic: str, engine: LLM) -> str:
    return (await engine.chat(topic)).text


@cpu_endpoint(name="tool")
def tool() -> int:
    return 1


async def test_a_handler_runs_on_the_scripted_model():
    scripted = with_engine(tell, ScriptedLLM({"it": "So it is."}))
    async with LocalWorker(scripted) as worker:
        assert (await worker.run({"topic": "it"})).result() == "So it is."
    assert await scripted.local("it") == "So it is."


async def test_an_endpoint_that_is_its_engine_keeps_everything_else():
    scripted = with_engine(llm, ScriptedLLM("Hello."))
    assert (scripted.name, scripted.spec.workers, scripted.spec.gpu) == (llm.name, llm.spec.workers, llm.spec.gpu)
    assert llm.spec.engine == MODEL
    assert (await scripted.local(prompt="hi"))["choices"][0]["text"] == "Hello."


def test_what_has_no_engine_gets_none():
    with pytest.raises(DefinitionError, match="'tool' has no engine"):
        with_engine(tool, ScriptedLLM("Hello."))


def test_an_engine_that_does_not_fit_is_refused():
    from flashkit import embedding_endpoint

    vectors = embedding_endpoint(name="vectors", gpu="L4", engine=Embedding(Weights("organisation/model")))
    with pytest.raises(DefinitionError, match="no embedding model"):
        with_engine(vectors, ScriptedLLM("Hello."))


def test_an_app_file_for_tests_needs_no_platform():
    script = "import sys; from flashkit.testing import with_engine; print({'starlette', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import flashkit.testing

    with pytest.raises(AttributeError, match="no attribute 'run_jobs'"):
        flashkit.testing.run_jobs  # noqa: B018

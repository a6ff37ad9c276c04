"""all-MiniLM-L6-v2 on the local platform: real workers, and the unmodified openai client."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

import numpy as np
import openai
import pytest

from flashkit import Client, JobFailed
from flashkit.settings import Settings
from flashkit.testing import LocalPlatform

APP = Path(__file__).with_name("embedding_app.py")
MODELS = Path(__file__).parents[2] / ".flashkit" / "models"
FOLDER = MODELS / "sentence-transformers" / "all-MiniLM-L6-v2"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = [
    "A session keeps its finished steps when a worker dies.",
    "Bees visit flowers for nectar, and carry pollen from one to the next.",
    "The queue hands a job to whichever worker asks first. " * 12,
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "sea",
]
pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model_folder() -> Path:
    if not (FOLDER / "model.safetensors").is_file():
        missing = "the model is not there: scripts/fetch_models"
        pytest.fail(missing) if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING") else pytest.skip(missing)
    pytest.importorskip("torch")
    return FOLDER


@pytest.fixture(scope="module")
def platform(model_folder):
    environ = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    with LocalPlatform(APP, environ={**environ, "FLASHKIT_WEIGHTS_DIR": str(MODELS)}) as platform:
        yield platform


@pytest.fixture(scope="module")
def expected(model_folder) -> np.ndarray:
    """What transformers gives: the mean of the last hidden states of each text alone, in float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), AutoModel.from_pretrained(model_folder).eval()
    rows = []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            vector = model(**tokens).last_hidden_state[0].mean(0).numpy()
        rows.append(vector / np.linalg.norm(vector))
    return np.stack(rows)


@pytest.fixture
async def client(platform):
    url = f"{platform.url}/v2/vectors/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="local", max_retries=0, timeout=200) as client:
        yield client


@pytest.fixture
async def flash(platform):
    async with Client(Settings(base_url=f"{platform.url}/v2")) as client:
        yield client


async def test_the_openai_client_gets_the_models_vectors(client, expected):
    answer = await client.embeddings.create(model=MODEL, input=TEXTS)  # asks for base64, and decodes it
    vectors = np.array([each.embedding for each in answer.data])
    assert (vectors * expected).sum(1).min() > 0.9999
    assert [each.index for each in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 100
    assert answer.model == MODEL


async def test_numbers_are_the_same_in_either_encoding(client):
    written = await client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    packed = await client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="base64")
    unpacked = [np.frombuffer(base64.b64decode(each.embedding), dtype="<f4") for each in packed.data]
    np.testing.assert_allclose([each.embedding for each in written.data], unpacked, atol=1e-3)


async def test_the_openai_client_lists_the_model(client):
    assert [model.id for model in (await client.models.list()).data] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_mistakes_have_openais_errors(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.embeddings.create(model="text-embedding-3-small", input="sea")
    with pytest.raises(openai.BadRequestError, match="the body has no 'input'"):
        await client.embeddings.create(model=MODEL, input=None)
    with pytest.raises(openai.BadRequestError, match="matryoshka"):
        await client.embeddings.create(model=MODEL, input="sea", dimensions=64)
    with pytest.raises(openai.BadRequestError, match=r"input\[1\] is NoneType None, not a text"):
        await client.embeddings.create(model=MODEL, input=["sea", None])


async def test_one_bad_job_of_16_fails_alone(flash):
    inputs = [{"input": "the sea"} for _ in range(15)]
    inputs.insert(5, {"input": ["the sea", 5]})
    jobs = [flash.endpoint("vectors").call(each, timeout=200) for each in inputs]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    failed = results.pop(5)
    assert isinstance(failed, JobFailed)
    assert "input[1] is int 5, not a text" in failed.report.message
    vectors = [result["data"][0]["embedding"] for result in results]
    np.testing.assert_allclose(vectors, [vectors[0]] * 15, atol=1e-3)


async def test_jobs_at_the_same_time_get_their_own_vectors(flash, expected):
    inputs = [{"input": text} for text in TEXTS * 13]
    results = await asyncio.gather(*(flash.endpoint("vectors").call(each, timeout=200) for each in inputs))
    vectors = np.array([result["data"][0]["embedding"] for result in results])
    assert (vectors * np.tile(expected, (13, 1))).sum(1).min() > 0.9999


async def test_a_handler_compares_queries_with_documents(flash):
    answer = await flash.endpoint("nearest").call({"query": "What do insects do?", "texts": TEXTS}, timeout=200)
    assert answer == TEXTS[1]


async def test_a_handler_learns_which_texts_were_cut(flash):
    answer = await flash.endpoint("counted").call({"texts": ["sea", "sea " * 400]}, timeout=200)
    assert answer == {"tokens": [3, 256], "truncated": [1]}


async def test_a_handlers_caller_is_told_which_text_is_wrong(flash):
    with pytest.raises(JobFailed, match=r"texts is empty"):
        await flash.endpoint("counted").call({"texts": []}, timeout=200)


async def test_an_endpoint_runs_in_this_process_too(model_folder, monkeypatch):
    from tests.engines.embedding_app import find_nearest, vectors

    monkeypatch.setenv("FLASHKIT_WEIGHTS_DIR", str(MODELS))
    assert await find_nearest.local(query="insects", texts=TEXTS) == TEXTS[1]
    answer = await vectors.local(input="sea")
    assert len(answer["data"][0]["embedding"]) == 384

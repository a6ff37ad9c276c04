"""Requests to an embedding engine: OpenAI's embeddings, ranking, and refusals in OpenAI's shape."""

import asyncio
import base64
import json

import numpy as np
import pytest

from flashkit import Embedding, EngineDied, EngineRefusal, InputError, Settings, Weights
from flashkit.worker.engines.answering import answer_job
from flashkit.worker.engines.embedding.engine import load_embedding
from flashkit.worker.engines.engine import EngineRequest
from flashkit.worker.phases import Phases
from tests.engines.encoders import HIDDEN, make_cross_encoder, make_encoder

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
async def encoder(tmp_path_factory):
    folder = make_encoder(tmp_path_factory.mktemp("encoder"), prompts={"query": "what ", "other": "red "})
    spec = Embedding(Weights("tests/tiny", path=str(folder)), dtype="float32", matryoshka=True)
    engine = await load_embedding(spec, Settings(), Phases())
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
async def ranker(tmp_path_factory):
    folder = make_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))
    spec = Embedding(Weights("tests/ranker", path=str(folder)), dtype="float32", served_model_name=["ranker", "best"])
    engine = await load_embedding(spec, Settings(), Phases())
    yield engine
    await engine.close()


async def ask(engine, path, body=None, method="POST"):
    response = await engine.open(EngineRequest(path, body, method))
    assert response.headers["content-type"] == "application/json"
    assert not response.is_stream
    answer = json.loads(await response.read())
    await response.close()
    return response.status, answer


async def test_a_text_is_answered_as_openai_does(encoder):
    status, answer = await ask(encoder, "/v1/embeddings", {"input": "sea stone", "model": "tests/tiny"})
    [expected] = await encoder.handle()(["sea stone"])
    vector = answer["data"][0].pop("embedding")
    assert status == 200
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}],
        "model": "tests/tiny",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    np.testing.assert_allclose(vector, expected, atol=1e-6)


async def test_a_list_of_texts_is_answered_in_order(encoder):
    _, answer = await ask(encoder, "/v1/embeddings", {"input": ["sea", "stone river"]})
    vectors = [each["embedding"] for each in answer["data"]]
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == 7
    np.testing.assert_allclose(vectors, await encoder.handle()(["sea", "stone river"]), atol=1e-6)


async def test_base64_has_the_same_numbers(encoder):
    body = {"input": ["sea", "stone river"], "encoding_format": "base64"}
    _, answer = await ask(encoder, "/v1/embeddings", body)
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), dtype="<f4") for each in answer["data"]]
    np.testing.assert_allclose(vectors, await encoder.handle()(["sea", "stone river"]), atol=1e-6)


async def test_tokens_are_taken_as_they_are(encoder):
    tokens = [int(token) for token in encoder.loaded.tokenizer.encode(["sea stone"])[0].ids]
    expected = await encoder.handle()(["sea stone"])
    for given in (tokens, [tokens, tokens]):
        _, answer = await ask(encoder, "/v1/embeddings", {"input": given})
        for each in answer["data"]:
            np.testing.assert_allclose(each["embedding"], expected[0], atol=2e-6)


async def test_fewer_dimensions_are_vectors_of_length_1(encoder):
    _, answer = await ask(encoder, "/v1/embeddings", {"input": "sea", "dimensions": 8})
    vector = answer["data"][0]["embedding"]
    assert len(vector) == 8
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


async def test_the_kind_of_input_chooses_the_prompt(encoder):
    whole = await encoder.handle()(["what sea", "red sea", "sea"])
    for kind, expected in (("query", whole[0]), ("other", whole[1]), ("document", whole[2])):
        _, answer = await ask(encoder, "/v1/embeddings", {"input": "sea", "input_type": kind})
        np.testing.assert_allclose(answer["data"][0]["embedding"], expected, atol=2e-6)


async def test_what_was_cut_off_is_told(encoder):
    _, answer = await ask(encoder, "/v1/embeddings", {"input": ["sea", "sea " * 100, list(range(5, 45))]})
    assert answer["truncated"] == [1, 2]
    assert answer["usage"]["prompt_tokens"] == 3 + 32 + 32


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/", "/v1/embeddings?x=1"])
async def test_routes_are_found_with_and_without_a_version(encoder, path):
    status, _ = await ask(encoder, path, {"input": "sea"})
    assert status == 200


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (None, 400, None, "not a JSON object"),
        ([], 400, None, "not a JSON object"),
        ({}, 400, "input", "the body has no 'input'"),
        ({"input": None}, 400, "input", "the body has no 'input'"),
        ({"input": []}, 400, "input", "neither a text nor a list"),
        ({"input": 5}, 400, "input", "neither a text nor a list"),
        ({"input": {"a": 1}}, 400, "input", "neither a text nor a list"),
        ({"input": ["sea", 5.5]}, 400, "input", "input[1] is float 5.5"),
        ({"input": ["sea", "\ud800"]}, 400, "input", "input[1] has half of a surrogate pair"),
        ({"input": [5, "sea"]}, 400, "input", "input[0] has the token 'sea'"),
        ({"input": [[5], []]}, 400, "input", "input[1] has no tokens"),
        ({"input": [5, 10**9]}, 400, "input", "input[0] has the token 1000000000"),
        ({"input": [-1]}, 400, "input", "input[0] has the token -1"),
        ({"input": "sea", "encoding_format": "hex"}, 400, "encoding_format", "'float' or 'base64'"),
        ({"input": "sea", "dimensions": 0}, 400, "dimensions", "dimensions is 0"),
        ({"input": "sea", "dimensions": 1000}, 400, "dimensions", "ask for 1 to 48"),
        ({"input": "sea", "input_type": "poem"}, 400, "input_type", "it may be document, other, query"),
        ({"input": "sea", "input_type": 5}, 400, "input_type", "it may be"),
        ({"input": "sea", "model": "gpt-5"}, 404, "model", "the model 'gpt-5' does not exist"),
    ],
)
async def test_a_mistake_of_the_callers_is_refused_in_openais_shape(encoder, body, status, param, words):
    found, answer = await ask(encoder, "/v1/embeddings", body)
    assert (found, answer["error"]["param"], answer["error"]["type"]) == (status, param, "invalid_request_error")
    assert words in answer["error"]["message"]
    assert answer["error"]["code"] == ("model_not_found" if status == 404 else None)


async def test_models_and_health(encoder, ranker):
    assert await ask(encoder, "/health", method="GET") == (200, {})
    _, listed = await ask(encoder, "/v1/models", method="GET")
    assert [(model["id"], model["max_model_len"]) for model in listed["data"]] == [("tests/tiny", 32)]
    _, listed = await ask(ranker, "/v1/models", method="GET")
    assert [(model["id"], model["root"]) for model in listed["data"]] == [
        ("ranker", "tests/ranker"),
        ("best", "tests/ranker"),
    ]
    status, model = await ask(encoder, "/v1/models/tests/tiny", method="GET")
    assert (status, model["id"]) == (200, "tests/tiny")
    status, _ = await ask(encoder, "/v1/models/other", method="GET")
    assert status == 404


async def test_routes_that_are_not_there_are_named(encoder):
    status, answer = await ask(encoder, "/v1/chat/completions", {"messages": []})
    assert status == 404
    assert "there are /v1/embeddings, /v1/models, /health" in answer["error"]["message"]
    status, answer = await ask(encoder, "/v1/embeddings", method="GET")
    assert status == 405
    assert "answers POST, not GET" in answer["error"]["message"]


DOCUMENTS = ["sea", "a worker takes jobs", "stone river light"]


async def test_documents_are_ranked_best_first(ranker):
    body = {"query": "what does it cost", "documents": DOCUMENTS, "model": "best"}
    status, answer = await ask(ranker, "/v1/rerank", body)
    scores = await ranker.handle().rerank("what does it cost", DOCUMENTS)
    order = np.argsort(-scores).tolist()
    assert status == 200
    assert [result["index"] for result in answer["results"]] == order
    assert [result["document"]["text"] for result in answer["results"]] == [DOCUMENTS[index] for index in order]
    assert answer["results"][0]["relevance_score"] == pytest.approx(float(scores[order[0]]), abs=1e-5)
    assert answer["model"] == "best"
    assert answer["usage"]["prompt_tokens"] > 0


async def test_the_best_few_without_their_texts(ranker):
    documents = [{"text": text} for text in DOCUMENTS]
    body = {"query": "sea", "documents": documents, "top_n": 1, "return_documents": False}
    _, answer = await ask(ranker, "/v2/rerank", body)
    assert len(answer["results"]) == 1
    assert set(answer["results"][0]) == {"index", "relevance_score"}


async def test_pairs_are_scored_in_order(ranker):
    scores = await ranker.handle().rerank("sea", DOCUMENTS)
    _, answer = await ask(ranker, "/v1/score", {"text_1": "sea", "text_2": DOCUMENTS})
    assert [each["score"] for each in answer["data"]] == pytest.approx(scores.tolist(), abs=1e-5)
    _, answer = await ask(ranker, "/v1/score", {"text_1": ["sea"] * 3, "text_2": DOCUMENTS})
    assert [each["score"] for each in answer["data"]] == pytest.approx(scores.tolist(), abs=1e-5)
    _, answer = await ask(ranker, "/score", {"text_1": "sea", "text_2": "stone " * 200})
    assert answer["truncated"] == [0]


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/rerank", {"query": "sea"}, "documents", "the body has no 'documents'"),
        ("/v1/rerank", {"documents": ["sea"]}, "query", "the body has no 'query'"),
        ("/v1/rerank", {"query": 5, "documents": ["sea"]}, "query", "query is int 5"),
        ("/v1/rerank", {"query": "sea", "documents": "sea"}, "documents", "not a list of texts"),
        ("/v1/rerank", {"query": "sea", "documents": ["sea", {}]}, "documents", "documents[1] is NoneType"),
        ("/v1/rerank", {"query": "sea", "documents": ["sea"], "top_n": -1}, "top_n", "top_n is -1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1", "send one, or as many"),
        ("/v1/embeddings", {"input": "sea"}, None, "it makes no vectors"),
    ],
)
async def test_mistakes_with_a_ranker_are_refused(ranker, path, body, param, words):
    status, answer = await ask(ranker, path, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert words in answer["error"]["message"]


async def test_an_encoder_does_not_rank(encoder):
    status, answer = await ask(encoder, "/v1/rerank", {"query": "sea", "documents": ["sea"]})
    assert status == 400
    assert "it does not rank" in answer["error"]["message"]


async def test_jobs_of_every_shape_are_answered(encoder, ranker):
    shapes = [
        {"input": "sea"},
        {"input": ["sea"], "encoding_format": "float"},
        {"openai_route": "/v1/embeddings", "openai_input": {"input": "sea"}},
        {"route": "/v1/embeddings", "body": {"input": "sea"}},
    ]
    answers = [await answer_job(encoder, shape, job_id="j") for shape in shapes]
    vectors = [json.loads(answer.whole)["data"][0]["embedding"] for answer in answers]
    assert all(len(vector) == HIDDEN for vector in vectors)
    answer = await answer_job(ranker, {"query": "sea", "documents": DOCUMENTS}, job_id="j")
    assert len(json.loads(answer.whole)["results"]) == 3
    answer = await answer_job(ranker, {"text_1": "sea", "text_2": "stone"}, job_id="j")
    assert len(json.loads(answer.whole)["data"]) == 1
    with pytest.raises(InputError, match="names no request"):
        await answer_job(encoder, {"texts": ["sea"]}, job_id="j")
    with pytest.raises(EngineRefusal, match="HTTP 400"):
        await answer_job(encoder, {"input": []}, job_id="j")


async def test_a_failure_of_the_model_is_a_500_and_its_death_is_no_answer(tmp_path):
    spec = Embedding(Weights("tests/tiny", path=str(make_encoder(tmp_path))))
    engine = await load_embedding(spec, Settings(), Phases())
    messages = ["the model is confused"]

    def fail(module, arguments, named):
        if messages:
            raise RuntimeError(messages[0])

    engine.loaded.model.encoder.register_forward_pre_hook(fail, with_kwargs=True)
    status, answer = await ask(engine, "/v1/embeddings", {"input": "sea"})
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert "the model is confused" in answer["error"]["message"]
    messages[0] = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(EngineDied):
        await engine.open(EngineRequest("/v1/embeddings", {"input": "sea"}))
    await engine.close()


async def test_a_request_that_is_given_up_takes_its_texts_out(encoder):
    body = {"input": ["sea"] * 5_000}
    opening = asyncio.create_task(encoder.open(EngineRequest("/v1/embeddings", body)))
    while not encoder.is_busy:
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert not encoder.is_busy

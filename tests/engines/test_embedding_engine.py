"""The embedding engine on small models with random weights: what comes out, and what one caller does to the others."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashkit import Embed, Embedding, EngineDied, EngineError, InputError, Settings, Weights
from flashkit.errors import ConfigurationError
from flashkit.spec import EngineSpec
from flashkit.worker.engines.embedding import engine as engine_module
from flashkit.worker.engines.embedding import loading
from flashkit.worker.engines.embedding.engine import EmbeddingEngine, load_embedding
from flashkit.worker.machine import cpu_quota, usable_cpus
from flashkit.worker.phases import Phases
from tests.engines.encoders import HIDDEN, make_cross_encoder, make_decoder, make_encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Load = Callable[..., Awaitable[EmbeddingEngine]]
TEXTS = [
    "a worker takes jobs from the queue",
    "sea",
    "what does it cost",
    "zebra apple quiet loud red blue green seven eleven large small first last",
    "the river and the light of the night",
]
WHOLE = {"dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def cross_folder(tmp_path_factory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture
async def load() -> AsyncIterator[Load]:
    async with AsyncExitStack() as stack:

        async def load_one(path: Path, **options: Any) -> EmbeddingEngine:
            spec = Embedding(Weights("tests/model", path=str(path)), **options)
            engine = await load_embedding(spec, Settings(), Phases())
            stack.push_async_callback(engine.close)
            return engine

        yield load_one


def expected_states(path: Path, text: str) -> Any:
    """Return the last hidden states that transformers gives for one text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()
    tokens = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
    with torch.inference_mode():
        return model(**tokens).last_hidden_state[0].float().numpy()


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


# What comes out


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", lambda states: states.mean(0)),
        ("cls", lambda states: states[0]),
        ("last", lambda states: states[-1]),
        ("max", lambda states: states.max(0)),
    ],
)
async def test_vectors_are_what_transformers_gives_pooled_as_the_folder_says(load, tmp_path, pooling, expected):
    path = make_encoder(tmp_path, pooling=pooling)
    embed = (await load(path, **WHOLE)).handle()
    vectors = await embed(TEXTS)  # padded, of several lengths
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, unit(expected(expected_states(path, text))), atol=2e-6)


async def test_the_declaration_goes_before_the_folder(load, folder):
    embed = (await load(folder, pooling="cls", normalize=False, **WHOLE)).handle()
    [vector] = await embed([TEXTS[0]])
    np.testing.assert_allclose(vector, expected_states(folder, TEXTS[0])[0], atol=1e-5)


async def test_a_plain_encoder_is_served_with_the_mean(load, tmp_path):
    path = make_encoder(tmp_path, pooling=None)
    [vector] = await (await load(path, **WHOLE)).handle()([TEXTS[0]])
    np.testing.assert_allclose(vector, unit(expected_states(path, TEXTS[0]).mean(0)), atol=2e-6)


async def test_a_decoder_is_served_with_its_last_token_whatever_is_beside_it(load, tmp_path):
    path = make_decoder(tmp_path)
    embed = (await load(path, pooling="last", **WHOLE)).handle()
    for text, vector in zip(TEXTS, await embed(TEXTS), strict=True):
        np.testing.assert_allclose(vector, unit(expected_states(path, text)[-1]), atol=5e-6)


async def test_dense_layers_come_after_pooling(load, tmp_path):
    from safetensors.numpy import load_file

    path = make_encoder(tmp_path, dense=[(HIDDEN, 24, "Tanh"), (24, 8, "Identity")])
    embed = (await load(path, **WHOLE)).handle()
    [vector] = await embed([TEXTS[0]])
    first, second = (load_file(path / name / "model.safetensors") for name in ("2_Dense", "3_Dense"))
    pooled = expected_states(path, TEXTS[0]).mean(0)
    inner = np.tanh(first["linear.weight"] @ pooled + first["linear.bias"])
    assert embed.dimensions == 8
    np.testing.assert_allclose(vector, unit(second["linear.weight"] @ inner + second["linear.bias"]), atol=1e-5)


async def test_dense_layers_in_torchs_older_format_are_read(load, tmp_path):
    from safetensors.torch import load_file

    path = make_encoder(tmp_path, dense=[(HIDDEN, 8, "Identity")])
    [expected] = await (await load(path, **WHOLE)).handle()([TEXTS[0]])
    torch.save(load_file(path / "2_Dense" / "model.safetensors"), path / "2_Dense" / "pytorch_model.bin")
    (path / "2_Dense" / "model.safetensors").unlink()
    [vector] = await (await load(path, **WHOLE)).handle()([TEXTS[0]])
    np.testing.assert_allclose(vector, expected, atol=1e-6)


async def test_it_does_not_matter_in_which_batch_a_text_is(load, folder):
    engine = await load(folder, max_batch_tokens=64, **WHOLE)
    embed = engine.handle()
    alone = [(await embed([text]))[0] for text in TEXTS]
    together = await embed(TEXTS)
    side_by_side = np.concatenate(await asyncio.gather(*(embed([text]) for text in TEXTS)))
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(side_by_side, alone, atol=2e-6)


async def test_prompts_go_before_queries_and_documents(load, tmp_path):
    path = make_encoder(tmp_path, prompts={"query": "what ", "passage": "the "})
    embed = (await load(path, **WHOLE)).handle()
    plain = await embed(["what sea", "the sea", "sea"])
    assert embed.prompts == {"query": "what ", "passage": "the "}
    np.testing.assert_allclose(await embed.queries(["sea"]), plain[:1], atol=2e-6)
    np.testing.assert_allclose(await embed.documents(["sea"]), plain[1:2], atol=2e-6)
    np.testing.assert_allclose((await embed.encode(["sea"], prompt="")).vectors, plain[2:], atol=2e-6)


async def test_a_model_may_have_a_default_prompt_and_the_declaration_others(load, tmp_path):
    path = make_encoder(tmp_path, prompts={"query": "what ", "plain": "the "}, default_prompt_name="plain")
    embed = (await load(path, query_prompt="red ", **WHOLE)).handle()
    vectors = (await embed.encode(["the sea", "red sea"], prompt="")).vectors
    np.testing.assert_allclose(await embed(["sea"]), vectors[:1], atol=2e-6)
    np.testing.assert_allclose(await embed.queries(["sea"]), vectors[1:], atol=2e-6)


async def test_what_was_cut_off_is_told(load, folder):
    embed = (await load(folder)).handle()
    long = "sea " * 100
    embedded = await embed.encode(["sea", long, "stone"])
    assert embed.max_length == 32
    assert embedded.tokens == (3, 32, 3)
    assert embedded.truncated == (1,)
    np.testing.assert_allclose(embedded.vectors[1], (await embed(["sea " * 30]))[0], atol=1e-3)


async def test_texts_that_are_too_long_are_refused_where_that_is_declared(load, folder):
    embed = (await load(folder, too_long="refuse")).handle()
    with pytest.raises(InputError, match="text 1 has 102 tokens, and the model reads 32") as raised:
        await embed(["sea", "sea " * 100])
    assert raised.value.report.details == {"tokens": 102, "max_length": 32, "index": 1}
    assert (await embed(["sea " * 30])).shape == (1, HIDDEN)


async def test_fewer_dimensions_for_models_that_are_made_for_them(load, folder):
    embed = (await load(folder, matryoshka=True, **WHOLE)).handle()
    whole = await embed(TEXTS)
    short = await embed(TEXTS, dimensions=8)
    assert short.shape == (5, 8)
    np.testing.assert_allclose(short, [unit(vector[:8]) for vector in whole], atol=1e-6)
    np.testing.assert_allclose(await embed(TEXTS, dimensions=HIDDEN), whole, atol=1e-6)
    raw = (await load(folder, matryoshka=True, normalize=False, **WHOLE)).handle()
    np.testing.assert_allclose(await raw(TEXTS, dimensions=8), (await raw(TEXTS))[:, :8], atol=1e-5)


@pytest.mark.parametrize("dimensions", [0, 49, -1, True, "8", 8.0])
async def test_dimensions_that_make_no_sense_are_refused(load, folder, dimensions):
    embed = (await load(folder, matryoshka=True)).handle()
    with pytest.raises(InputError, match="vectors have 48 numbers"):
        await embed(TEXTS, dimensions=dimensions)


async def test_other_models_refuse_fewer_dimensions(load, folder):
    embed = (await load(folder)).handle()
    with pytest.raises(InputError, match="matryoshka=True"):
        await embed(TEXTS, dimensions=8)


async def test_an_empty_text_has_the_vector_of_the_models_own_marks(load, folder):
    embed = (await load(folder, **WHOLE)).handle()
    [vector] = await embed([""])
    np.testing.assert_allclose(vector, unit(expected_states(folder, "").mean(0)), atol=2e-6)


async def test_a_text_without_any_token_is_refused(load, tmp_path):
    from tokenizers import Tokenizer

    path = make_encoder(tmp_path)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    bare = Tokenizer(tokenizer.model)
    bare.pre_tokenizer, bare.normalizer = tokenizer.pre_tokenizer, tokenizer.normalizer
    bare.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}')
    embed = (await load(path)).handle()
    with pytest.raises(InputError, match="text 1 has no tokens"):
        await embed(["sea", ""])


# Ranking


async def test_a_cross_encoder_ranks_documents(load, cross_folder):
    embed = (await load(cross_folder, **WHOLE)).handle()
    scores = await embed.rerank("what does it cost", TEXTS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(cross_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(cross_folder)
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            logits = model(**tokenizer("what does it cost", text, return_tensors="pt")).logits
        expected.append(torch.sigmoid(logits).item())
    assert embed.is_cross_encoder
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)


async def test_scores_go_through_the_function_that_the_model_names(load, tmp_path, cross_folder):
    raw = make_cross_encoder(tmp_path, activation="linear.Identity")
    scores = await (await load(raw, **WHOLE)).handle().rerank("sea", TEXTS)
    squeezed = await (await load(cross_folder, **WHOLE)).handle().rerank("sea", TEXTS)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), squeezed, atol=1e-5)


async def test_a_cross_encoder_makes_no_vectors_and_an_encoder_does_not_rank(load, folder, cross_folder):
    with pytest.raises(InputError, match=r"ranks documents, it makes no vectors"):
        await (await load(cross_folder)).handle()(TEXTS)
    with pytest.raises(InputError, match=r"makes vectors, it does not rank"):
        await (await load(folder)).handle().rerank("sea", TEXTS)


# Precision


async def test_half_precision_is_used_by_itself_only_where_vectors_stay_the_same(load, folder, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "flashkit")
    half = loading._native_half("cpu")
    engine = await load(folder)
    assert engine.loaded.model.dtype == (half or "float32")
    monkeypatch.setattr(loading, "LEAST_COSINE", 1.1)  # no model passes
    engine = await load(folder)
    whole = await (await load(folder, **WHOLE)).handle()(TEXTS)
    assert engine.loaded.model.dtype == "float32"
    assert half is None or "in bfloat16 it gives other vectors" in caplog.text
    np.testing.assert_allclose(await engine.handle()(TEXTS), whole, atol=1e-6)


async def test_scores_are_compared_too(load, cross_folder, monkeypatch):
    assert (await load(cross_folder)).loaded.model.dtype == (loading._native_half("cpu") or "float32")
    monkeypatch.setattr(loading, "LARGEST_SCORE_CHANGE", -1.0)
    assert (await load(cross_folder)).loaded.model.dtype == "float32"


async def test_a_precision_that_is_declared_is_used(load, folder):
    whole = await (await load(folder, **WHOLE)).handle()(TEXTS)
    engine = await load(folder, dtype="bfloat16")
    vectors = await engine.handle()(TEXTS)
    assert engine.loaded.model.dtype == "bfloat16"
    assert (vectors != whole).any()
    assert (vectors * whole).sum(1).min() > 0.999


async def test_weights_that_are_stored_in_half_precision_are_served(load, tmp_path):
    path = make_encoder(tmp_path)
    transformers.AutoModel.from_pretrained(path).bfloat16().save_pretrained(path)
    vectors = await (await load(path)).handle()(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector @ unit(expected_states(path, text).mean(0)) > 0.999


async def test_numbers_that_are_none_are_the_failure_of_their_text_alone(load, folder):
    engine = await load(folder)
    poison_text(engine, "zebra", nan=True)
    embed = engine.handle()
    results = await asyncio.gather(*(embed([text]) for text in TEXTS), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ndarray"] * 3 + ["EngineError", "ndarray"]
    assert "gave no number for text 0" in str(results[3])


# One caller and the others


def poison_text(engine: EmbeddingEngine, word: str, *, nan: bool = False) -> None:
    """Make the model fail on every batch with this word in it, as models do on tokens that they cannot take."""
    model = engine.loaded.model
    bad = engine.loaded.tokenizer.encode([word])[0].ids[1]

    def fail(module: Any, arguments: Any, named: Any, output: Any) -> Any:
        ids, states = named["input_ids"], output.last_hidden_state
        if not (ids == bad).any():
            return None
        if not nan:
            raise RuntimeError("index out of range in self")
        for start, stop in named["spans"]:
            if (ids[0, start:stop] == bad).any():
                states[0, start:stop] = float("nan")
        return output

    model.encoder.register_forward_hook(fail, with_kwargs=True)


async def test_one_bad_text_of_16_fails_alone(load, folder):
    engine = await load(folder)
    poison_text(engine, "zebra")
    embed = engine.handle()
    texts = ["sea and stone"] * 15
    texts.insert(7, "red zebra")
    good = await embed(["sea and stone"])
    results = await asyncio.gather(*(embed([text]) for text in texts), return_exceptions=True)
    failed = results.pop(7)
    assert isinstance(failed, EngineError)
    assert "the model failed on text 0, of 4 tokens: RuntimeError" in str(failed)
    for result in results:
        np.testing.assert_allclose(result, good, atol=1e-3)


async def test_a_callers_bad_text_is_named(load, folder):
    engine = await load(folder)
    poison_text(engine, "zebra")
    with pytest.raises(EngineError) as raised:
        await engine.handle()(["sea", "stone", "zebra"])
    assert raised.value.report.details["index"] == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", r"texts is str 'one text', not a list of texts"),
        ([], r"texts is empty"),
        (None, r"texts is NoneType None"),
        ({"a": 1}, r"texts is dict"),
        (["sea", 5], r"texts\[1\] is int 5, not a text"),
        (["sea", None], r"texts\[1\] is NoneType None"),
        (["sea", b"sea"], r"texts\[1\] is bytes"),
        (["sea", ["x" * 100]], r"texts\[1\] is list \['x{38}…, not a text"),
        (["sea", "cut \ud83d"], r"texts\[1\] has half of a surrogate pair at character 4"),
    ],
)
async def test_what_is_no_text_is_refused_by_name_and_nobody_else_notices(load, folder, texts, message):
    embed = (await load(folder)).handle()
    bad, good = await asyncio.gather(embed(texts), embed(["sea"]), return_exceptions=True)
    assert isinstance(bad, InputError)
    with pytest.raises(InputError, match=message):
        raise bad
    assert good.shape == (1, HIDDEN)


async def test_an_array_and_a_tuple_of_texts_are_lists_too(load, folder):
    embed = (await load(folder, **WHOLE)).handle()
    listed = await embed(["sea", "stone"])
    np.testing.assert_allclose(await embed(("sea", "stone")), listed, atol=1e-6)


async def test_too_little_memory_halves_the_batch_and_later_ones(load, folder):
    engine = await load(folder, max_batch_tokens=512)
    largest = limit_memory(engine, tokens=100)
    embed = engine.handle()
    vectors = await embed(["sea stone river"] * 40)  # 5 tokens each
    assert vectors.shape == (40, HIDDEN)
    assert engine._pipeline.batch_tokens == 100
    largest.clear()
    await embed(["sea stone river"] * 40)
    assert max(largest) <= 100


async def test_what_fitted_is_counted_as_it_was_computed(load, folder):
    engine = await load(folder, max_batch_tokens=512)
    tried = limit_memory(engine, tokens=90)
    texts = ["sea stone river"] * 30 + ["sea"] * 10  # 5 and 3 tokens
    await engine.handle()(texts)
    assert tried == [180, 80, 100, 50, 50]
    assert engine._pipeline.batch_tokens == 80


async def test_a_text_that_is_too_large_for_the_memory_fails_alone(load, folder):
    engine = await load(folder)
    limit_memory(engine, tokens=10)
    embed = engine.handle()
    large, small = await asyncio.gather(embed(["sea " * 20]), embed(["sea"]), return_exceptions=True)
    assert isinstance(large, EngineError)
    assert "OutOfMemoryError" in str(large)
    assert small.shape == (1, HIDDEN)


def limit_memory(engine: EmbeddingEngine, *, tokens: int) -> list[int]:
    """Let the model run out of memory with larger batches, as a GPU does; returns the sizes that were tried."""
    tried: list[int] = []

    def refuse(module: Any, arguments: Any, named: Any) -> None:
        tried.append(named["input_ids"].numel())
        if tried[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine.loaded.model.encoder.register_forward_pre_hook(refuse, with_kwargs=True)
    return tried


async def test_a_failure_of_the_gpu_is_the_end_for_everybody(load, folder):
    engine = await load(folder)

    def fail(module: Any, arguments: Any, named: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine.loaded.model.encoder.register_forward_pre_hook(fail, with_kwargs=True)
    embed = engine.handle()
    results = await asyncio.gather(*(embed([text]) for text in TEXTS), return_exceptions=True)
    assert all(isinstance(result, EngineDied) for result in results)
    assert all(result.report.details["retryable"] for result in results)
    with pytest.raises(EngineDied, match="device-side assert"):
        await engine.check()
    with pytest.raises(EngineDied):
        await embed(["sea"])
    assert not engine.is_busy


async def test_a_tokenizer_that_breaks_is_the_end_too(load, folder):
    engine = await load(folder)
    object.__setattr__(engine.loaded.tokenizer, "backend", None)
    with pytest.raises(EngineDied, match="the engine failed: AttributeError"):
        await engine.handle()(["sea"])


# Together


def slow_down(engine: EmbeddingEngine, seconds: float) -> list[int]:
    """Let every batch take this long; returns how many texts each one had."""
    sizes: list[int] = []

    def wait(module: Any, arguments: Any, named: Any) -> None:
        sizes.append(len(named["spans"] if "spans" in named else named["input_ids"]))
        time.sleep(seconds)

    engine.loaded.model.encoder.register_forward_pre_hook(wait, with_kwargs=True)
    return sizes


async def test_callers_of_one_turn_of_the_loop_share_a_batch(load, folder):
    engine = await load(folder)
    sizes = slow_down(engine, 0.01)
    await asyncio.gather(*(engine.handle()([text]) for text in ["sea stone"] * 20))
    assert sizes == [20]


async def test_what_comes_while_a_batch_runs_is_in_the_next_one(load, folder):
    engine = await load(folder)
    sizes = slow_down(engine, 0.2)
    embed = engine.handle()
    first = asyncio.create_task(embed(["sea"]))
    while not sizes:
        await asyncio.sleep(0.01)
    await asyncio.gather(first, *(embed(["sea"]) for _ in range(10)))
    assert sizes == [1, 10]


async def test_a_single_text_overtakes_a_job_of_thousands(load, folder):
    engine = await load(folder, max_batch_tokens=64)
    slow_down(engine, 0.005)
    embed = engine.handle()
    large = asyncio.create_task(embed(["sea stone river"] * 2_000))
    await asyncio.sleep(0.05)
    for _ in range(5):
        assert (await embed(["sea"])).shape == (1, HIDDEN)
    assert not large.done()
    assert engine.room == 0  # others may take further jobs
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    assert engine.room == 64


async def test_a_cancelled_job_takes_its_texts_out(load, folder):
    engine = await load(folder, max_batch_tokens=64)
    sizes = slow_down(engine, 0.02)
    embed = engine.handle()
    gone = asyncio.create_task(embed(["sea stone"] * 2_000))
    await asyncio.sleep(0.1)
    gone.cancel()
    await asyncio.wait([gone])
    ran = sum(sizes)
    assert (await embed(["sea"])).shape == (1, HIDDEN)
    assert sum(sizes) - ran <= 2 * 16 + 1  # the batch that ran, and the one that was handed over
    assert not engine.is_busy


async def test_closing_fails_whoever_waits(load, folder):
    engine = await load(folder)
    slow_down(engine, 0.1)
    waiting = asyncio.create_task(engine.handle()(["sea"]))
    await asyncio.sleep(0.02)
    await engine.close()
    with pytest.raises(EngineDied, match="the engine was closed"):
        await waiting
    await engine.close()  # twice is no mistake


async def test_a_start_that_is_broken_off_leaves_no_thread(folder, monkeypatch):
    load, began, go_on = engine_module._load, threading.Event(), threading.Event()

    def load_slowly(*parts):
        began.set()
        go_on.wait(30)
        return load(*parts)

    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("embedding-model")}

    monkeypatch.setattr(engine_module, "_load", load_slowly)
    before = threads()
    spec = Embedding(Weights("tests/model", path=str(folder)))
    starting = asyncio.create_task(load_embedding(spec, Settings(), Phases()))
    await asyncio.to_thread(began.wait, 30)
    assert len(threads() - before) == 1
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    go_on.set()
    for thread in threads() - before:
        await asyncio.to_thread(thread.join, 30)
    assert threads() <= before


async def test_progress_is_counted(load, folder):
    engine = await load(folder)
    assert (engine.progress, engine.is_busy) == (0, False)
    await engine.handle()(["sea", "stone river"])
    assert engine.progress == 1
    assert (engine.work.texts, engine.work.tokens, engine.work.padded_tokens) == (2, 7, 7)
    await engine.check()


async def test_padding_is_counted_where_there_is_some(load, cross_folder):
    engine = await load(cross_folder)
    await engine.handle().rerank("sea", ["sea", "stone river"])
    assert (engine.work.texts, engine.work.tokens, engine.work.padded_tokens) == (2, 11, 12)


async def test_warm_up_runs_short_and_long_texts_and_those_declared(load, folder, cross_folder):
    engine = await load(folder)
    sizes = slow_down(engine, 0.0)
    await engine.warm_up()
    assert sizes == [1, 1, 64, 4]
    engine = await load(folder, warmup=["sea", "stone"])
    sizes = slow_down(engine, 0.0)
    await engine.warm_up()
    assert sizes == [1, 1, 64, 4, 2]
    engine = await load(folder, warmup=[])
    await engine.warm_up()
    assert engine.progress == 0
    engine = await load(cross_folder)
    await engine.warm_up()
    assert engine.progress


@pytest.mark.timeout(300)  # it runs a C++ compiler
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
async def test_a_compiled_model_gives_the_same_vectors(load, folder):
    whole = await (await load(folder, **WHOLE)).handle()(TEXTS)
    engine = await load(folder, compile=True, **WHOLE)
    np.testing.assert_allclose(await engine.handle()(TEXTS), whole, atol=1e-5)


async def test_a_model_that_cannot_be_compiled_is_served_all_the_same(load, folder, caplog):
    engine = await load(folder, **WHOLE)
    whole = await engine.handle()(TEXTS)

    def no_compiler(**inputs: Any) -> None:
        raise RuntimeError("no C++ compiler was found")

    engine.loaded.model.compiled = no_compiler
    np.testing.assert_allclose(await engine.handle()(TEXTS), whole, atol=1e-6)
    assert engine.loaded.model.compiled is None
    assert "used no more: RuntimeError: no C++ compiler was found" in caplog.text


async def test_a_text_that_every_model_fails_on_does_not_end_the_compiled_one(load, folder):
    engine = await load(folder, **WHOLE)
    poison_text(engine, "zebra")
    compiled = engine.loaded.model.compiled = engine.loaded.model.encoder
    with pytest.raises(EngineError):
        await engine.handle()(["zebra"])
    assert engine.loaded.model.compiled is compiled
    limit_memory(engine, tokens=2)
    with pytest.raises(EngineError, match="OutOfMemoryError"):
        await engine.handle()(["sea"])
    assert engine.loaded.model.compiled is compiled


# What cannot be loaded


async def test_a_folder_that_is_no_model_says_so(load, tmp_path):
    path = make_encoder(tmp_path, pooling=None)
    (path / "config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        await load(path)


async def test_weights_that_do_not_fit_the_model_say_so(load, tmp_path):
    import json

    path = make_encoder(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        await load(path)


async def test_a_weights_file_that_is_none_says_so(load, tmp_path):
    path = make_encoder(tmp_path, dense=[(HIDDEN, 8, "Identity")])
    (path / "2_Dense" / "model.safetensors").unlink()
    (path / "2_Dense" / "pytorch_model.bin").write_bytes(b"\xff" * 64)
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        await load(path)


async def test_a_model_with_weights_missing_is_not_filled_up_with_random_ones(load, tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_encoder(tmp_path)
    weights = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"have no encoder\.layer\.1\..*, …"):
        await load(path)


async def test_an_encoder_is_not_taken_for_a_cross_encoder_without_its_head(load, tmp_path):
    import json

    path = make_encoder(tmp_path, pooling=None)
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="have no classifier"):
        await load(path)


async def test_weights_that_no_vector_needs_may_be_missing(load, tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_encoder(tmp_path)
    [expected] = await (await load(path, **WHOLE)).handle()(["sea"])
    weights = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    [vector] = await (await load(path, **WHOLE)).handle()(["sea"])
    np.testing.assert_allclose(vector, expected, atol=1e-6)


async def test_a_dense_layer_without_its_weights_says_so(load, tmp_path):
    path = make_encoder(tmp_path, dense=[(HIDDEN, 8, "Identity")])
    (path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        await load(path)


async def test_a_missing_tokenizer_says_so(load, tmp_path):
    path = make_encoder(tmp_path)
    (path / "tokenizer.json").unlink()
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigurationError, match="tokenizer"):
        await load(path)


async def test_a_model_that_comes_with_code_is_not_run_unasked(load, tmp_path):
    import json

    path = make_encoder(tmp_path, pooling=None)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoModel": "ours.Model", "AutoConfig": "ours.Config"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "ours.py").write_text("raise SystemExit('this was run')\n")
    with pytest.raises(ConfigurationError, match="trust_remote_code"):
        await load(path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
async def test_threads_of_torch_sleep_soon_unless_the_environment_says_otherwise(
    load, folder, monkeypatch, given, expected
):
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")  # so that it is put back
    monkeypatch.delenv("GOMP_SPINCOUNT")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    await load(folder)
    assert os.environ.get("GOMP_SPINCOUNT") == expected


async def test_the_thread_of_a_model_that_cannot_be_loaded_ends(load, tmp_path, monkeypatch):
    kept = []  # one that nobody holds would end by itself

    def start(*given: Any, **named: Any) -> ThreadPoolExecutor:
        kept.append(ThreadPoolExecutor(*given, **named))
        return kept[-1]

    monkeypatch.setattr(engine_module, "ThreadPoolExecutor", start)
    path = make_encoder(tmp_path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError):
        await load(path)
    (executor,) = kept
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(print)


async def test_the_model_is_loaded_in_the_thread_that_runs_it(load, folder, monkeypatch):
    threads = []
    loads = loading.load_model
    monkeypatch.setattr(
        engine_module, "load_model", lambda *given: (threads.append(threading.get_ident()), loads(*given))[1]
    )
    engine = await load(folder)
    run = engine.loaded.model.encoder.register_forward_pre_hook(lambda *_: threads.append(threading.get_ident()))
    await engine.handle()(["sea"])
    run.remove()
    assert len(threads) == 2
    assert len(set(threads)) == 1


async def test_an_engine_without_weights_says_so():
    with pytest.raises(ConfigurationError, match="needs weights"):
        await load_embedding(EngineSpec("embedding"), Settings(), Phases())


async def test_the_start_is_measured_in_phases(folder):
    phases = Phases()
    spec = Embedding(Weights("tests/model", path=str(folder)))
    engine = await load_embedding(spec, Settings(), phases)
    assert set(phases.seconds) == {"imports", "weights", "engine"}
    assert isinstance(engine.handle(), Embed)
    await engine.close()


def test_a_containers_limit_on_processors_is_respected(tmp_path):
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert cpu_quota(tmp_path) == 3
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert cpu_quota(tmp_path) == 1
    assert usable_cpus() >= 1

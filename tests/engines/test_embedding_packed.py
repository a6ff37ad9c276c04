"""Texts one behind the other without padding: the same vectors, and what happens where a model does not take them."""

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashkit.engines.embedding import EmbeddingOptions
from flashkit.worker.engines.embedding import loading, packed
from flashkit.worker.engines.embedding.layout import Layout
from flashkit.worker.engines.embedding.loading import load_model
from flashkit.worker.engines.embedding.model import Model
from flashkit.worker.engines.embedding.tokens import Tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = 90
SIZES = {"vocab_size": WORDS, "max_position_embeddings": 640, "pad_token_id": 1}
WIDTHS = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZES, **WIDTHS),
    "electra": lambda: transformers.ElectraConfig(**SIZES, **WIDTHS, embedding_size=24),
    "distilbert": lambda: transformers.DistilBertConfig(**SIZES, dim=48, n_layers=2, n_heads=4, hidden_dim=64),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, **WIDTHS),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, **WIDTHS),
    "camembert": lambda: transformers.CamembertConfig(**SIZES, **WIDTHS),
}
LENGTHS = (3, 60, 1, 600, 47, 48, 130, 512, 513, 20)
"""On both sides of where the way to compute attention changes."""


def texts(*lengths: int, types: bool = False) -> list[Tokens]:
    chance = random.Random(3)
    return [
        Tokens(
            np.array([chance.randrange(2, WORDS) for _ in range(length)], dtype=np.int32),
            np.arange(length, dtype=np.int32) % 2 if types else None,
            is_truncated=False,
        )
        for length in lengths
    ]


def load(folder: Path, config: Any, *, pooling: str = "mean", samples: Any = None, **options: Any) -> Model:
    torch.manual_seed(1)
    config.initializer_range = 0.2  # attention is to matter
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    layout = Layout(folder=folder, pooling=pooling, max_length=600)
    return load_model(layout, EmbeddingOptions(**{"dtype": "float32", **options}), samples or texts(30, 60, 7))


def alone(model: Model, tokens: Tokens) -> Any:
    """Return the vector that transformers itself gives for the text alone."""
    plain = transformers.AutoModel.from_pretrained(model.layout.folder).eval()
    types = {} if tokens.types is None else {"token_type_ids": torch.from_numpy(tokens.types)[None].long()}
    with torch.inference_mode():
        states = plain(input_ids=torch.from_numpy(tokens.ids)[None].long(), **types).last_hidden_state[0]
    vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1], "max": states.amax(0)}[model.layout.pooling]
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("kind", CONFIGS)
def test_vectors_are_those_of_each_text_alone(tmp_path, kind):
    model = load(tmp_path, CONFIGS[kind]())
    assert model.packing is not None
    batch = texts(*LENGTHS)
    for tokens, row in zip(batch, model.run(batch), strict=True):
        np.testing.assert_allclose(row, alone(model, tokens), atol=2e-5)


@pytest.mark.parametrize("pooling", ["cls", "last", "max"])
def test_whatever_the_pooling(tmp_path, pooling):
    model = load(tmp_path, CONFIGS["bert"](), pooling=pooling)
    batch = texts(*LENGTHS)
    for tokens, row in zip(batch, model.run(batch), strict=True):
        np.testing.assert_allclose(row, alone(model, tokens), atol=2e-5)


def test_types_of_some_texts_are_theirs_alone(tmp_path):
    model = load(tmp_path, CONFIGS["bert"]())
    batch = [*texts(5, 50, types=True), *texts(9)]
    for tokens, row in zip(batch, model.run(batch), strict=True):
        np.testing.assert_allclose(row, alone(model, tokens), atol=2e-5)


def test_a_text_with_the_padding_token_in_it_has_the_positions_that_the_model_gives_it(tmp_path):
    model = load(tmp_path, CONFIGS["roberta"]())
    (tokens,) = texts(12)
    tokens.ids[4] = 1
    inputs = model.packing.inputs([tokens], takes_types=False)
    assert inputs["position_ids"].tolist() == [[2, 3, 4, 5, 1, 6, 7, 8, 9, 10, 11, 12]]


def test_in_half_precision_vectors_hardly_change(tmp_path):
    model = load(tmp_path, CONFIGS["bert"](), dtype="bfloat16")
    assert (model.dtype, model.packing is None) == ("bfloat16", False)
    batch = texts(*LENGTHS)
    for tokens, row in zip(batch, model.run(batch), strict=True):
        assert row @ alone(model, tokens) > 0.99


def test_one_sample_proves_nothing_so_the_model_is_padded(tmp_path):
    assert load(tmp_path, CONFIGS["bert"](), samples=texts(30)).packing is None


def test_a_model_of_other_peoples_code_is_padded_whatever_it_is_called():
    class Encoder(transformers.BertModel):
        pass

    assert packed.packing_of(Encoder(CONFIGS["bert"]())) is None


def test_another_kind_of_model_is_padded(tmp_path):
    config = transformers.LlamaConfig(**SIZES, **WIDTHS, num_key_value_heads=2)
    model = load(tmp_path, config, pooling="last")
    assert model.packing is None
    assert model.run(texts(4, 9)).shape == (2, 48)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_model_is_padded(tmp_path):
    assert load(tmp_path, CONFIGS["bert"](), compile=True).packing is None


def test_a_model_whose_vectors_would_change_is_padded(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "flashkit")

    def mix(module, query, key, value, attention_mask, *, spans, **_):
        return value.transpose(1, 2).contiguous(), None

    monkeypatch.setattr(packed, "attend", mix)
    model = load(tmp_path, CONFIGS["bert"]())
    assert model.packing is None
    assert "texts are padded" in caplog.text
    assert "it gives other vectors" in caplog.text
    batch = texts(30, 7)
    for tokens, row in zip(batch, model.run(batch), strict=True):
        np.testing.assert_allclose(row, alone(model, tokens), atol=2e-5)


def test_a_model_that_fails_on_a_row_of_texts_is_padded(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(packed, "attend", fail)
    model = load(tmp_path, CONFIGS["bert"]())
    assert model.packing is None
    assert model.run(texts(4, 9)).shape == (2, 48)


def test_a_release_of_transformers_without_such_functions_pads(tmp_path, monkeypatch, caplog):
    def register():
        raise ImportError("cannot import name 'AttentionInterface'")

    monkeypatch.setattr(loading, "register", register)
    caplog.set_level(logging.INFO, "flashkit")
    model = load(tmp_path, CONFIGS["bert"]())
    assert model.packing is None
    assert "cannot import name 'AttentionInterface'" in caplog.text
    assert model.run(texts(4, 9)).shape == (2, 48)

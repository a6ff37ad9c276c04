"""`Embedding(...)`: what is refused at definition, and what the folder of a model says."""

import json

import pytest

from flashkit import DefinitionError, Embedding, EngineSpec, Weights, embedding_endpoint
from flashkit.engines.embedding import EmbeddingOptions
from flashkit.errors import ConfigurationError
from flashkit.worker.engines.embedding.layout import DEFAULT_MAX_LENGTH, read_layout

WEIGHTS = Weights("org/model")
DEFAULTS = EmbeddingOptions()


def test_without_options_nothing_travels_but_the_weights():
    assert Embedding(WEIGHTS) == EngineSpec("embedding", WEIGHTS)


def test_options_travel_as_json_and_come_back():
    engine = Embedding(
        WEIGHTS,
        pooling="last",
        normalize=False,
        max_batch_tokens=4096,
        max_queue_ms=5,
        dtype="float16",
        max_length=512,
        too_long="refuse",
        query_prompt="query: ",
        prompts={"document": "passage: "},
        matryoshka=True,
        served_model_name=["small", "tiny"],
        warmup=["a text"],
        compile=True,
        trust_remote_code=True,
    )
    options = EmbeddingOptions.from_json(json.loads(json.dumps(engine.options)))
    assert options == EmbeddingOptions(
        pooling="last",
        normalize=False,
        max_batch_tokens=4096,
        max_queue_ms=5.0,
        dtype="float16",
        max_length=512,
        too_long="refuse",
        prompts={"document": "passage: ", "query": "query: "},
        matryoshka=True,
        served_model_name=("small", "tiny"),
        warmup=("a text",),
        compile=True,
        trust_remote_code=True,
    )


def test_one_served_name_is_a_list_of_one():
    assert Embedding(WEIGHTS, served_model_name="small").options == {"served_model_name": ["small"]}


def test_an_option_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(DefinitionError, match="no option 'max_batch_token'; did you mean 'max_batch_tokens'"):
        Embedding(WEIGHTS, max_batch_token=5)
    with pytest.raises(DefinitionError, match="no option 'zzz'\n"):
        Embedding(WEIGHTS, zzz=5)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("pooling", "means", "did you mean 'mean'"),
        ("pooling", 5, "is not known"),
        ("normalize", "yes", "neither True nor False"),
        ("max_batch_tokens", 0, "not a whole number of at least 1"),
        ("max_batch_tokens", 10.5, "not a whole number"),
        ("max_batch_tokens", True, "not a whole number"),
        ("max_queue_ms", -1, "not a number of milliseconds"),
        ("max_queue_ms", float("nan"), "not a number of milliseconds"),
        ("max_queue_ms", "5", "not a number of milliseconds"),
        ("dtype", "float8", "did you mean 'float"),
        ("max_length", -5, "not a whole number"),
        ("too_long", "cut", "it may be truncate, refuse"),
        ("query_prompt", 5, "not a name and a text"),
        ("document_prompt", b"x", "not a name and a text"),
        ("prompts", ["query: "], "not a mapping"),
        ("prompts", {"query": None}, "not a name and a text"),
        ("matryoshka", "yes", "neither True nor False"),
        ("served_model_name", "", "an empty name"),
        ("served_model_name", [5], "not a list of texts"),
        ("warmup", "a text", "not a list of texts"),
        ("warmup", [5], "not a list of texts"),
        ("compile", 1, "neither True nor False"),
        ("trust_remote_code", "yes", "neither True nor False"),
    ],
)
def test_nonsense_is_refused_at_definition(option, value, message):
    with pytest.raises(DefinitionError, match=message):
        Embedding(WEIGHTS, **{option: value})


def test_a_text_that_is_longer_than_a_batch_is_refused_at_definition():
    with pytest.raises(DefinitionError, match="the longest text is in no batch"):
        Embedding(WEIGHTS, max_batch_tokens=100, max_length=200)


def test_weights_by_name_alone_are_refused():
    with pytest.raises(DefinitionError, match="names no weights"):
        Embedding("org/model")


def test_an_endpoint_takes_a_declared_engine():
    endpoint = embedding_endpoint(name="vectors", gpu="L40S", engine=Embedding(WEIGHTS, pooling="cls"))
    assert endpoint.spec.engine.options == {"pooling": "cls"}


# What a folder says


def write(folder, **files):
    for name, value in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def sentence_model(folder, *, pooling=None, modules=MODULES, **files):
    files = {"config": {"max_position_embeddings": 512}, **files}
    return write(folder, modules=modules, **{"1_Pooling__config": pooling or {}}, **files)


def test_pooling_length_and_prompts_are_read_from_the_folder(tmp_path):
    folder = sentence_model(
        tmp_path,
        pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        config_sentence_transformers={
            "prompts": {"query": "q: ", "none": None},
            "default_prompt_name": "query",
            "truncate_dim": 64,
        },
    )
    layout = read_layout(folder, DEFAULTS)
    assert (layout.pooling, layout.max_length, layout.lower_case) == ("cls", 256, True)
    assert (layout.prompts, layout.default_prompt, layout.is_matryoshka) == ({"query": "q: "}, "query", True)
    assert not layout.is_cross_encoder


@pytest.mark.parametrize(("named", "expected"), [("lasttoken", "last"), ("mean", "mean"), ("cls", "cls")])
def test_the_newer_form_of_pooling_is_read(tmp_path, named, expected):
    assert read_layout(sentence_model(tmp_path, pooling={"pooling_mode": named}), DEFAULTS).pooling == expected


def test_a_model_below_the_folder_is_found(tmp_path):
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}, *MODULES[1:]]
    folder = write(tmp_path, modules=modules, **{"0_Transformer__config": {"max_position_embeddings": 128}})
    layout = read_layout(folder, DEFAULTS)
    assert layout.folder == folder / "0_Transformer"
    assert layout.max_length == 128


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        ({"max_position_embeddings": 512}, {"model_max_length": 512}, 512),
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}, {}, 512),
        ({"max_position_embeddings": 512}, {"model_max_length": 10**30}, 512),
        ({"max_position_embeddings": 40_000}, {"model_max_length": 8192}, 8192),
        ({}, {}, DEFAULT_MAX_LENGTH),
    ],
)
def test_texts_may_be_as_long_as_model_and_tokenizer_say(tmp_path, config, tokenizer, expected):
    folder = write(tmp_path, config=config, tokenizer_config=tokenizer)
    assert read_layout(folder, DEFAULTS).max_length == expected


def test_a_length_that_is_declared_goes_first_as_far_as_there_are_positions(tmp_path):
    folder = sentence_model(tmp_path, sentence_bert_config={"max_seq_length": 256})
    assert read_layout(folder, EmbeddingOptions(max_length=500)).max_length == 500
    with pytest.raises(ConfigurationError, match="more than the 512 tokens"):
        read_layout(folder, EmbeddingOptions(max_length=513))


def test_matryoshka_is_what_the_declaration_or_the_folder_says(tmp_path):
    folder = write(tmp_path, config={"matryoshka_dimensions": [256, 512]})
    assert read_layout(folder, DEFAULTS).is_matryoshka
    assert not read_layout(folder, EmbeddingOptions(matryoshka=False)).is_matryoshka


def test_a_cross_encoder_is_known_by_its_architecture(tmp_path):
    config = {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    layout = read_layout(write(tmp_path, config=config), DEFAULTS)
    assert (layout.is_cross_encoder, layout.activation) == (True, "Sigmoid")
    config["sbert_ce_default_activation_function"] = "torch.nn.modules.linear.Identity"
    assert read_layout(write(tmp_path, config=config), DEFAULTS).activation == "Identity"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no config\.json"),
        (
            {"config": {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}},
            "a classifier of 2 labels",
        ),
        (
            {
                "config": {
                    "architectures": ["BertForSequenceClassification"],
                    "num_labels": 1,
                    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"},
                }
            },
            "go through 'Softmax'",
        ),
        ({"modules": [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]}, "StaticEmbedding"),
        ({"modules": []}, "made of nothing"),
        ({"modules": [*MODULES, {"path": "3", "type": "x.LSTM"}]}, "LSTM cannot be served"),
        (
            {
                "modules": MODULES,
                "1_Pooling__config": {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            },
            "by mean and max",
        ),
        ({"modules": MODULES, "1_Pooling__config": {"pooling_mode_weightedmean_tokens": True}}, "by weightedmean"),
        ({"modules": MODULES, "1_Pooling__config": {"include_prompt": False}}, "leaves prompts out"),
        (
            {
                "modules": [*MODULES[:2], {"path": "2_Dense", "type": "x.Dense"}],
                "2_Dense__config": {"activation_function": "torch.nn.modules.activation.Mish"},
            },
            "the activation 'Mish'",
        ),
    ],
)
def test_a_model_that_cannot_be_served_rightly_is_refused(tmp_path, files, message):
    with pytest.raises(ConfigurationError, match=message):
        read_layout(write(tmp_path, **files), DEFAULTS)


def test_a_pooling_that_is_declared_stands_in_for_one_that_cannot_be_served(tmp_path):
    folder = sentence_model(tmp_path, pooling={"pooling_mode_weightedmean_tokens": True})
    assert read_layout(folder, EmbeddingOptions(pooling="mean")).pooling == "mean"


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be read"):
        read_layout(tmp_path, DEFAULTS)

"""`flashkit plan` and the hub: only the config is read, and what cannot be had is told."""

from __future__ import annotations

import json

import pytest

from flashkit.cli.plan_models import find_model, weights_named
from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from tests.plan.configs import QWEN_3_8B
from tests.weights.conftest import COMMIT
from tests.weights.hub_server import HubServer

CONFIG = json.dumps(QWEN_3_8B).encode()


def test_the_config_and_the_sizes_of_files_are_enough(hub: HubServer, settings: Settings):
    hub.add("org/model", {"config.json": CONFIG, "a.safetensors": b"x" * 3000, "b.safetensors": b"x" * 4000,
                          "pytorch_model.bin": b"x" * 9000})  # fmt: skip
    facts = find_model(weights_named("org/model"), settings)
    assert facts.config == QWEN_3_8B
    assert facts.files_bytes == 7000
    assert facts.place == f"the hub ({hub.url}), commit {COMMIT}"
    assert not hub.asked("safetensors")


def test_a_repository_without_files_of_weights_is_sized_by_its_config(hub: HubServer, settings: Settings):
    hub.add("org/model", {"config.json": CONFIG})
    assert find_model(weights_named("org/model"), settings).files_bytes is None


@pytest.mark.parametrize(
    ("files", "options", "told"),
    [
        ({"model.gguf": b"x"}, {}, "org/model has no config.json"),
        ({"config.json": b"{"}, {}, "config.json of org/model is not JSON"),
        ({"config.json": CONFIG}, {"is_gated": True}, "the repository org/model is gated, and no token is set"),
        ({"config.json": CONFIG}, {"is_private": True}, "it has no repository org/model, or a private one"),
    ],
)
def test_what_the_hub_does_not_give_is_told(hub: HubServer, settings: Settings, files, options, told: str):
    hub.add("org/model", files, **options)
    with pytest.raises(ConfigurationError, match=told):
        find_model(weights_named("org/model"), settings)


def test_a_config_that_does_not_arrive_is_told(hub: HubServer, settings: Settings):
    hub.add("org/model", {"config.json": CONFIG})
    hub.fail("resolve.*config.json", "drop", times=100)
    with pytest.raises(ConfigurationError, match=r"not to be had: the hub .*its config.json did not arrive"):
        find_model(weights_named("org/model"), settings)

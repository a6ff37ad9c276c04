"""What `Weights(...)` accepts, how nonsense is refused, and its way through JSON."""

import dataclasses
import json

import pytest

from flashkit.errors import ConfigurationError, DefinitionError
from flashkit.settings import Settings
from flashkit.spec import Weights

FULL = Weights("org/name", "v1", allow=("*.json",), ignore=("*.bin",), s3="s3://bucket/prefix", path="/models/x")


def test_the_everyday_form_is_a_name_and_a_revision():
    assert Weights("Qwen/Qwen3-8B", revision="main") == Weights("Qwen/Qwen3-8B", "main")


def test_weights_survive_json():
    assert Weights(**json.loads(json.dumps(dataclasses.asdict(FULL)))) == FULL
    assert hash(Weights(**json.loads(json.dumps(dataclasses.asdict(FULL))))) == hash(FULL)


@pytest.mark.parametrize("name", ["../x", "a/..", "a/b\n", "ä/b", "a..b/c", ".a/b", "a/-b", 5])
def test_names_that_could_leave_their_folder_are_refused(name):
    with pytest.raises(DefinitionError, match="organisation/name"):
        Weights(name)


@pytest.mark.parametrize("revision", ["", "a b", "../main", "a/../b", "/main", "main/", ["main"]])
def test_revisions_that_are_none_are_refused(revision):
    with pytest.raises(DefinitionError, match="is not a revision"):
        Weights("org/name", revision)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "feature_x", "0" * 40])
def test_commits_tags_and_branches_are_revisions(revision):
    assert Weights("org/name", revision).revision == revision


@pytest.mark.parametrize("option", ["allow", "ignore"])
@pytest.mark.parametrize("value", ["*.json", [""], [1], 5])
def test_patterns_are_several_texts(option, value):
    with pytest.raises(DefinitionError, match="are no patterns"):
        Weights("org/name", **{option: value})


@pytest.mark.parametrize("place", ["bucket/prefix", "s3://", "s3:///prefix", "s3://a b", "https://s3/x"])
def test_a_place_in_s3_is_checked_in_code_and_in_the_environment(place, tmp_path):
    with pytest.raises(DefinitionError, match="is not a place in S3"):
        Weights("org/name", s3=place)
    with pytest.raises(ConfigurationError, match="FLASHKIT_WEIGHTS_S3="):
        Settings.from_environment({"FLASHKIT_WEIGHTS_S3": place}, folder=tmp_path)


def test_a_place_that_is_no_text_is_refused():
    with pytest.raises(DefinitionError, match="is not a place in S3"):
        Weights("org/name", s3=5)


def test_a_path_is_not_empty():
    with pytest.raises(DefinitionError, match="is not a folder"):
        Weights("org/name", path=" ")

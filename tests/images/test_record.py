"""What was built, for later commands."""

from __future__ import annotations

import pytest

from flashkit.errors import ConfigurationError
from flashkit.images.record import IMAGES_FILE, BuiltImage, read_images, write_images


def built(*endpoints, reference="tools:1", **changes):
    facts = {
        "image_id": "sha256:1", "platform": "linux/amd64", "size_bytes": 1, "built_at": "2026-11-27T00:00:00+00:00",
        "dockerfile": "Dockerfile",
    }  # fmt: skip
    return BuiltImage(endpoints=endpoints, reference=reference, **{**facts, **changes})


def test_a_project_that_built_nothing_has_no_images(tmp_path):
    assert read_images(tmp_path) == {}


def test_each_endpoint_has_the_image_it_was_built_into_last(tmp_path):
    write_images(tmp_path, [built("web", "agent"), built("llm", reference="llm:1")])
    write_images(tmp_path, [built("agent", reference="agent:2", digest="me/agent@sha256:9")])
    images = read_images(tmp_path)
    assert {name: image.deployable for name, image in images.items()} == {
        "web": "tools:1", "agent": "me/agent@sha256:9", "llm": "llm:1",
    }  # fmt: skip
    assert images["web"].endpoints == ("web",)


def test_a_record_that_cannot_be_read_says_what_to_do_and_gives_way_to_a_new_one(tmp_path):
    (tmp_path / IMAGES_FILE).parent.mkdir()
    for text in ("{", '{"images": [{}]}', "[]", '{"images": [{"endpoints": ["a"], "new": 1}]}'):
        (tmp_path / IMAGES_FILE).write_text(text)
        with pytest.raises(ConfigurationError, match=r"images\.json cannot be read") as caught:
            read_images(tmp_path)
        assert caught.value.report.hint == "remove it and build again"
    write_images(tmp_path, [built("web")])
    assert list(read_images(tmp_path)) == ["web"]

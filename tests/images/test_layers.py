"""What is in an image, read from archives as different Dockers write them; and what to cut."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest

from flashkit.images.docker import HistoryLine
from flashkit.images.findings import find_secrets, find_waste, largest_files
from flashkit.images.layers import Package, packages, read_contents
from flashkit.images.sbom import bill_of_materials

MB = 1_000_000
STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u10

Package: removed
Status: deinstall ok config-files
Version: 1
"""


def tar(files):
    """An archive of files: sizes make files of zeros, None makes a whiteout's empty file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in files.items():
            data = b"\0" * content if isinstance(content, int) else (content or "").encode()
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def save(*layers, form="oci"):
    """An image's archive with these layers."""
    names = {
        "oci": [f"blobs/sha256/{index:064x}" for index in range(len(layers))],
        "legacy": [f"{index:064x}/layer.tar" for index in range(len(layers))],
    }["oci" if form == "compressed" else form]
    blobs = [gzip.compress(tar(each), 1) if form == "compressed" else tar(each) for each in layers]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        manifest = json.dumps([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]).encode()
        for name, data in [
            *sorted(zip(names, blobs, strict=True)),
            ("config.json", b"{}" * 2000),
            ("manifest.json", manifest),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    packed.seek(0)
    return packed


def contents(*layers, history=(), form="oci"):
    return read_contents(save(*layers, form=form), list(history))


def found(*layers, **options):
    return {finding.id: finding for finding in find_waste(contents(*layers), **options)}


BASE = {"usr/bin/python3": 5 * MB}
CODE = {"app/app.py": 500}


@pytest.mark.parametrize("form", ["oci", "legacy", "compressed"])
def test_layers_are_read_in_their_order_from_every_form_of_archive(form):
    image = contents(BASE, {"opt/x": 2000}, CODE, form=form)
    assert [layer.files for layer in image.layers] == [BASE, {"opt/x": 2000}, CODE]
    assert image.size_bytes == 5 * MB + 2500


def test_layers_have_the_instructions_that_made_them():
    history = [
        HistoryLine("/bin/sh -c #(nop) ADD file:1 in /", 5 * MB), HistoryLine("ENV A=1", 0),
        HistoryLine("WORKDIR /app", 0), HistoryLine("COPY . /app/ # buildkit", 500), HistoryLine('CMD ["python"]', 0),
    ]  # fmt: skip
    image = contents(BASE, {}, CODE, history=history)
    assert [(layer.instruction, layer.size_bytes) for layer in image.layers] == [
        ("/bin/sh -c #(nop) ADD file:1 in /", 5 * MB), ("WORKDIR /app", 0), ("COPY . /app/ # buildkit", 500),
    ]  # fmt: skip


def test_a_container_sees_neither_what_was_replaced_nor_what_was_removed():
    image = contents(
        {"a": 10, "dir/b": 10, "dir/c": 10, "whole/d": 10}, {"a": 20, "dir/.wh.b": None, "whole/.wh..wh..opq": None}
    )
    assert image.visible() == {"a": 1, "dir/c": 0}


def test_packages_of_python_and_debian_are_listed():
    image = contents(
        {
            "var/lib/dpkg/status": STATUS,
            "opt/venv/lib/python3.11/site-packages/typing_extensions-4.16.0.dist-info/METADATA": 9,
        }
    )
    assert sorted(packages(image)) == [
        Package("deb", "libc6", "2.36-9+deb12u10"),
        Package("pypi", "typing-extensions", "4.16.0", "opt/venv/lib/python3.11/site-packages"),
    ]


def test_a_bill_of_materials_names_them():
    image = contents({"var/lib/dpkg/status": STATUS, "v/site-packages/runpod-1.12.0.dist-info/METADATA": 9})
    document = bill_of_materials(image, reference="x:1", image_id="sha256:1")
    assert [component["purl"] for component in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10", "pkg:pypi/runpod@1.12.0",
    ]  # fmt: skip
    assert document["components"][1]["evidence"] == {"occurrences": [{"location": "/v/site-packages"}]}


def test_a_small_image_has_nothing_to_cut():
    assert found(BASE, {"opt/venv/lib/python3.11/site-packages/x.so": 30 * MB}, CODE) == {}


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("root/.cache/pip/http/0", "caches of package tools in layer 2"),
        ("home/app/.cache/uv/0", "caches of package tools in layer 2"),
        ("var/lib/apt/lists/x_Packages", "lists and archives of apt in layer 2"),
        ("app/.git/objects/pack/p", "a git repository in layer 2"),
        ("app/node_modules/x.js", "node_modules in layer 2"),
        ("tmp/download", "temporary files in layer 2"),
    ],
)
def test_caches_are_found(path, what):
    finding = found(BASE, {path: 3 * MB})["cache-in-layer"]
    assert (finding.message, finding.size_bytes, finding.paths) == (what, 3 * MB, (f"/{path}",))
    assert "cache-in-layer" not in found(BASE, {path: 10})


def test_what_a_later_layer_removes_or_replaces_is_found():
    finding = found(BASE, {"opt/build.tar": 4 * MB, "opt/kept": 2 * MB}, {"opt/.wh.build.tar": None})[
        "hidden-by-later-layer"
    ]
    assert (finding.size_bytes, finding.paths) == (4 * MB, ("/opt/build.tar",))
    assert finding.message == "files of layer 2 that a later layer removes or replaces"
    assert found(BASE, {"opt/x": 4 * MB}, {"opt/x": 5 * MB})["hidden-by-later-layer"].size_bytes == 4 * MB


def test_a_package_in_two_places_is_found():
    def site(prefix):
        folder = f"{prefix}/lib/python3.11/site-packages"
        return {f"{folder}/numpy-2.3.5.dist-info/METADATA": 10, f"{folder}/numpy/core.so": 9 * MB}

    finding = found(BASE, site("opt/venv"), site("usr/local"))["package-twice"]
    assert finding.message == (
        "numpy is installed in /opt/venv/lib/python3.11/site-packages and /usr/local/lib/python3.11/site-packages"
    )
    assert finding.size_bytes == 9 * MB + 10
    assert "package-twice" not in found(BASE, site("opt/venv"))


def test_a_large_file_that_is_there_twice_is_found():
    finding = found(BASE, {"opt/a/model.onnx": 7 * MB, "opt/b/model.onnx": 7 * MB})["file-twice"]
    assert (finding.message, finding.size_bytes) == ("model.onnx is there 2 times", 7 * MB)
    assert "file-twice" not in found(BASE, {"opt/a/model.onnx": 7 * MB, "opt/b/model.onnx": 8 * MB})


def test_weights_above_the_code_are_found():
    weights = {"models/a/b/model.safetensors": 60 * MB}
    finding = found(BASE, CODE, weights)["weights-above-code"]
    assert finding.message == "weights in layer 3, above the code in layer 2: new code pushes them again"
    assert found(BASE, weights, CODE) == {}


def test_large_files_in_the_layer_of_the_code_are_found():
    finding = found(BASE, CODE | {"app/models/m.safetensors": 70 * MB})["data-with-code"]
    assert (finding.size_bytes, finding.paths) == (70 * MB, ("/app/models/m.safetensors",))
    assert found(BASE, CODE | {"app/knowledge.txt": 2 * MB}) == {}
    assert "data-with-code" in found(BASE, {"srv/app.py": 10, "srv/x.bin": 70 * MB}, work_dir="/srv")


def test_cudas_libraries_are_found_where_there_is_no_gpu():
    cuda = {"opt/venv/lib/python3.11/site-packages/nvidia/cublas/lib/libcublas.so": 600_000}
    cuda |= {"opt/venv/lib/python3.11/site-packages/triton/x.so": 600_000}
    assert found(BASE, cuda, is_cpu=True)["gpu-libraries-on-cpu"].size_bytes == 1_200_000
    assert found(BASE, cuda) == {}


def test_what_is_most_comes_first():
    findings = find_waste(contents(BASE, {"root/.cache/a": 2 * MB, "var/lib/apt/lists/b": 8 * MB, "tmp/c": 4 * MB}))
    assert [finding.size_bytes for finding in findings] == [8 * MB, 4 * MB, 2 * MB]


def test_the_largest_files_are_those_that_a_container_sees():
    image = contents(BASE, {"opt/big": 9 * MB, "opt/small": 100}, {"opt/.wh.big": None, "opt/next": 7 * MB})
    assert largest_files(image) == [("opt/next", 7 * MB), ("usr/bin/python3", 5 * MB)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ENV HF_TOKEN=hf_aBcDeFgHiJkLmNoPqRsTuVwX", "hf_aBc…"),
        ("RUN |1 HF_TOKEN=something-secret /bin/sh -c pull", "HF_TOKEN=…"),
        ("ENV RUNPOD_API_KEY=rpa_ABCDEFGHIJKLMNOPQRSTUVWXYZ", "rpa_AB…"),
        ("ENV DB_PASSWORD=hunter22", "DB_PASSWORD=…"),
    ],
)
def test_secrets_in_the_history_are_found_and_not_repeated(text, shown):
    messages = [finding.message for finding in find_secrets([text], [])]
    assert f"the image shows {shown} to everybody who can pull it" in messages
    secret = text.split("=", 1)[1].split()[0]
    assert not any(secret in message for message in messages)


def test_a_build_that_keeps_its_secrets_shows_none():
    lines = [
        "RUN --mount=type=secret,id=hf_token HF_TOKEN=$(cat /run/secrets/hf_token) && export HF_TOKEN",
        "ARG TOKEN",
    ]
    assert find_secrets(lines, ["PATH=/usr/bin", "TOKENIZERS_PARALLELISM=false"]) == []


def test_a_secret_in_the_environment_is_found():
    assert [finding.id for finding in find_secrets([], ["AWS_SECRET_ACCESS_KEY=abcdefgh"])] == ["secret-in-image"]

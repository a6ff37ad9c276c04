"""Images that are really built: the bases, an app's own, what is in their layers, and what goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from flashkit.images.recipe import PYTHON_IMAGES, Base, Ingredients, Variant, render
from flashkit.images.record import read_images
from flashkit.spec import Weights
from tests.images.conftest import APP, BUILD_SECONDS, SCRIPTS
from tests.images.registry import running_registry
from tests.weights.conftest import MODEL
from tests.weights.hub_server import HubServer

pytestmark = pytest.mark.timeout(BUILD_SECONDS)
SMALL = "FROM scratch\nCOPY app.py /app/\n"
TOKEN = "hf_ThisIsNoRealTokenButLooksLikeOne"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def test_the_cpu_base_has_python_flashkit_a_user_and_nothing_else(images, cpu_base):
    look = "import flashkit, os, runpod, sys; print(sys.prefix, os.getuid(), os.getcwd(), flashkit.__version__)"
    assert images.docker("run", "--rm", cpu_base, "python", "-c", look).split()[:3] == ["/opt/venv", "1000", "/app"]
    for module in ("torch", "numpy", "langgraph", "moto"):
        assert "ModuleNotFoundError" in images.docker(
            "run", "--rm", cpu_base, "python", "-c", f"import {module}", check=False
        )
    labels = json.loads(images.docker("image", "inspect", "--format", "{{json .Config.Labels}}", cpu_base))
    assert labels["org.opencontainers.image.title"] == "flashkit worker"


def test_bytecode_is_compiled_and_stripped_libraries_work(images, cpu_base):
    find = "import pathlib, sys; print(*{p.parts[6] for p in pathlib.Path(sys.prefix).rglob('*.pyc')})"
    compiled = images.docker("run", "--rm", cpu_base, "python", "-c", find).split()
    assert {"runpod", "flashkit", "aiohttp", "pydantic"} <= set(compiled)
    modules = (
        "import uvloop, yaml, aiohttp, cryptography.hazmat.bindings._rust, nacl.bindings, pydantic, orjson, _brotli"
    )
    images.docker("run", "--rm", cpu_base, "python", "-c", modules)


def test_the_cuda_base_has_its_systems_python_and_a_compiler(images, tmp_path):
    done = images.build("--base", "cuda", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    look = (
        "import os, runpod, sys, sysconfig as s; print(os.getuid(), sys.prefix, os.path.exists(s.get_path('include')))"
    )
    said = images.docker("run", "--rm", "flashkit-worker:0.1.0-cuda", "sh", "-c", f'g++ --version; python -c "{look}"')
    assert said.splitlines()[-1] == "1000 /opt/venv True"


def test_an_app_without_a_dockerfile_becomes_an_image(images, tool_image, tool_project):
    image = read_images(tool_project)["tool"]
    assert (image.reference, image.platform, image.dockerfile) == (
        tool_image,
        "linux/amd64",
        ".flashkit/build/Dockerfile.cpu",
    )
    assert image.image_id == images.docker("image", "inspect", "--format", "{{.Id}}", tool_image).strip()
    files = images.docker("run", "--rm", tool_image, "find", "/app", "-type", "f", "-not", "-name", "*.pyc")
    assert files.split() == ["/app/app.py"]  # neither .env nor .flashkit


def test_what_an_image_is_made_of_is_shown(images, cpu_base, tool_project):
    done = images.build("--tag", "fk-test-tool:1", folder=tool_project)
    assert "building fk-test-tool:1 for tool" in done.out
    assert re.search(r"·   cached  \[(stage-0 )?2/3\] COPY --chown=1000:1000 \. /app/", done.out)
    assert re.search(r" 1 +1\d\d MB +the FROM image", done.out)
    assert re.search(r"1\d\d MB +COPY /opt/venv /opt/venv", done.out)
    assert re.search(r"2\d\d MB, linux/amd64, user 1000; a new host pulls it in about \d", done.out)
    assert "built fk-test-tool:1 for tool" in done.out
    assert "cut" not in done.out


def test_json_says_what_was_built_and_nothing_else(images, cpu_base, tool_project, tmp_path):
    done = images.build("--tag", "fk-test-tool:1", "--json", "--sbom", str(tmp_path), folder=tool_project)
    (image,) = json.loads(done.out)["images"]
    assert (image["endpoints"], image["reference"], image["findings"]) == (["tool"], "fk-test-tool:1", [])
    assert 200_000_000 < image["size_bytes"] < 350_000_000
    assert "building fk-test-tool:1" in done.err
    bill = json.loads((tmp_path / "fk-test-tool-1.cdx.json").read_text())
    names = {component["purl"].partition("@")[0] for component in bill["components"]}
    assert {"pkg:pypi/runpod", "pkg:pypi/flashkit-serverless", "pkg:deb/debian/libc6"} <= names


def test_a_change_of_code_builds_and_pushes_little(images, cpu_base, make_project):
    folder = make_project("fk-test-change", app__py=APP, requirements__txt="humanize==4.12.3\n")
    assert images.build("--tag", "fk-test-change:1", folder=folder).code == 0
    (folder / "app.py").write_text(APP + "\n# changed\n")
    done = images.build("--tag", "fk-test-change:2", folder=folder)
    assert re.search(r"cached  \[(stage-0 )?3/5\] RUN .*pip install", done.out)
    layers = [
        json.loads(images.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", f"fk-test-change:{n}"))
        for n in (1, 2)
    ]
    assert [a == b for a, b in zip(*layers, strict=True)].count(False) == 2  # the code, and its bytecode
    assert layers[0][:-2] == layers[1][:-2]
    images.docker("run", "--rm", "fk-test-change:2", "python", "-c", "import humanize")


def test_a_secret_is_there_for_the_build_and_in_no_layer(images, cpu_base, make_project, tmp_path):
    folder = make_project(
        "fk-test-secret",
        app__py=APP,
        Dockerfile=f"""FROM {cpu_base}
RUN --mount=type=secret,id=hf_token,uid=1000 sha256sum /run/secrets/hf_token && test -s /run/secrets/hf_token
COPY . /app/
CMD ["python", "-m", "flashkit.worker", "app.py"]
""",
    )
    done = images.build("--tag", "fk-test-secret:1", folder=folder, HF_TOKEN=TOKEN)
    assert done.code == 0, done.out + done.err
    (tmp_path / "token").write_text(TOKEN)
    again = images.build(
        "--no-cache", "--tag", "fk-test-secret:2", "--secret", f"id=hf_token,src={tmp_path / 'token'}", folder=folder
    )
    assert again.code == 0, again.out + again.err
    for reference in ("fk-test-secret:1", "fk-test-secret:2"):
        assert TOKEN not in images.docker("history", "--no-trunc", reference)
        assert TOKEN.encode() not in images.saved(reference)
    assert TOKEN not in done.out + done.err + again.out + again.err


def test_a_build_that_needs_a_secret_and_has_none_says_so(images, cpu_base, make_project):
    folder = make_project(
        app__py=APP, Dockerfile=f"FROM {cpu_base}\nRUN --mount=type=secret,id=key,required cat /run/secrets/key\n"
    )
    done = images.build(folder=folder)
    assert done.code == 1
    assert "give the build's secret: --secret id=NAME,src=FILE" in done.err


def test_what_to_cut_is_said(images, cpu_base, make_project):
    folder = make_project(
        "fk-test-fat",
        app__py=APP,
        Dockerfile=f"""FROM {cpu_base}
USER 0
ENV API_KEY=not-so-secret-any-more
RUN mkdir -p /root/.cache/pip && head -c 3000000 /dev/zero > /root/.cache/pip/wheel
COPY . /app/
RUN head -c 5000000 /dev/zero > /tmp/big && head -c 4000000 /dev/zero > /models/m.safetensors
RUN rm /tmp/big
CMD ["python", "-m", "flashkit.worker", "app.py"]
""",
    )
    done = images.build("--tag", "fk-test-fat:1", "--json", folder=folder)
    assert done.code == 0, done.err
    found = {finding["id"]: finding for finding in done.json["images"][0]["findings"]}
    assert found["secret-in-image"]["message"] == "the image shows API_KEY=… to everybody who can pull it"
    assert found["hidden-by-later-layer"]["paths"][0] == "/tmp/big"
    assert found["weights-above-code"]["size_bytes"] == 4_000_000
    assert "not-so-secret" not in done.out + done.err
    assert re.search(r"cut 3 MB: caches of package tools in layer \d+", done.err)
    assert "user 0; a new host" in done.err


def test_a_failing_step_is_named_with_its_last_lines(images, cpu_base, make_project):
    folder = make_project(
        "fk-test-bad",
        app__py=APP,
        Dockerfile=f"FROM {cpu_base}\nUSER 0\nRUN echo one && echo two && exit 3\nCOPY . /app/\n",
    )
    done = images.build("--tag", "fk-test-bad:1", folder=folder)
    assert done.code == 1
    assert "✗           [2/3] RUN echo one && echo two && exit 3" in done.out
    step = "[2/3] RUN echo one && echo two && exit 3 (Dockerfile:3)"
    told = [f"ImageError: fk-test-bad:1 could not be built: {step} failed", "    one", "    two"]
    assert done.err.splitlines()[:3] == told
    assert "exit code: 3" in done.err
    assert read_images(folder) == {}


@pytest.mark.parametrize(
    ("dockerfile", "hint"),
    [
        ("FROM {base}\nCOPY nothing.txt /app/\n", "COPY names a file that is not in the context"),
        ("FROM {base}\nRUNN true\n", "the Dockerfile cannot be read at the line it names"),
        ("FROM 127.0.0.1:9/nobody/nothing:1\n", "FROM names an image that cannot be had from here"),
    ],
)  # fmt: skip
def test_a_broken_dockerfile_says_what_is_wrong(images, cpu_base, make_project, dockerfile, hint):
    folder = make_project("fk-test-broken", app__py=APP, Dockerfile=dockerfile.format(base=cpu_base))
    done = images.build(folder=folder)
    assert done.code == 1
    assert f"  hint: {hint}" in done.err


def test_a_dockerfile_of_one_endpoint_is_used_for_it_alone(images, cpu_base, make_project):
    folder = make_project(
        "fk-test-two",
        app__py=APP + '\n@cpu_endpoint(name="other", cpu="cpu3c-1-2")\ndef other(n: int) -> int:\n    return n\n',
        Dockerfile__other=f"FROM {cpu_base}\nCOPY . /app/\n",
    )
    done = images.build("--endpoint", "other", folder=folder)
    assert done.code == 0, done.err
    assert {name: image.reference for name, image in read_images(folder).items()} == {"other": "fk-test-two-other:dev"}
    missing = images.build("--endpoint", "othr", folder=folder)
    assert (missing.code, "there is no endpoint 'othr'" in missing.err) == (2, True)


def test_weights_are_baked_below_the_code(images, cpu_base, make_project, hub):
    """The recipe's Dockerfile for a model, on a base without torch; a gated repository of a hub on loopback."""
    hub.add("me/tiny", MODEL, is_gated=True, token=TOKEN)
    base = "fk-test-hub:1"
    folder = make_project("fk-test-baked", app__py=APP, requirements__txt="humanize==4.12.3\n")
    with_hub = f"FROM {cpu_base}\nUSER 0\nRUN pip install 'flashkit-serverless[hub]'\nUSER 1000\n"
    images.docker("build", "--network=host", "--tag", base, "--file", "-", str(folder), stdin=with_hub)
    made_of = Ingredients(Base(Variant.VLLM), (), (Weights("me/tiny"),), ("python", "-m", "flashkit.worker", "app.py"))
    (folder / "Dockerfile").write_text(render(made_of, version="0.1.0", has_requirements=True))
    options = ["--network=host", "--build-arg", f"BASE={base}", "--build-arg", f"HF_ENDPOINT={hub.url}"]
    options += ["--secret", "id=hf_token,env=HF_TOKEN"]
    images.docker("build", *options, "--tag", "fk-test-baked:1", str(folder), HF_TOKEN=TOKEN)
    assert TOKEN.encode() not in images.saved("fk-test-baked:1")
    find = "from flashkit import Weights; from flashkit.worker.weights import resolve_weights as find; "
    find += "print(find(Weights('me/tiny')))"
    said = images.docker("run", "--rm", "--network=none", "fk-test-baked:1", "python", "-c", find)
    assert said.strip() == "/models/me/tiny"
    (folder / "app.py").write_text(APP + "# new\n")
    images.docker("build", *options, "--tag", "fk-test-baked:2", str(folder), HF_TOKEN=TOKEN)
    layers = [
        json.loads(images.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", f"fk-test-baked:{n}"))
        for n in (1, 2)
    ]
    assert layers[0][:-2] == layers[1][:-2]
    assert layers[0] != layers[1]


def test_an_image_is_pushed_and_remembered_by_its_digest(images, make_project):
    folder = make_project("fk-test-push", app__py=APP, Dockerfile=SMALL)
    with running_registry() as registry:
        tag = f"{registry.host}/fk-test-push:9"
        done = images.build("--tag", tag, "--push", folder=folder)
        assert done.code == 0, done.out + done.err
        assert list(registry.manifests) == ["fk-test-push:9"]
        image = read_images(folder)["tool"]
        assert re.fullmatch(rf"{registry.host}/fk-test-push@sha256:[0-9a-f]{{64}}", image.digest)
        assert f"built {image.digest} for tool" in done.out
        images.docker("rmi", tag)


def test_a_push_without_a_login_says_how_to_log_in(images, make_project):
    folder = make_project("fk-test-push", app__py=APP, Dockerfile=SMALL)
    with running_registry(user="me", password="geheim") as registry:
        tag = f"{registry.host}/fk-test-push:1"
        done = images.build("--tag", tag, "--push", folder=folder)
        assert done.code == 1
        assert f"{tag} could not be pushed" in done.err
        assert f"log in: docker login {registry.host}" in done.err
        assert read_images(folder) == {}
        subprocess.run(
            ["docker", "login", "--username", "me", "--password-stdin", registry.host],
            input="geheim", text=True, env=images.environment, capture_output=True, check=True,
        )  # fmt: skip
        assert images.build("--tag", tag, "--push", folder=folder).code == 0
        images.docker("logout", registry.host)
        images.docker("rmi", tag)


def test_a_registry_that_is_not_there_is_named(images, make_project):
    folder = make_project("fk-test-push", app__py=APP, Dockerfile=SMALL)
    done = images.build("--tag", "127.0.0.1:9/fk-test-push:1", "--push", folder=folder)
    assert done.code == 1
    assert "check that 127.0.0.1:9 can be reached from here" in done.err
    images.docker("rmi", "127.0.0.1:9/fk-test-push:1")


def test_a_project_can_have_another_python(images, make_project):
    script = [sys.executable, str(SCRIPTS / "standins.py"), "3.12"]
    made = subprocess.run(script, env=images.environment, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(made.stderr.strip())  # a second Python is no part of the set-up
    folder = make_project("fk-test-py", app__py=APP)
    (folder / ".python-version").write_text("3.12\n")
    pinned = PYTHON_IMAGES["3.12"]
    swap = ["--build-context", f"{pinned}=docker-image://{pinned.partition('@')[0]}"]
    done = images.flashkit("build", "--tag", "fk-test-py:1", "--", *images.build_options, *swap, folder=folder)
    assert done.code == 0, done.out + done.err
    assert "building flashkit-worker:0.1.0-cpu-py3.12" in done.out
    look = "import runpod, sys; print(sys.version_info[:2])"
    assert images.docker("run", "--rm", "fk-test-py:1", "python", "-c", look).strip() == "(3, 12)"

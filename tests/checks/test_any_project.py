"""No project, however odd, makes a rule fail: a check that ends with a traceback checks nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashkit.catalog import CPU_FLAVORS, DataCenter, GpuPool, GpuType
from flashkit.checks.project import (
    Blocking,
    Call,
    Code,
    Endpoint,
    Environment,
    FanOut,
    Handler,
    LocalModel,
    LocalRun,
    Place,
    Project,
)  # fmt: skip
from flashkit.checks.running import check_projects
from flashkit.checks.sarif import to_json, to_sarif
from flashkit.spec import EndpointSpec, EngineSpec, Kind, NetworkVolume, ScalerType, Weights, WorkerBounds

NAMES = ("agent", "llm", "tool")
PLACES = st.builds(Place, st.sampled_from(["app.py", "tools/web.py"]), st.integers(1, 99), st.integers(0, 120))
ENV = st.dictionaries(
    st.sampled_from(["RUNPOD_INIT_TIMEOUT", "HEALTH_CHECK_PATH", "FLASHKIT_STATE", "HF_TOKEN", "OTEL_X", "A"]),
    st.text(max_size=40), max_size=3,
)  # fmt: skip
VOLUMES = st.lists(
    st.builds(
        NetworkVolume, st.sampled_from(["a", "b"]), st.integers(10, 4096), st.none() | st.sampled_from(DataCenter)
    ),
    max_size=3,
)
ARGUMENTS = st.fixed_dictionaries({}, optional={
    "tensor_parallel_size": st.integers(1, 8), "max_num_seqs": st.integers(1, 512),
    "max_model_len": st.integers(-1, 10**6), "dtype": st.sampled_from(["auto", "half"]),
    "quantization": st.sampled_from(["awq", "fp8", "gptq_marlin", "odd", None]),
    "gpu_memory_utilization": st.floats(0.1, 1), "kv_cache_dtype": st.sampled_from(["auto", "fp8"]),
})  # fmt: skip
WEIGHTS = st.builds(
    Weights, st.sampled_from(["org/Model-8B", "org/Model-8x22B-FP8", "org/model"]),
    st.none() | st.sampled_from(["main", "0" * 40]),
)  # fmt: skip
ENGINES = st.builds(
    lambda kind, weights, arguments: EngineSpec(kind, weights, {"arguments": arguments} if kind == "vllm" else {}),
    st.sampled_from(["vllm", "scripted", "embedding"]), st.none() | WEIGHTS, ARGUMENTS,
)  # fmt: skip
CONFIG_VALUES = st.none() | st.integers(-1, 200_000) | st.booleans() | st.text(max_size=5)
CONFIGS = st.dictionaries(
    st.sampled_from(["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "num_key_value_heads",
                     "torch_dtype", "quantization_config", "text_config", "kv_lora_rank", "max_position_embeddings"]),
    CONFIG_VALUES | st.dictionaries(st.just("quant_method"), st.text(max_size=8)),
)  # fmt: skip


@st.composite
def specs(draw: st.DrawFn, name: str) -> EndpointSpec:
    kind = draw(st.sampled_from(Kind))
    has_gpu = kind in (Kind.GPU, Kind.EMBEDDING) or (kind is Kind.ORCHESTRATOR and draw(st.booleans()))
    engine = draw(ENGINES) if kind is Kind.GPU and draw(st.booleans()) else None
    if kind is Kind.EMBEDDING:
        engine = EngineSpec("embedding", draw(WEIGHTS))
    is_balanced = kind in (Kind.CPU, Kind.GPU) and engine is None and draw(st.booleans())
    gpus = st.lists(st.sampled_from([*GpuType, *GpuPool]), min_size=1, max_size=4)
    low, high = sorted(draw(st.tuples(st.integers(0, 9), st.integers(1, 9))))
    volumes = draw(VOLUMES)
    places = draw(st.lists(st.sampled_from(DataCenter), max_size=3))
    needed = [volume.datacenter for volume in volumes if volume.datacenter] if places else []
    return EndpointSpec(
        name=name, kind=kind,
        gpu=tuple(draw(gpus)) if has_gpu else (),
        cpu=None if has_gpu else draw(st.sampled_from(CPU_FLAVORS)),
        gpu_count=draw(st.integers(1, 8)),
        workers=WorkerBounds(low, max(high, 1)),
        idle_timeout=draw(st.integers(1, 3600)),
        execution_timeout_ms=draw(st.integers(5_000, 330_000 if is_balanced else 604_800_000)),
        concurrency=draw(st.integers(1, 128)),
        scaler_type=ScalerType.REQUEST_COUNT,
        flashboot=draw(st.booleans()),
        volumes=tuple(volumes), datacenters=(*places, *needed),
        env=draw(ENV), engine=engine, load_balanced=is_balanced,
    )  # fmt: skip


CODES = st.none() | st.builds(
    Code,
    options=st.frozensets(st.sampled_from(["execution_timeout_ms", "concurrency"])),
    is_complete=st.booleans(),
    handlers=st.tuples() | st.tuples(st.builds(
        Handler, st.just("run"), PLACES, st.booleans(), st.booleans(), st.just(("x",)), st.just(frozenset({"bytes"})),
    )),
    calls=st.tuples() | st.tuples(st.builds(
        Call, st.sampled_from([*NAMES, "unknown"]), PLACES, st.booleans(), st.booleans(),
        st.none() | st.floats(-1, 1e9),
    )),
    fan_outs=st.tuples() | st.tuples(st.builds(
        FanOut, st.sampled_from([*NAMES, "unknown"]), PLACES, st.integers(1, 99), st.booleans(),
    )),
    blocking=st.tuples() | st.tuples(st.builds(Blocking, st.just("time.sleep"), PLACES, st.just("x"))),
    has_health=st.booleans(),
)  # fmt: skip


@st.composite
def projects(draw: st.DrawFn) -> Project:
    def endpoint(name: str) -> Endpoint:
        spec = draw(specs(name))
        return Endpoint(
            spec=spec, place=draw(PLACES), code=draw(CODES), env={**draw(ENV), **spec.env},
            routes=draw(st.sampled_from([(), ({"method": "GET", "path": "/a"},), ({"method": "*"},)])),
            local_run=draw(st.sampled_from(LocalRun)), is_plain_handler=draw(st.booleans()),
            has_model_cache=draw(st.booleans()),
        )  # fmt: skip

    files = st.dictionaries(
        st.sampled_from(["Dockerfile", ".dockerignore", ".env", ".runpod/hub.json", ".runpod/tests.json",
                         "requirements.txt", "app.py", ".gitignore", "x.Dockerfile"]),
        st.text(max_size=60)
        | st.sampled_from(["FROM a\nCOPY . .\n", "[]", '{"config": []}', '{"config": {"runsOn": "GPU"}}']),
        max_size=4,
    )  # fmt: skip
    models = st.dictionaries(
        st.sampled_from(["org/Model-8B", "org/model"]),
        st.builds(LocalModel, CONFIGS, st.integers(0, 10**12), st.just("models/config.json")), max_size=2,
    )  # fmt: skip
    return Project(
        place=Place("app.py"), environment=draw(st.sampled_from(Environment)),
        endpoints=tuple(endpoint(name) for name in NAMES), files=draw(files), models=draw(models),
    )  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(projects())
def test_any_project_gets_a_report(project: Project):
    report = check_projects([project], project.environment)
    for finding in report.findings:
        message: Any = finding.message
        assert message
        assert "None" not in message
    assert to_json(report)["summary"] == {
        severity: sum(finding.severity == severity for finding in report.findings)
        for severity in ("error", "warning", "note")
    }
    assert to_sarif(report, version="0")["runs"]

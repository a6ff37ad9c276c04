"""The four decorators: what they give back, what they refuse, and where a refusal points."""

import functools
import inspect

import pytest

import flashkit
from flashkit import (
    VLLM,
    DefinitionError,
    Embedding,
    Endpoint,
    GpuPool,
    GpuType,
    Kind,
    NetworkVolume,
    ScalerType,
    Weights,
    cpu_endpoint,
    embedding_endpoint,
    gpu_endpoint,
    orchestrator_endpoint,
)


def _refused(build, *args, **options):
    with pytest.raises(DefinitionError) as caught:
        build(*args, **options)
    return caught.value


async def agent(session, question: str) -> str:
    return question


def shout(text: str, times: int = 2) -> str:
    """Say it loudly."""
    return text.upper() * times


async def vectors(texts: list[str], embed) -> list[float]:
    return await embed(texts)


def test_calling_a_decorated_function_just_calls_it():
    endpoint = cpu_endpoint()(shout)
    assert endpoint("a") == "AA"
    assert endpoint("a", times=3) == "AAA"


async def test_calling_a_decorated_async_function_gives_its_coroutine():
    endpoint = orchestrator_endpoint()(agent)
    assert await endpoint(None, "why") == "why"


def test_calling_a_decorated_class_builds_it():
    @gpu_endpoint(gpu="A100")
    class Model:
        def run(self, text: str) -> str:
            return text

    assert Model().run("a") == "a"


def test_an_endpoint_looks_like_the_function_it_wraps():
    endpoint = cpu_endpoint()(shout)
    assert (endpoint.__name__, endpoint.__doc__, endpoint.__module__) == ("shout", "Say it loudly.", __name__)
    assert endpoint.__wrapped__ is shout
    assert inspect.signature(endpoint) == inspect.signature(shout)
    assert repr(endpoint) == "<cpu endpoint 'shout' (text: str, times: int = 2)>"


def test_each_decorator_makes_its_kind():
    made = [
        cpu_endpoint()(shout),
        gpu_endpoint(gpu="L4")(shout),
        embedding_endpoint(gpu="L4", weights=Weights("a/b"))(vectors),
        orchestrator_endpoint()(agent),
    ]
    assert [endpoint.spec.kind for endpoint in made] == [Kind.CPU, Kind.GPU, Kind.EMBEDDING, Kind.ORCHESTRATOR]
    assert all(isinstance(endpoint, Endpoint) for endpoint in made)


def test_the_name_comes_from_the_function_or_class():
    def _fetch_page(): ...

    class WebSearch:
        def run(self): ...

    assert cpu_endpoint()(_fetch_page).name == "fetch-page"
    assert cpu_endpoint()(WebSearch).name == "websearch"
    assert cpu_endpoint(name="other")(_fetch_page).name == "other"


def test_one_decorator_can_make_several_endpoints():
    def other(): ...

    tool = cpu_endpoint(cpu="cpu5c-4-8")
    assert [tool(shout).name, tool(other).name] == ["shout", "other"]
    named = cpu_endpoint(name="same")
    assert [named(shout).name, named(other).name] == ["same", "same"]


def test_options_reach_the_spec():
    spec = gpu_endpoint(
        gpu=["L40S", GpuType.NVIDIA_H200, "ampere_80"],
        gpu_count=2,
        workers=(1, 10),
        idle_timeout=300,
        execution_timeout_ms=60_000,
        concurrency=4,
        datacenter=["us-ga-2", flashkit.DataCenter.EU_RO_1],
        volume=NetworkVolume("models", size=50),
        env={"LEVEL": "debug"},
        min_cuda_version="12.8",
        scaler_type="REQUEST_COUNT",
        scaler_value=2,
        flashboot=False,
    )(shout).spec
    assert spec.gpu == (GpuType.NVIDIA_L40S, GpuType.NVIDIA_H200, GpuPool.AMPERE_80)
    assert (spec.gpu_count, spec.idle_timeout, spec.execution_timeout_ms, spec.concurrency) == (2, 300, 60_000, 4)
    assert (spec.workers.min, spec.workers.max, spec.scaler_value, spec.flashboot) == (1, 10, 2, False)
    assert spec.datacenters == (flashkit.DataCenter.US_GA_2, flashkit.DataCenter.EU_RO_1)
    assert (spec.volumes, spec.env) == ((NetworkVolume("models", size=50),), {"LEVEL": "debug"})
    assert (spec.min_cuda_version, spec.scaler_type) == ("12.8", ScalerType.REQUEST_COUNT)


def test_an_orchestrator_runs_on_a_cpu_unless_it_names_a_gpu():
    assert orchestrator_endpoint()(agent).spec.cpu == "cpu5c-2-4"
    with_gpu = orchestrator_endpoint(gpu="A100")(agent).spec
    assert with_gpu.gpu
    assert with_gpu.cpu is None


@pytest.mark.parametrize(
    ("decorator", "options", "nearest"),
    [
        (cpu_endpoint, {"idle_timeuot": 5}, "idle_timeout"),
        (gpu_endpoint, {"gpus": "A100"}, "gpu"),
        (gpu_endpoint, {"data_center": "US-GA-2"}, "datacenter"),
        (orchestrator_endpoint, {"executiontimeout_ms": 1}, "execution_timeout_ms"),
    ],
)
def test_an_unknown_option_names_the_nearest_one(decorator, options, nearest):
    report = _refused(decorator, **options).report
    assert f"has no option {next(iter(options))!r}; did you mean {nearest!r}?" in report.message
    assert "options: " in report.hint


def test_an_unknown_option_like_no_other_lists_them_all():
    report = _refused(cpu_endpoint, zzz=1).report
    assert "did you mean" not in report.message
    assert "idle_timeout" in report.hint
    assert "unknown" not in report.hint


def test_a_refusal_points_at_the_line_of_the_decorator():
    line = inspect.currentframe().f_lineno + 1
    report = _refused_here().report
    assert report.where.startswith("test_decorators.py:")
    assert int(report.where.partition(":")[2]) > line


def _refused_here():
    with pytest.raises(DefinitionError) as caught:
        gpu_endpoint(gpu="A10O")
    return caught.value


@pytest.mark.parametrize(
    ("decorator", "options", "message"),
    [
        (gpu_endpoint, {"gpu": "A10O"}, "did you mean 'A100'"),
        (gpu_endpoint, {"gpu": 4090}, "is not a GPU name"),
        (gpu_endpoint, {"gpu": {"A100"}}, "is not a GPU name"),
        (gpu_endpoint, {"gpu": "any"}, "lets the platform choose"),
        (gpu_endpoint, {"gpu": "A100", "min_cuda_version": "9"}, "min_cuda_version='9' is not known"),
        (cpu_endpoint, {"cpu": "cpu9-1-1"}, "is not known"),
        (cpu_endpoint, {"datacenter": "US-XX-1"}, "datacenter='US-XX-1' is not known"),
        (cpu_endpoint, {"workers": None}, "is not a pair"),
        (cpu_endpoint, {"workers": 2.5}, "is not a pair"),
        (cpu_endpoint, {"scaler_type": "FAST"}, "scaler_type='FAST' is not known"),
    ],
)
def test_an_option_that_cannot_work_is_refused_before_the_function_is_seen(decorator, options, message):
    error = _refused(decorator, **options)
    assert message in str(error)
    assert error.report.where.startswith("test_decorators.py:")


@pytest.mark.parametrize(
    ("decorator", "options", "target", "message"),
    [
        (gpu_endpoint, {}, shout, "pins no GPU"),
        (cpu_endpoint, {"name": "Not A Name"}, shout, "cannot be an endpoint's name"),
        (cpu_endpoint, {"env": {"A": 1}}, shout, "is not a string"),
        (cpu_endpoint, {"env": ["A=1"]}, shout, "has the wrong type"),
        (cpu_endpoint, {"volume": "models"}, shout, "has the wrong type"),
        (cpu_endpoint, {}, lambda text: text, "cannot be an endpoint's name"),
        (cpu_endpoint, {"name": "a"}, "not callable", "is not a function or class"),
        (cpu_endpoint, {"name": "a"}, max, "parameters of endpoint 'a' cannot be found out"),
        (orchestrator_endpoint, {"gpu": "A100", "cpu": "cpu5c-2-4"}, agent, "either gpu= or cpu="),
        (orchestrator_endpoint, {}, shout, "parameter named `session`"),
        (orchestrator_endpoint, {}, vectors, "parameter named `session`"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_where_it_is_decorated(decorator, options, target, message):
    error = _refused(decorator(**options), target)
    assert message in str(error)
    assert error.report.where.startswith("test_decorators.py:")


@pytest.mark.parametrize(
    ("decorator", "options", "message"),
    [
        (embedding_endpoint, {"weights": Weights("a/b")}, "pins no GPU"),
        (embedding_endpoint, {"weights": "a/b", "gpu": "L4"}, "weights='a/b'"),
        (embedding_endpoint, {"gpu": "L4"}, "has no embedding model"),
        (embedding_endpoint, {"gpu": "L4", "engine": VLLM(Weights("a/b"))}, "has no embedding model"),
        (embedding_endpoint, {"weights": Weights("a/b"), "engine": Embedding(Weights("a/b"))}, "both name a model"),
        (gpu_endpoint, {"engine": VLLM(Weights("a/b"))}, "pins no GPU"),
        (gpu_endpoint, {"engine": "vllm", "gpu": "L4"}, "engine='vllm'"),
    ],
)
def test_a_model_that_cannot_work_is_refused_where_it_is_declared(decorator, options, message):
    error = _refused(decorator, **options)
    assert message in str(error)
    assert error.report.where.startswith("test_decorators.py:")


def test_an_engine_alone_is_an_endpoint():
    llm = gpu_endpoint(name="llm", gpu="A100", engine=VLLM(Weights("a/b"), max_model_len=8192))
    assert isinstance(llm, Endpoint)
    assert llm.definition.is_engine
    assert llm.definition.where.startswith("test_decorators.py:")
    assert llm.spec.engine == VLLM(Weights("a/b"), max_model_len=8192)
    assert llm.contract.example_input()["prompt"]


def test_a_handler_gets_the_engine_that_callers_never_send():
    @gpu_endpoint(gpu="A100", engine=VLLM(Weights("a/b")))
    async def summarise(text: str, engine) -> str:
        return f"{engine}: {text}"

    assert (summarise.name, summarise.definition.injected) == ("summarise", "engine")
    assert summarise.definition.signature == "(text: str)"
    assert not summarise.definition.is_engine


def test_a_sync_function_with_a_session_is_refused():
    def sync_agent(session, question: str): ...

    assert "must be an async function" in str(_refused(orchestrator_endpoint(), sync_agent))


def test_an_orchestrator_may_be_wrapped_by_another_decorator():
    @functools.wraps(agent)
    def timed(*args, **kwargs):
        return agent(*args, **kwargs)

    assert str(orchestrator_endpoint()(timed).definition.signature) == "(question: str)"


def test_parameters_that_a_caller_cannot_name_are_refused():
    def positional(text, /): ...
    def many(*texts): ...

    for function in (positional, many):
        assert "has no name that a caller could send" in str(_refused(cpu_endpoint(), function))


def test_a_class_without_a_method_for_jobs_is_refused():
    class Empty:
        def setup(self): ...
        def _helper(self): ...

    class Two:
        def first(self): ...
        def second(self): ...

    assert "has no public method" in str(_refused(cpu_endpoint(), Empty))
    refusal = str(_refused(cpu_endpoint(), Two))
    assert "has first, second" in refusal
    assert "name the method that handles a job `run`" in refusal


def test_the_only_public_method_handles_jobs_and_run_wins_over_others():
    class One:
        def setup(self): ...
        def handle(self, text: str): ...

    class Base:
        def other(self): ...
        def run(self, number: int): ...

    class Derived(Base):
        def third(self): ...

    assert cpu_endpoint()(One).definition.signature == "(text: str)"
    assert cpu_endpoint()(Derived).definition.signature == "(number: int)"


def test_injected_parameters_are_not_part_of_the_signature():
    assert embedding_endpoint(gpu="L4", weights=Weights("a/b"))(vectors).definition.signature == "(texts: list[str])"
    assert orchestrator_endpoint()(agent).definition.signature == "(question: str)"


def test_a_parameter_named_session_is_an_ordinary_one_elsewhere():
    def lookup(session: str, embed: int = 1): ...

    assert cpu_endpoint()(lookup).definition.signature == "(session: str, embed: int = 1)"


def test_an_embedding_function_need_not_take_the_model():
    def plain(texts: list[str]) -> int:
        return len(texts)

    assert embedding_endpoint(gpu="L4", weights=Weights("a/b"))(plain).definition.injected is None


def test_the_place_of_a_definition_is_the_users_function_also_when_wrapped():
    @functools.wraps(shout)
    def wrapped(*args, **kwargs):
        return shout(*args, **kwargs)

    line = shout.__code__.co_firstlineno
    assert cpu_endpoint()(wrapped).definition.where == f"test_decorators.py:{line}"


@pytest.mark.parametrize("decorator", [cpu_endpoint, gpu_endpoint, embedding_endpoint, orchestrator_endpoint])
def test_every_option_is_explained_in_the_docstring(decorator):
    parameters = inspect.signature(decorator).parameters.values()
    options = [option.name for option in parameters if option.kind is option.KEYWORD_ONLY]
    lines = [line.strip() for line in decorator.__doc__.splitlines()]
    assert [name for name in options if not any(line.startswith(f"{name}: ") for line in lines)] == []

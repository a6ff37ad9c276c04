"""Load-balanced endpoints when the app file is imported: what a route makes of a decorator, and what is refused."""

import pytest

import flashkit
from flashkit import DefinitionError, EndpointSpec, ScalerType, cpu_endpoint, embedding_endpoint, gpu_endpoint
from flashkit.http_routes import HttpDefinition
from flashkit.settings import Settings
from flashkit.worker.http.description import describe_routes
from flashkit.worker.main import list_endpoints


def index() -> None: ...


async def app(scope, receive, send): ...


def refused(build, *args, **options):
    with pytest.raises(DefinitionError) as caught:
        build(*args, **options)
    report = caught.value.report
    assert report.hint
    assert report.where
    return report


def test_a_route_leaves_its_function_as_it_is():
    api = cpu_endpoint(name="api")
    assert api.get("/")(index) is index
    assert not hasattr(index, "definition")


def test_the_first_route_makes_it_load_balanced_with_defaults_of_its_own():
    api = gpu_endpoint(name="api", gpu="A100", workers=(1, 4))
    assert not api.is_load_balanced
    api.post("/")(index)
    spec = api.spec
    assert api.is_load_balanced
    assert (spec.load_balanced, spec.name, spec.workers.max) == (True, "api", 4)
    assert (spec.scaler_type, spec.execution_timeout_ms, spec.concurrency) == (ScalerType.REQUEST_COUNT, 330_000, 32)
    assert EndpointSpec.from_dict(spec.to_dict()) == spec


def test_a_queue_based_endpoint_keeps_the_other_defaults():
    endpoint = cpu_endpoint()(index)
    spec = endpoint.spec
    assert (spec.load_balanced, spec.scaler_type) == (False, ScalerType.QUEUE_DELAY)
    assert (spec.execution_timeout_ms, spec.concurrency) == (600_000, 1)


def test_what_is_given_goes_before_the_defaults():
    api = cpu_endpoint(name="api", execution_timeout_ms=10_000, concurrency=1, scaler_type="REQUEST_COUNT")
    api.get("/")(index)
    assert (api.spec.execution_timeout_ms, api.spec.concurrency) == (10_000, 1)


def test_mounting_is_enough_and_gives_the_endpoint_back():
    site = cpu_endpoint(name="site").mount(app)
    assert site.is_load_balanced
    assert site.definition.signature == "(/…)"


def test_an_app_lists_it_once_and_lists_no_decorator_that_made_jobs():
    module = type(flashkit)("module")
    module.api = module.alias = cpu_endpoint(name="api").mount(app)
    module.tool = cpu_endpoint()
    module.made = module.tool(index)
    found = list_endpoints(module)
    assert list(found) == ["api", "made"]
    assert isinstance(found["api"].definition, HttpDefinition)


def test_routes_and_jobs_exclude_each_other():
    api = cpu_endpoint(name="api")
    api.get("/")(index)
    assert "has routes, so it cannot handle jobs too" in refused(api, index).message
    tool = cpu_endpoint(name="tool")
    tool(index)
    for make in (lambda: tool.get("/"), lambda: tool.mount(app), lambda: tool.setup(index)):
        with pytest.raises(DefinitionError, match="is a queue-based endpoint"):
            make()


def test_a_decorator_makes_several_queue_based_endpoints_as_before():
    tool = cpu_endpoint(workers=3)
    assert [tool(function).name for function in (index, app)] == ["index", "app"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": None}, "needs a name of its own"),
        ({"scaler_type": "QUEUE_DELAY"}, "needs a queue"),
        ({"execution_timeout_ms": 400_000}, "out of range"),
    ],
)
def test_options_that_need_a_queue_are_refused(options, words):
    api = cpu_endpoint(**{"name": "api", **options})
    report = refused(api.get, "/")
    assert words in report.message
    assert report.where.startswith("test_http_endpoint.py:")


def test_agents_and_embeddings_have_no_routes():
    vectors = embedding_endpoint(name="vectors", gpu="L4", weights=flashkit.Weights("a/b"))
    assert "cannot be load-balanced" in refused(vectors.get, "/").message
    assert "cannot be load-balanced" in refused(vectors.mount).message


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("items", "is not the path of a route"),
        ("/items?x=1", "is not the path of a route"),
        (7, "is not the path of a route"),
        ("/ping", "belongs to the platform"),
        ("/ping/", "belongs to the platform"),
        ("/{a", "cannot be read"),
        ("/{a:int}", "cannot be read"),
        ("/{}", "cannot be read"),
        ("/{a}/{a:path}", "has a parameter twice"),
        ("/{missing}", "has no parameter 'missing'"),
    ],
)
def test_paths_that_cannot_work_are_refused(path, words):
    api = cpu_endpoint(name="api")
    assert words in refused(api.get(path), lambda a=1: a).message


def test_functions_that_cannot_answer_are_refused():
    api = cpu_endpoint(name="api")
    assert "has no name that a request could send" in refused(api.get("/"), lambda *a: a).message
    assert "cannot answer GET /" in refused(api.get("/"), Settings).message
    assert "a function instead of a path" in refused(api.get, index).message


def test_a_route_is_there_once_whatever_its_parameters_are_called():
    api = cpu_endpoint(name="api")
    api.get("/items/{a}")(lambda a: a)
    api.post("/items/{a}")(lambda a: a)
    assert "twice: at " in refused(api.get("/items/{b}"), lambda b: b).message


def test_mounts_that_cannot_work_are_refused():
    api = cpu_endpoint(name="api").mount(app)
    assert "two applications" in refused(api.mount, app).message
    assert "no ASGI application" in refused(api.mount, "app").message
    assert "is not the path" in refused(api.mount, app, "v1").message


def test_one_function_speaks_of_health():
    api = cpu_endpoint(name="api")
    api.health(index)
    with pytest.raises(DefinitionError, match="two functions for its health"):
        api.health(index)


def test_a_description_shows_how_each_route_is_called():
    api = cpu_endpoint(name="api").mount(app, "/v1")

    @api.get("/items/{item_id}")
    async def read(item_id: int, q: str) -> str:
        """Read one item."""

    @api.post("/add")
    async def add(a: int, b: int = 1) -> int: ...

    shown = describe_routes(api.definition)
    assert shown[0] == {
        "method": "GET",
        "path": "/items/{item_id}",
        "example": "/items/1?q=text",
        "signature": "(item_id: int, q: str)",
        "description": "Read one item.",
        "where": shown[0]["where"],
    }
    assert (shown[1]["example"], shown[1]["body"]) == ("/add", {"a": 1})
    assert shown[2] == {"method": "*", "path": "/v1", "example": "/v1"}


def test_a_body_for_a_request_without_one_and_a_websocket_without_its_connection_are_refused():
    api = cpu_endpoint(name="api")

    @api.get("/items/{item_id}")
    def read(item_id: int, item: Settings) -> None: ...

    assert "such a request has no body" in refused(describe_routes, api.definition).message
    live = cpu_endpoint(name="live")

    @live.websocket("/")
    async def talk(text: str) -> None: ...

    assert "must be async and take the connection" in refused(describe_routes, live.definition).message


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://127.0.0.1:8484/v2", "http://127.0.0.1:8484/lb/api"),
        ("https://api.runpod.ai/v2", "https://abc123.api.runpod.ai"),
        ("https://proxy.example/runpod/v2", "https://proxy.example/runpod/lb/api"),
    ],
)
def test_an_endpoint_has_a_host_of_its_own_on_runpod_and_a_path_elsewhere(base, url):
    ids = {"api": "abc123"} if "runpod.ai" in base else {}
    assert Settings(base_url=base, endpoint_ids=ids).load_balanced_url("api") == url


@pytest.mark.parametrize("port", ["eighty", "0", "70000"])
def test_a_port_that_is_none_is_refused(port):
    settings = Settings.from_environment({"PORT": port})  # other programs have such a variable too
    with pytest.raises(flashkit.ConfigurationError, match=f"PORT='{port}' is not a port"):
        settings.listen_ports()


def test_health_is_answered_at_the_same_port_unless_another_is_named():
    assert Settings.from_environment({}).listen_ports() == (80, 80)
    assert Settings.from_environment({"PORT": "8000", "PORT_HEALTH": "8001"}).listen_ports() == (8000, 8001)


def test_a_worker_listens_on_every_address_on_a_platform_only():
    assert Settings.from_environment({}).http_host == "127.0.0.1"
    assert Settings.from_environment({"RUNPOD_POD_ID": "w1"}).http_host == "0.0.0.0"
    assert Settings.from_environment({"RUNPOD_POD_ID": "w1", "FLASHKIT_HTTP_HOST": "::1"}).http_host == "::1"

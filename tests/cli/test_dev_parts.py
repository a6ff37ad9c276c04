"""The parts of `flashkit dev` that decide something: files, projects, options, starts of workers."""

from pathlib import Path

import pytest

from flashkit.cli.emulation import Emulation, read_duration, read_each, read_speed
from flashkit.cli.hub import hub_environment, read_hub_tests
from flashkit.cli.projects import find_app, project_folder, read_sample
from flashkit.cli.starts import StartWatch, WorkersUnhealthy
from flashkit.cli.watching import FileKind, kind_of
from flashkit.emulator.events import LogLine, WorkerEvent
from flashkit.errors import InputError
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

WORKER_PROJECTS = Path(__file__).parents[1] / "handlers" / "worker_projects"


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("app.py", FileKind.CODE), ("a/b/c.py", FileKind.CODE), (".env", FileKind.SETTINGS),
        ("a/.env.local", FileKind.SETTINGS), ("settings.toml", FileKind.SETTINGS), ("pyproject.toml", FileKind.IMAGE),
        ("requirements-gpu.txt", FileKind.IMAGE), ("docker/Dockerfile.gpu", FileKind.IMAGE),
        ("setup.py", FileKind.IMAGE),
        ("notes.txt", None), (".hidden.py", None), (".venv/a.py", None), ("node_modules/a.py", None),
        ("__pycache__/a.py", None), ("../other/app.py", None), (".flashkit/x.toml", None),
    ],
)  # fmt: skip
def test_files_are_code_settings_or_what_an_image_is_built_from(tmp_path, name, kind):
    assert kind_of((tmp_path / name).resolve(), below=tmp_path.resolve()) is kind


def test_an_app_is_found_in_its_folder_or_below_src(tmp_path):
    assert find_app(tmp_path) is None
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "handler.py").touch()
    assert find_app(tmp_path) == tmp_path / "src" / "handler.py"
    (tmp_path / "rp_handler.py").touch()
    assert find_app(tmp_path) == tmp_path / "rp_handler.py"


def test_a_project_is_the_folder_above_src_where_its_files_are(tmp_path):
    app = tmp_path / "src" / "handler.py"
    app.parent.mkdir()
    assert project_folder(app) == tmp_path / "src"
    (tmp_path / "Dockerfile").touch()
    assert project_folder(app) == tmp_path
    assert project_folder(tmp_path / "other" / "app.py") == tmp_path / "other"


def test_samples_and_files_of_the_hub_are_read_as_they_are_meant():
    template = WORKER_PROJECTS / "template"
    assert read_sample(template / "src" / "handler.py") == {"prompt": "sample"}
    assert read_sample(WORKER_PROJECTS / "handler.py") is None
    assert hub_environment(template) == {"GREETING": "bonjour", "REPEAT": "2"}
    tests = read_hub_tests(template)
    assert [(test.name, test.timeout_s) for test in tests.tests] == [("greets", 60.0), ("as expected", 60)]
    assert tests.env == {"GREETING": "salut"}


# ---- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("10s", 10), ("5m", 300), ("1.5h", 5400), ("1d", 86_400)])
def test_durations_are_read_with_their_units(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "infs", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="is no time"):
        read_duration(text)


def test_speeds_are_read():
    assert (read_speed("60x"), read_speed("0.5")) == (60, 0.5)
    for text in ("0", "inf", "nanx", "x"):
        with pytest.raises(InputError, match="is no speed"):
            read_speed(text)


def test_an_option_holds_for_every_endpoint_or_for_those_that_are_named():
    assert read_each((), int, option="--x") is None
    assert read_each(("1", "2"), int, option="--x") == 2
    assert read_each(("a=1", "b=2"), int, option="--x") == {"a": 1, "b": 2}


def test_a_cold_start_that_is_no_time_is_refused():
    with pytest.raises(InputError, match="is no time"):
        Emulation(cold_starts=("-3",)).emulator_options()


# ---- starts of workers -------------------------------------------------------------------------------------


class Now:
    """A clock that stands where it is put."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def moment(what, worker="w1", detail="", endpoint="llm"):
    return WorkerEvent(endpoint, worker, what, detail)


def test_a_cold_start_lasts_from_its_first_phase_until_the_worker_is_ready():
    now = Now()
    watch = StartWatch(now)
    watch.notice(moment("initializing", detail="pulling the image"))
    now.seconds = 5.0
    watch.notice(moment("starting"))
    watch.notice(LogLine("llm", "w1", None, None, "up"))
    now.seconds = 8.0
    watch.notice(moment("ready"))
    now.seconds = 9.0
    watch.notice(moment("thawing"))
    watch.notice(moment("ready"))
    assert [(start.endpoint, start.worker_id, start.seconds) for start in watch.over(7.9)] == [("llm", "w1", 8.0)]
    assert watch.over(8.0) == []


SPEC = EndpointSpec(name="llm", kind=Kind.CPU, cpu="cpu3c-2-4", workers=WorkerBounds(1, 1))


async def test_a_worker_that_never_comes_up_is_waited_for_only_so_long():
    watch = StartWatch(Now())
    watch.notice(moment("starting"))
    with pytest.raises(WorkersUnhealthy, match=r"no worker of llm was ready within 0\.01 s"):
        await watch.wait_until_ready([SPEC], seconds=0.01)
    watch.notice(moment("ready"))
    await watch.wait_until_ready([SPEC], seconds=0.01)


async def test_workers_that_fail_their_checks_are_told_with_the_check():
    watch = StartWatch(Now())
    for number in range(3):
        watch.notice(moment("starting", f"w{number}"))
        watch.notice(moment("unhealthy", f"w{number}", "has_weights: no weights"))
        watch.notice(moment("exited", f"w{number}", "exit code 1"))
    with pytest.raises(WorkersUnhealthy, match="3 ended before they were ready, the first one with has_weights"):
        await watch.wait_until_ready([SPEC])

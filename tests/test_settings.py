"""The environment, read once: what is taken from where, and how wrong values are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashkit.errors import ConfigurationError
from flashkit.settings import DEFAULT_STATE_URL, DEV_FILE, RUNPOD_API_URL, Settings, find_dev_server


def write_record(folder: Path, text: str) -> None:
    (folder / DEV_FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / DEV_FILE).write_text(text)


def record_for(pid: int) -> str:
    return json.dumps({"url": "http://127.0.0.1:8484", "pid": pid})


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_without_any_variable_no_platform_is_configured(tmp_path):
    settings = Settings.from_environment({}, folder=tmp_path)
    assert settings.base_url is None
    with pytest.raises(ConfigurationError, match="nowhere to send the job") as caught:
        settings.endpoint_url("agent")
    assert "RUNPOD_API_KEY" in (caught.value.report.hint or "")


def test_an_account_key_alone_means_runpod(tmp_path):
    settings = Settings.from_environment({"RUNPOD_API_KEY": "secret"}, folder=tmp_path)
    assert settings.endpoint_url("abc123") == f"{RUNPOD_API_URL}/abc123"


def test_a_running_dev_server_of_a_folder_above_is_found_and_preferred_to_runpod(tmp_path):
    write_record(tmp_path, record_for(os.getpid()))
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    settings = Settings.from_environment({"RUNPOD_API_KEY": "secret"}, folder=below)
    assert settings.endpoint_url("agent") == "http://127.0.0.1:8484/v2/agent"


def test_the_store_of_a_running_dev_server_is_used_unless_another_one_is_named(tmp_path):
    record = {"url": "http://127.0.0.1:8484", "pid": os.getpid(), "state": "unix:///run/s.sock", "namespace": "app"}
    write_record(tmp_path, json.dumps(record))
    settings = Settings.from_environment({}, folder=tmp_path)
    assert (settings.state_url, settings.state_namespace) == ("unix:///run/s.sock", "app")
    assert not settings.is_state_shared
    named = Settings.from_environment({"FLASHKIT_STATE": "redis://h/0"}, folder=tmp_path)
    assert (named.state_url, named.state_namespace, named.is_state_shared) == ("redis://h/0", "default", True)
    assert Settings.from_environment({"FLASHKIT_NAMESPACE": "b"}, folder=tmp_path).state_namespace == "b"
    elsewhere = Settings.from_environment({"RUNPOD_ENDPOINT_BASE_URL": "https://p.example/v2"}, folder=tmp_path)
    assert elsewhere.state_url == DEFAULT_STATE_URL


@pytest.mark.parametrize("text", ["soon", "0.5", "4000", "nan"])
def test_a_lease_is_a_number_of_seconds(tmp_path, text):
    assert Settings.from_environment({"FLASHKIT_LEASE_SECONDS": "7.5"}, folder=tmp_path).lease_seconds == 7.5
    with pytest.raises(ConfigurationError, match="FLASHKIT_LEASE_SECONDS"):
        Settings.from_environment({"FLASHKIT_LEASE_SECONDS": text}, folder=tmp_path)


def test_an_explicit_base_url_is_preferred_to_everything(tmp_path):
    write_record(tmp_path, record_for(os.getpid()))
    env = {"RUNPOD_ENDPOINT_BASE_URL": "https://proxy.example/v2/", "RUNPOD_API_KEY": "secret"}
    assert Settings.from_environment(env, folder=tmp_path).endpoint_url("agent") == "https://proxy.example/v2/agent"


def test_the_record_of_a_dead_dev_server_is_passed_over(tmp_path):
    write_record(tmp_path, record_for(dead_pid()))
    assert find_dev_server(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"url": "http://127.0.0.1:1"}', '{"pid": 1}', '{"pid": "x"}'])
def test_a_damaged_record_is_passed_over(tmp_path, text):
    write_record(tmp_path, text)
    assert find_dev_server(tmp_path) is None


def test_endpoint_names_are_mapped_to_platform_ids(tmp_path):
    env = {"RUNPOD_API_KEY": "secret", "FLASHKIT_ENDPOINTS": '{"agent": "x1y2z3"}'}
    settings = Settings.from_environment(env, folder=tmp_path)
    assert settings.endpoint_url("agent") == f"{RUNPOD_API_URL}/x1y2z3"
    assert settings.endpoint_url("other") == f"{RUNPOD_API_URL}/other"


@pytest.mark.parametrize("text", ["agent=x1y2", "[]", '{"agent": 1}'])
def test_a_wrong_map_of_endpoints_is_refused_by_name_and_value(tmp_path, text):
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({"FLASHKIT_ENDPOINTS": text}, folder=tmp_path)
    assert "FLASHKIT_ENDPOINTS" in caught.value.report.message
    assert repr(text) in caught.value.report.message


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("no", False)])
def test_flags_have_the_usual_spellings(tmp_path, text, value):
    assert Settings.from_environment({"FLASHKIT_TRACEBACKS": text}, folder=tmp_path).show_tracebacks is value


def test_a_wrong_flag_is_refused_by_name_and_value(tmp_path):
    with pytest.raises(ConfigurationError, match="FLASHKIT_TRACEBACKS='perhaps'"):
        Settings.from_environment({"FLASHKIT_TRACEBACKS": "perhaps"}, folder=tmp_path)


def test_the_account_key_is_not_shown():
    assert "secret" not in repr(Settings(api_key="secret"))

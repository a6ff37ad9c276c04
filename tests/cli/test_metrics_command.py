"""`flashkit metrics`: the files for Prometheus and Grafana."""

from __future__ import annotations

import json

import yaml

from flashkit.cli import run_command_line


def test_the_files_are_written_for_the_platform_that_is_named(tmp_path, capsys):
    folder = tmp_path / "observability"
    assert run_command_line(["metrics", str(folder), "--target", "10.0.0.1:9999"]) == 0
    assert "wrote prometheus.yml, alerts.yml, dashboard.json" in capsys.readouterr().out
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["10.0.0.1:9999"]
    assert config["rule_files"] == ["alerts.yml"]
    assert yaml.safe_load((folder / "alerts.yml").read_text())["groups"]
    assert json.loads((folder / "dashboard.json").read_text())["uid"] == "flashkit"


def test_without_a_name_the_running_platform_is_meant_or_the_usual_port(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["metrics", "usual"]) == 0
    assert "127.0.0.1:8484" in (tmp_path / "usual" / "prometheus.yml").read_text()


def test_files_that_are_there_are_not_written_over_unasked(tmp_path, capsys):
    (tmp_path / "alerts.yml").write_text("mine")
    assert run_command_line(["metrics", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "has alerts.yml already" in error
    assert (tmp_path / "alerts.yml").read_text() == "mine"
    assert not (tmp_path / "prometheus.yml").exists()
    assert run_command_line(["metrics", str(tmp_path), "--force"]) == 0
    assert (tmp_path / "alerts.yml").read_text() != "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command_line(["metrics", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err

"""Runs the blocks of one page in a folder of its own: Python here, commands and `flashkit dev` as processes."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from doc_pages import Block
from sybil import Example

DOCUMENTED_URL = "http://127.0.0.1:8484"
PATIENCE_SECONDS = 60.0


class PageRun:
    """One page being followed from top to bottom."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self._printed: str | None = None
        self._background: subprocess.Popen[str] | None = None
        self._dev: subprocess.Popen[bytes] | None = None
        self._dev_url = DOCUMENTED_URL
        self._marks: Mapping[str | None, Callable[[Block], None]] = {
            "skip": _ignore,
            "dev": self._start_dev,
            "run": self._run_shell,
            "fails": self._run_failing_shell,
            "background": self._start_shell,
            "kill": self._kill_worker,
            "output": self._compare_output,
        }

    def evaluate(self, example: Example) -> None:
        """Do with a block what its language and its comment say."""
        block: Block = example.parsed
        if block.mark is not None:
            self._marks[block.mark](block)
        elif block.title:
            self._write_file(block)
        elif block.language == "python":
            self._run_python(block)

    def close(self) -> None:
        """End what the page started, as Ctrl-C would."""
        for process in (self._background, self._dev):
            if process is None:
                continue
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]

    def dev_log(self) -> str:
        """Return what `flashkit dev` printed so far."""
        return (self.folder / "dev.log").read_text()

    def _write_file(self, block: Block) -> None:
        assert block.title
        path = self.folder / block.title
        is_change = self._dev is not None and path.exists()
        seen = len(self.dev_log()) if is_change else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.source)
        if is_change:
            _wait_for(lambda: f"changed {path.name}: " in self.dev_log()[seen:], f"{block}: no reload", self.dev_log)
        if path.suffix == ".py" and "serverless.start" not in block.source:
            sys.modules.pop(path.stem, None)
            importlib.invalidate_caches()
            importlib.import_module(path.stem)

    def _run_python(self, block: Block) -> None:
        source = block.source.replace(DOCUMENTED_URL, self._dev_url)
        code = compile("\n" * block.line + source, str(block.page), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, self.namespace)
        self._printed = printed.getvalue()

    def _run_shell(self, block: Block) -> None:
        done = self._shell(block)
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        self._printed = done.stdout

    def _run_failing_shell(self, block: Block) -> None:
        done = self._shell(block)
        assert done.returncode not in (0, 126, 127), f"{block} succeeded:\n{done.stdout}"
        self._printed = done.stdout + done.stderr

    def _shell(self, block: Block) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-ec", block.source.replace(DOCUMENTED_URL, self._dev_url)]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._env(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def _start_shell(self, block: Block) -> None:
        command = ["bash", "-ec", f"exec {block.source.strip()}"]
        self._background = subprocess.Popen(
            command, cwd=self.folder, env=self._env(), stdout=subprocess.PIPE, text=True
        )

    def _start_dev(self, block: Block) -> None:
        name, *arguments = block.source.split()
        assert name == "flashkit", f"{block} does not start `flashkit dev`"
        command = [sys.executable, "-c", "from flashkit.cli import main; main()", *arguments, "--port", "0"]
        with (self.folder / "dev.log").open("wb") as log:
            self._dev = subprocess.Popen(command, cwd=self.folder, env=self._env(), stdout=log, stderr=log)
        record = self.folder / ".flashkit" / "dev.json"
        _wait_for(record.exists, f"{block}: `flashkit dev` does not come up", self.dev_log)
        self._dev_url = orjson.loads(record.read_bytes())["url"]

    def _kill_worker(self, block: Block) -> None:
        pattern = re.compile(r"in process (\d+)")
        _wait_for(lambda: pattern.search(self.dev_log()), f"{block}: no worker printed its number", self.dev_log)
        os.kill(int(pattern.findall(self.dev_log())[-1]), signal.SIGKILL)

    def _compare_output(self, block: Block) -> None:
        if self._background is not None:
            self._printed, _ = self._background.communicate(timeout=PATIENCE_SECONDS)
            self._background = None
        assert self._printed is not None, f"{block}: nothing was run before"
        printed = _normal_lines(self._printed.replace(self._dev_url, DOCUMENTED_URL))
        expected = _normal_lines(block.source)
        if not _matches(expected, printed):
            raise AssertionError(f"{block} shows another output\n" + "\n".join(difflib.ndiff(expected, printed)))

    def _env(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)
        return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def running_page(folder: Path) -> Iterator[PageRun]:
    """Follow a page in this folder, and end what it started."""
    run = PageRun(folder)
    with contextlib.closing(run):
        yield run


def _ignore(block: Block) -> None:
    assert block.reason, f"{block} is skipped without a reason"


def _normal_lines(text: str) -> list[str]:
    """Return the lines with columns set off alike: a terminal gets spaces where a pipe gets tabs."""
    return [re.sub(r"(?<=\S)(?: {2,}|\t)", "  ", line.rstrip()) for line in text.strip().splitlines()]


def _matches(expected: list[str], printed: list[str]) -> bool:
    pattern = re.escape("\n".join(expected)).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, "\n".join(printed), re.DOTALL) is not None


def _wait_for(condition: Callable[[], object], problem: str, log: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{problem}\n{log()}"
        time.sleep(0.05)

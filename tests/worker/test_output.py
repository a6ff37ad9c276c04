"""What handlers print and log carries the id of their job, line by line."""

import asyncio
import io
import json
import subprocess
import sys
import threading

import pytest

from flashkit.worker.job import JobContext, enter_job
from flashkit.worker.output import JobOutput


@pytest.fixture
def real() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def output(real):
    return JobOutput(real)


def _records(real):
    return [json.loads(line) for line in real.getvalue().splitlines()]


async def _as_job(job_id, function, *args):
    """Call the function as the job's code, in a task of its own."""

    async def run():
        enter_job(JobContext(job_id, "tool", report_progress=lambda value: None))
        return function(*args)

    return await asyncio.create_task(run())


def test_lines_outside_of_jobs_stay_as_they_are(output, real):
    print("starting", end="", file=output)
    print(" up", file=output)
    assert real.getvalue() == "starting up\n"


async def test_a_line_of_a_job_becomes_a_record_with_its_id(output, real):
    await _as_job("j1", lambda: print("hällo", 1, file=output))
    assert _records(real) == [{"requestId": "j1", "message": "hällo 1", "level": "INFO"}]


async def test_a_line_written_in_pieces_is_one_record(output, real):
    def pieces():
        for piece in ("a", "b\nc", "\n"):
            output.write(piece)

    await _as_job("j1", pieces)
    assert [record["message"] for record in _records(real)] == ["ab", "c"]


async def test_lines_of_jobs_at_the_same_time_are_not_mixed(output, real):
    await _as_job("j1", output.write, "one ")
    await _as_job("j2", output.write, "two ")
    await _as_job("j1", output.write, "more\n")
    await _as_job("j2", output.write, "more\n")
    assert [(record["requestId"], record["message"]) for record in _records(real)] == [
        ("j1", "one more"),
        ("j2", "two more"),
    ]


async def test_flushing_writes_the_unfinished_line_of_the_job_that_flushes_only(output, real):
    await _as_job("j1", output.write, "progress 10%")
    await _as_job("j2", output.write, "other")
    await _as_job("j1", output.flush)
    assert [record["requestId"] for record in _records(real)] == ["j1"]


async def test_a_line_without_an_end_does_not_grow_for_ever(output, real):
    await _as_job("j1", lambda: [output.write("x" * 1_000) for _ in range(9)])
    records = _records(real)
    assert max(len(record["message"]) for record in records) <= 4_096
    assert sum(len(record["message"]) for record in records) > 4_096


async def test_a_long_line_is_cut_into_records_of_the_platforms_size(output, real):
    await _as_job("j1", output.write, "x" * 10_000 + "\n")
    assert [len(record["message"]) for record in _records(real)] == [4_096, 4_096, 1_808]


async def test_a_line_of_the_sdk_names_its_job_already(output, real):
    line = '{"requestId": "j9", "message": "m", "level": "ERROR"}'
    await _as_job("j1", output.write, line + "\n")
    assert real.getvalue() == line + "\n"


async def test_threads_of_a_job_print_for_it(output, real):
    await _as_job("j1", lambda: None)

    async def run():
        enter_job(JobContext("j1", "tool", report_progress=lambda value: None))
        await asyncio.to_thread(print, "in a thread", file=output)

    await asyncio.create_task(run())
    assert _records(real)[0]["requestId"] == "j1"


def test_a_thread_that_belongs_to_no_job_prints_plainly(output, real):
    thread = threading.Thread(target=print, args=("plain",), kwargs={"file": output})
    thread.start()
    thread.join()
    assert real.getvalue() == "plain\n"


def test_it_stands_for_the_real_stream(output):
    assert output.writable()
    assert not output.isatty()
    assert output.write("abc") == 3
    assert JobOutput(sys.__stdout__).encoding == sys.__stdout__.encoding
    with pytest.raises(OSError, match="fileno"):
        output.fileno()


async def test_writing_says_how_many_characters_it_took(output):
    assert await _as_job("j1", output.write, "abc") == 3


def _run(code, **environ):
    script = f"import sys\nfrom flashkit.worker.output import attribute_output\n{code}"
    return subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)


def test_a_process_is_labelled_once_and_only_on_a_platform():
    code = "attribute_output(); attribute_output()\nprint(type(sys.stdout).__name__, type(sys.stdout._stream).__name__)"
    assert _run(code, RUNPOD_ENDPOINT_ID="tool").stdout.split() == ["JobOutput", "TextIOWrapper"]
    assert _run("attribute_output(); print(type(sys.stdout).__name__)").stdout.split() == ["TextIOWrapper"]


def test_subprocesses_and_binary_output_of_a_labelled_process_work():
    code = (
        "attribute_output()\n"
        "import subprocess\n"
        "sys.stdout.buffer.write(b'bytes\\n'); sys.stdout.flush()\n"
        "subprocess.run([sys.executable, '-c', 'print(\"child\")'], stdout=sys.stdout, check=True)\n"
        "print('error', file=sys.stderr)\n"
    )
    result = _run(code, RUNPOD_ENDPOINT_ID="tool")
    assert result.stdout.split() == ["bytes", "child"]
    assert result.stderr.split() == ["error"]

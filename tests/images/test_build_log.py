"""What BuildKit writes, as steps; and a failed build's words."""

from __future__ import annotations

from flashkit.images.build_log import BuildLog, State

GOOD = """\
#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 162B done
#1 DONE 0.0s

#5 [build 1/2] RUN pip install runpod
#5 0.412 Collecting runpod
#5 ...

#6 [stage-1 1/1] COPY . .
#6 CACHED

#5 [build 1/2] RUN pip install runpod
#5 9.870 Successfully installed
#5 DONE 10.2s
"""
BAD = """\
#7 [2/3] RUN pip install nothing-like-it
#7 0.5 Looking in indexes
#7 1.5 \x1b[31mERROR: No matching distribution found for nothing-like-it\x1b[0m
#7 ERROR: process "/bin/sh -c pip install nothing-like-it" did not complete successfully: exit code: 1
------
 > [2/3] RUN pip install nothing-like-it:
0.5 Looking in indexes
------
Dockerfile:4
--------------------
   4 | >>> RUN pip install nothing-like-it
--------------------
ERROR: failed to solve: process "/bin/sh -c pip install nothing-like-it" did not complete successfully: exit code: 1
"""


def read(text):
    log = BuildLog()
    for line in text.splitlines(keepends=True):
        log.feed(line)
    return log


def test_steps_have_names_states_and_times():
    log = read(GOOD)
    assert [(step.name, step.state, step.seconds) for step in log.steps.values() if not step.is_internal] == [
        ("[build 1/2] RUN pip install runpod", State.DONE, 10.2),
        ("[stage-1 1/1] COPY . .", State.CACHED, None),
    ]
    assert list(log.steps[5].output) == ["Collecting runpod", "Successfully installed"]
    assert log.failed is None
    assert log.running == []


def test_a_step_that_has_not_ended_runs():
    log = read(GOOD.partition("#5 ...")[0])
    assert [step.name for step in log.running] == ["[build 1/2] RUN pip install runpod"]


def test_a_failed_step_has_its_last_lines_and_its_place():
    log = read(BAD)
    assert log.failed is log.steps[7]
    assert (
        log.failed.error
        == 'process "/bin/sh -c pip install nothing-like-it" did not complete successfully: exit code: 1'
    )
    assert log.failed.output[-1] == "ERROR: No matching distribution found for nothing-like-it"
    assert log.place == "Dockerfile:4"
    assert log.last_lines[-1].startswith("ERROR: failed to solve: process")


def test_steps_that_were_cancelled_by_another_ones_failure_are_not_to_blame():
    log = read("#3 [a 1/1] RUN sleep 9\n#4 [b 1/1] RUN false\n#4 ERROR: exit code: 1\n#3 CANCELED\n")
    assert log.failed is log.steps[4]
    assert log.running == []


def test_what_belongs_to_no_dockerfile_is_internal():
    log = read(
        "#1 [internal] load .dockerignore\n#2 [context python:3.11-slim] python:3.11-slim\n#3 exporting to image\n"
    )
    assert all(step.is_internal for step in log.steps.values())


def test_output_is_bounded():
    log = read("#1 [1/1] RUN yes\n" + "".join(f"#1 0.{n} line {n}\n" for n in range(500)))
    assert len(log.steps[1].output) == 30
    assert log.steps[1].output[-1] == "line 499"

"""A handler that prints in every way that a log should survive."""

import os
import sys

import runpod

PIECE = 100_000


def handler(job):
    job_input = job["input"]
    return ACTIONS[job_input["do"]](job_input)


def echo(job_input):
    return job_input


def say(job_input):
    print(job_input["text"], flush=True)
    return "said"


def lines(job_input):
    return spill(job_input, (b"x" * 99 + b"\n") * (PIECE // 100))


def one_line(job_input):
    spill(job_input, b"x" * PIECE)
    os.write(1, b"\n")
    return "printed"


def binary(job_input):
    return spill(job_input, bytes(range(256)) * (PIECE // 256))


def spill(job_input, piece):
    sys.stdout.flush()
    for _ in range(job_input["megabytes"] * 1_000_000 // PIECE):
        rest = piece
        while rest:
            rest = rest[os.write(1, rest) :]
    return "printed"


def close_output(job_input):
    silence = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(silence, number)
    return "silent now"


ACTIONS = {action.__name__: action for action in (echo, say, lines, one_line, binary, close_output)}

runpod.serverless.start({"handler": handler})

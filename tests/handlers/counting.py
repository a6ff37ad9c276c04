"""A sync generator."""

import runpod


def handler(job):
    yield from range(job["input"]["count"])


runpod.serverless.start({"handler": handler})

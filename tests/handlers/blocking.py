"""A plain function that blocks the worker's event loop, as most handlers out there do."""

import time

import runpod


def handler(job):
    time.sleep(job["input"].get("seconds", 0))
    return {"slept": job["input"].get("seconds", 0)}


runpod.serverless.start({"handler": handler})

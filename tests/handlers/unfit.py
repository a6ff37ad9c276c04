"""A worker whose own fitness check fails."""

import runpod


@runpod.serverless.register_fitness_check
def has_weights():
    raise RuntimeError("no weights on the volume")


runpod.serverless.start({"handler": lambda job: job["input"]})

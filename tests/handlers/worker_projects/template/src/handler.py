"""A worker as Runpod's template has it: the model is loaded at the top, settings come from the environment."""

import os

import runpod

GREETING = os.environ.get("GREETING", "hello")


class Model:
    def predict(self, prompt, repeat):
        return " ".join([f"{GREETING} {prompt}"] * repeat)


MODEL = Model()


def handler(job):
    job_input = job["input"]
    if "prompt" not in job_input:
        return {"error": "prompt is missing"}
    return {"text": MODEL.predict(job_input["prompt"], int(os.environ.get("REPEAT", "1")))}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})

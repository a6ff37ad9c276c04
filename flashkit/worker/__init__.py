"""What runs inside a worker's container.

`main` loads the app and starts the worker, `runtime` holds one endpoint ready for jobs, `runpod_sdk` is
the only file that knows the runpod SDK, `sessions` keeps an agent's journal, `engines` load models.
"""

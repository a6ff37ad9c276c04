"""Embedding models and cross-encoders: texts of many jobs in shared batches.

`engine` is what a worker loads. `embed` is what handlers get, `routes` what requests get. Both ask `pipeline`, which
has the threads; `batching` decides what goes together, `tokens` and `model` do the work, `batch_run` contains failures.
`layout` and `loading` read the model's folder.
"""

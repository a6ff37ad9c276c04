"""The weights of models: where they are, how they get there, and whether they are whole.

`resolving` finds them, `fetching` downloads them. Below those: `places` and `folders` (this machine), `hub` and `s3`
(the network), `downloading`, `transfer`, `shelves` and `leases` (one whole download, once), `manifest` (sizes and
hashes). `read_ahead` brings files into memory before they are loaded; `plan` compares what places cost.
"""

from flashkit.worker.weights.read_ahead import ReadAhead, read_ahead
from flashkit.worker.weights.resolving import Found, find_weights, resolve_weights

__all__ = ["Found", "ReadAhead", "find_weights", "read_ahead", "resolve_weights"]

"""Run a worker as if its runpod release had never been seen: the SDK's own loop around our handler."""

import sys

from flashkit.worker import runpod_sdk
from flashkit.worker.main import main

runpod_sdk.VERIFIED_VERSIONS = frozenset()
sys.exit(main(sys.argv[1:]))

"""Entry point of a worker's process."""

import sys

from flashkit.worker.main import main

sys.exit(main(sys.argv[1:]))

"""A process that stands in for a worker whose side of the wire the test plays itself."""

import sys
import time

if "stubborn" in sys.argv:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)

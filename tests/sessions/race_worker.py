"""A worker process for the race tests: takes one session again and again, and writes down what was acknowledged.

Arguments: URL, namespace, own name, tries, lease seconds. Prints one JSON line a lease that it held.
"""

import asyncio
import json
import random
import sys
import time

from flashkit.errors import SessionFenced
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Busy, open_store


async def main(url: str, namespace: str, name: str, tries: int, ttl_s: float) -> None:
    store = open_store(url, namespace=namespace, budget_s=10)
    for number in range(tries):
        asked = time.monotonic()
        lease = await store.acquire("s", f"{name}", ttl_s=ttl_s, max_attempts=10**6)
        if isinstance(lease, Busy):
            await asyncio.sleep(random.uniform(0, 2 * ttl_s))
            continue
        acquired = {"seq": lease.seq, "asked": asked, "answered": time.monotonic()}
        held = {"fence": lease.fence, "acquired": acquired, "acknowledged": {}, "times": {}, "fenced": False}
        try:
            for step in range(3):
                if random.random() < 0.3:
                    await asyncio.sleep(random.uniform(0, 2 * ttl_s))  # longer than the lease, often
                key = f"{name}-{number}-{step}"
                asked = time.monotonic()
                lease = await store.commit(lease, [Record(Kind.RESULT, key, b"%d" % lease.fence)])
                held["acknowledged"][lease.seq] = key
                held["times"][lease.seq] = {"asked": asked, "answered": time.monotonic()}
            if random.random() < 0.5:
                await store.release(lease)
        except SessionFenced:
            held["fenced"] = True
        print(json.dumps(held), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5])))

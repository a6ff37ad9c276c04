"""The wire between clients, platform and workers: states, limits, URLs, environment.

Runpod documents most of it; what the platform does but nobody documents is a named default in
`PlatformDefaults`, so that it can be seen, listed in the docs, and changed. Sources: Runpod docs
"operation reference", "send requests", "job states", "endpoint configurations" (read 2026-08-20) and
the source of the runpod SDK 1.12.0 and 2.0.0rc2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """States of a job as the platform reports them."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_final(self) -> bool:
        """True when the job will not change any more (except by `retry`)."""
        return self not in (JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)


RUN_BODY_LIMIT_BYTES: Final = 10 * 1024 * 1024
"""Largest `/run` request, and largest result of one. Documented as "10 MB"."""
RUNSYNC_BODY_LIMIT_BYTES: Final = 20 * 1024 * 1024
"""Largest `/runsync` request, and largest result of one. Documented as "20 MB"."""
STREAM_CHUNK_LIMIT_BYTES: Final = 1024 * 1024
"""Largest single partial output."""
REQUEST_BODY_LIMIT_BYTES: Final = 30 * 1024 * 1024
"""Largest request to a load-balanced endpoint, and largest answer. Documented as "30 MB"."""
RUNSYNC_WAIT_MS: Final = (1_000, 300_000)
"""Bounds of `/runsync?wait=`."""
RUNSYNC_DEFAULT_WAIT_MS: Final = 90_000
"""How long `/runsync` waits without `?wait=`."""
TTL_MS: Final = (10_000, 604_800_000)
"""Bounds of `policy.ttl`: 10 s to 7 days."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests an endpoint takes: in ten seconds, and at the same time (None: no such limit)."""

    requests: int
    concurrent: int | None


RATE_LIMITS: Final = {
    "run": RateLimit(1000, 200),
    "runsync": RateLimit(2000, 400),
    "status": RateLimit(2000, 400),
    "stream": RateLimit(2000, 400),
    "cancel": RateLimit(100, 20),
    "purge-queue": RateLimit(2, None),
    "openai": RateLimit(2000, 400),
    "requests": RateLimit(10, 2),
}
"""Documented, for each endpoint and route; a client over one gets 429."""
INPUT_ENVELOPE: Final = "_flashkit"
"""Key in a job's `input` under which one flashkit endpoint tells another what is not for the handler."""
POLL_LIMIT_SECONDS: Final = 90
"""A worker gives up a long poll after this time and asks again (SDK source)."""


@dataclass(frozen=True, slots=True)
class PlatformDefaults:
    """Behaviour of the platform that a local one must choose; times in seconds unless the name says ms."""

    execution_timeout_ms: int = 600_000
    """Documented default of `policy.executionTimeout`."""
    ttl_ms: int = 86_400_000
    """Documented default of `policy.ttl`, counted from submission."""
    run_retention: float = 1_800.0
    """Documented: results of `/run` are kept 30 min."""
    runsync_retention: float = 60.0
    """Documented: results of `/runsync` are kept 1 min."""
    webhook_attempts: int = 3
    """Documented: the first try and up to two more."""
    webhook_delay: float = 10.0
    """Documented: seconds between tries."""
    poll_hold: float = 25.0
    """Undocumented: how long an empty job-take or job-stop poll is held before 204."""
    max_attempts: int = 3
    """Undocumented: how often a job is handed out before a crashed worker makes it FAILED."""
    stop_grace: float = 5.0
    """Undocumented: after a stop signal, a worker has this long to drop the job before it is killed."""
    drain_grace: float = 30.0
    """Undocumented: after SIGTERM, a worker has this long to finish its jobs before SIGKILL."""
    init_timeout: float = 420.0
    """Documented: a worker is given up when its cold start takes more than 7 min, counted from the start of its
    process; RUNPOD_INIT_TIMEOUT in the endpoint's `env` goes before it."""
    frozen_keep: float = 600.0
    """Undocumented: seconds for which FlashBoot keeps an idle worker frozen before it is killed."""
    reclaim_grace: float = 5.0
    """Undocumented: after the notice that its machine is reclaimed, a worker has this long before SIGKILL."""
    failed_starts: int = 3
    """Undocumented: workers in a row that end with an error before they have done anything well until queued
    jobs are FAILED."""
    respawn_delay: float = 1.0
    """Undocumented: wait after a failed start; doubles with each one in a row, up to 30 s."""
    unread_stream_bytes: int = 64_000_000
    """Undocumented: partial outputs that nobody reads are kept up to this size for each job; beyond it the oldest are
    dropped."""
    rate_limit_per_worker: float = 0.1
    """Undocumented: the share of a route's base rate limit that each running worker is worth; the larger counts."""
    request_wait: float = 120.0
    """Documented: a request to a load-balanced endpoint waits 2 min for a worker, then it is answered 400."""
    affinity_wait: float = 300.0
    """Documented: a request that is pinned to one worker waits 5 min for it, then it is answered 400."""
    request_timeout: float = 330.0
    """Documented: a request to a load-balanced endpoint is ended after 5.5 min, with status 524."""
    request_limit_bytes: int = REQUEST_BODY_LIMIT_BYTES
    """Documented: body of a request to a load-balanced endpoint, and of its answer."""
    ping_interval: float = 1.0
    """Undocumented: how often a load-balanced worker is asked for its health."""
    ping_timeout: float = 5.0
    """Undocumented: a load-balanced worker that does not say how it is in this time counts as unhealthy."""
    unhealthy_keep: float = 60.0
    """Undocumented: a load-balanced worker that is unhealthy for this long is given up and killed."""
    oversize_status: int = 413
    """Undocumented: HTTP status for a body over the limit."""


WORKER_ENVIRONMENT: Final = {
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # one of them opens a connection to a public address
    "RUNPOD_SKIP_GPU_CHECK": "true",
    "PYTHONUNBUFFERED": "1",
}
"""What every local worker gets besides its URLs."""
DEPLOYMENT_VARIABLE: Final = "FLASHKIT_DEPLOYMENT"
"""Variable of a deployed endpoint's environment in which `flashkit deploy` says, as JSON, what it stands for."""


def worker_urls(base_url: str, endpoint_id: str, worker_id: str, *, token: str | None = None) -> dict[str, str]:
    """Return the environment that points the runpod SDK of one worker at a platform.

    Args:
        base_url: Scheme, host and port, without a path.
        endpoint_id: The endpoint's id in URLs.
        worker_id: The worker's id; the SDK puts it in place of `$RUNPOD_POD_ID`.
        token: Tells the platform's workers from strangers; the SDK sends it on with the rest of the query.
    """
    root = f"{base_url}/v2/{endpoint_id}"
    proof = "" if token is None else f"token={token}"
    query = f"?gpu=local&{proof}".removesuffix("&")
    return {
        "RUNPOD_ENDPOINT_ID": endpoint_id,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{root}/job-stream/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID?{proof}".removesuffix("?"),
        "RUNPOD_ENDPOINT_BASE_URL": f"{base_url}/v2",
    }

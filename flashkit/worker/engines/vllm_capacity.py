"""How full vLLM is, by its own numbers: what the engine tells its metrics after every step, read in this process.

A worker asks for as many jobs as it has room for before every take, so this must cost nothing: no call to the engine's
process, only what its last step reported.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

FIRST_GUESS_SHARE: Final = 0.25
"""Of the longest request that the model takes: how long a request is before one has finished."""
_MEMORY_OF_SIZES: Final = 0.9
"""How much of the usual size stays when a request has finished; ten of them make a new usual size."""
_MEMORY_OF_STEPS: Final = 0.95
_LONGEST_STEP_SECONDS: Final = 2.0
"""What takes longer is a pause between requests, or the first time of something."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine has, as it says after its start."""

    seats: int
    """Requests that run side by side (`max_num_seqs`)."""
    kv_tokens: int
    """Tokens that fit into the KV cache."""
    max_model_len: int
    block_tokens: int

    @classmethod
    def of(cls, config: Any) -> Limits:
        """Read vLLM's configuration."""
        cache, replicas = config.cache_config, config.parallel_config.data_parallel_size
        return cls(
            seats=config.scheduler_config.max_num_seqs * replicas,
            kv_tokens=(cache.num_gpu_blocks or 0) * cache.block_size,
            max_model_len=config.model_config.max_model_len,
            block_tokens=cache.block_size,
        )


class Capacity:
    """Counts requests, and keeps what the engine's last step reported."""

    def __init__(self) -> None:
        self.running = 0
        """Requests that were opened and are not over."""
        self.steps = 0
        self.step_seconds = 0.0
        """How long a step takes, lately; 0 before the first."""
        self.step_requests = 0.0
        """How many requests a step is for, lately."""
        self._stepped_at = 0.0
        self._used: dict[int, float] = {}
        self._limits: Limits | None = None
        self._usual_tokens = 0.0

    def set_limits(self, limits: Limits) -> None:
        """Learn what the engine has, once it has started."""
        self._limits = limits
        self._usual_tokens = max(limits.block_tokens, limits.max_model_len * FIRST_GUESS_SHARE)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that was in use after the last step."""
        return sum(self._used.values()) / max(1, len(self._used))

    @property
    def room(self) -> int:
        """How many more requests fit, by seats and by memory; at least one where none runs."""
        limits = self._limits
        if limits is None:
            return 1
        least = 0 if self.running else 1
        return max(least, min(limits.seats - self.running, self._free_requests(limits)))

    def _free_requests(self, limits: Limits) -> int:
        """Return how many requests of the usual size fit beside those that run, which will grow to it."""
        taken = 0.0
        if self.running:
            taken = max(self.kv_usage * limits.kv_tokens, self.running * self._usual_tokens)
        return int((limits.kv_tokens - taken) / self._usual_tokens)

    @property
    def streams(self) -> float:
        """About how many requests run side by side: all that do now, or lately, where many end and begin at once."""
        return max(self.running, self.step_requests)

    def tokens_in(self, seconds: float, *, most: int) -> int:
        """Return how many tokens a request gets in so much time, lately; 1 where the model is slower."""
        if not self.step_seconds:
            return 1
        return max(1, min(most, int(seconds / self.step_seconds)))

    def enter(self) -> None:
        """Count a request."""
        self.running += 1

    def leave(self) -> None:
        """Count one off."""
        self.running -= 1

    def note_step(self, scheduler_stats: Any, iteration_stats: Any, engine: int) -> None:
        """Take over what the engine reports after a step."""
        self.steps += 1
        now = time.monotonic()
        self._note_pace(now - self._stepped_at)
        self._stepped_at = now
        if scheduler_stats is not None:
            self._used[engine] = scheduler_stats.kv_cache_usage
            self.step_requests = _lately(self.step_requests, scheduler_stats.num_running_reqs)
        for finished in getattr(iteration_stats, "finished_requests", ()):
            self._note_size(finished.num_prompt_tokens + finished.num_generation_tokens)

    def _note_pace(self, seconds: float) -> None:
        if seconds < _LONGEST_STEP_SECONDS:
            self.step_seconds = _lately(self.step_seconds, seconds)

    def _note_size(self, tokens: int) -> None:
        block = self._limits.block_tokens if self._limits else 1
        size = max(block, tokens)
        self._usual_tokens = _MEMORY_OF_SIZES * self._usual_tokens + (1 - _MEMORY_OF_SIZES) * size


def _lately(before: float, now: float) -> float:
    """Return a figure's mean over the last steps, the latest of which count most; the first one counts whole."""
    return _MEMORY_OF_STEPS * (before or now) + (1 - _MEMORY_OF_STEPS) * now


def stat_logger(capacity: Capacity) -> type:
    """Return the class of vLLM's loggers that tells this capacity of every step."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Recorder(StatLoggerBase):  # type: ignore[misc]  # vLLM's types are not seen here
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            capacity.note_step(scheduler_stats, iteration_stats, engine_idx)

        def log_engine_initialized(self) -> None:
            pass

    return Recorder

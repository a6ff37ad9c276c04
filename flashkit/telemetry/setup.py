"""Switches traces on in a process whose settings say where spans go."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable

from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.telemetry.exporter import Exporter, Exporters, Sender
from flashkit.telemetry.otlp import Redact
from flashkit.telemetry.senders import CollectorSender, JsonSender
from flashkit.telemetry.spans import HeadSampler, Recorder, recorder, use_recorder

log = logging.getLogger(__name__)

REDACTED = "(redacted)"


def start_traces(settings: Settings, *, service: str) -> Callable[[], None]:
    """Record spans from now on, if the settings say where to send them; return what sends the last ones and ends that.

    Raises:
        ConfigurationError: The function for redaction is none.
    """
    if not settings.has_traces:
        return _nothing
    redact = load_redaction(settings.trace_redact) if settings.trace_redact else None
    exporters = Exporters([Exporter(sender) for sender in _senders(settings, service, redact)])
    made = Recorder(
        exporters,
        sampler=HeadSampler(settings.traces_per_second),
        captures_content=settings.captures_content,
    )
    before = recorder()
    if before is not None:
        made.observers.extend(before.observers)
        made.flushers.extend(before.flushers)
    use_recorder(made)
    if settings.has_metrics:
        from flashkit.telemetry.metrics_worker import watch_lost_spans

        watch_lost_spans(lambda: exporters.dropped)

    def stop() -> None:
        exporters.close()
        if made.sampler.dropped or exporters.dropped:
            log.info(
                "traces: %d begun jobs were not sampled, %d spans were dropped", made.sampler.dropped, exporters.dropped
            )
        if recorder() is made:
            use_recorder(before)

    return stop


def load_redaction(name: str) -> Redact:
    """Return the user's function for redaction, so that what it fails on is not told at all.

    Raises:
        ConfigurationError: There is none of this name.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigurationError(
            f"FLASHKIT_TRACE_REDACT={name!r} names no function: {exc}",
            hint="write module:function, of a function that takes an attribute's name and its text and returns a text",
        ) from exc

    def redact(key: str, text: str) -> str:
        try:
            return str(function(key, text))
        except Exception:  # noqa: BLE001 - user code; a text that it cannot judge is not told
            return REDACTED

    return redact


def _senders(settings: Settings, service: str, redact: Redact | None) -> list[Sender]:
    senders: list[Sender] = []
    if settings.traces_url:
        senders.append(JsonSender(settings.traces_url, service=service, worker_id=settings.worker_id, redact=redact))
    if settings.otlp_endpoint:
        name = settings.otel_service or service
        endpoint = settings.otlp_endpoint
        senders.append(CollectorSender(endpoint, service=name, worker_id=settings.worker_id, redact=redact))
    return senders


def _nothing() -> None:
    """End what was not begun."""

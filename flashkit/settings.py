"""The environment, read once at the edge into one frozen `Settings`.

Nothing else in flashkit reads `os.environ`; functions receive the values they need. A wrong value
fails here, with the name of the variable and what would be right.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from flashkit.errors import ConfigurationError

RUNPOD_API_HOST = "api.runpod.ai"
RUNPOD_API_URL = f"https://{RUNPOD_API_HOST}/v2"
RUNPOD_MANAGEMENT_URL = "https://api.runpod.io"
DEFAULT_STATE_URL = "sqlite:///.flashkit/sessions.db"
DEFAULT_NAMESPACE = "default"
DEFAULT_WEIGHTS_DIR = Path("models")
DEFAULT_WEIGHTS_CACHE = Path("~/.cache/flashkit/weights")
DEFAULT_HUB_CACHE = Path("~/.cache/huggingface/hub")
DEFAULT_HUB_URL = "https://huggingface.co"
VOLUME_DIR = Path("/runpod-volume")
"""Where the platform mounts a network volume in workers."""
MODEL_CACHE_DIR = Path("/runpod")
"""Where the platform puts models that an endpoint declares, beside the folder on the volume's mount."""
DEFAULT_WORKER_ID = "local"
LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - the platform reaches a container from outside
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""The Hugging Face libraries ask no server while one of them is set."""
_YES_OF_THE_HUB = ("1", "ON", "YES", "TRUE")
DEV_FILE = Path(".flashkit") / "dev.json"
"""Where a running `flashkit dev` leaves its URL, its store and its process id, below the project's folder."""


class ListenPorts(NamedTuple):
    """Where a load-balanced worker listens."""

    requests: int
    health: int


@dataclass(frozen=True, slots=True)
class DevServer:
    """A `flashkit dev` that runs."""

    url: str
    state_url: str | None = None
    state_namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the platform is and what this process may use of it."""

    base_url: str | None = None
    """Root of the job API up to `/v2` (RUNPOD_ENDPOINT_BASE_URL)."""
    api_key: str | None = field(default=None, repr=False)
    """Account key (RUNPOD_API_KEY); never logged."""
    management_url: str = RUNPOD_MANAGEMENT_URL
    """Where endpoints are deployed to, above `/v2` and `/graphql`; Runpod's SDK reads it too (RUNPOD_API_BASE_URL)."""
    endpoint_ids: Mapping[str, str] = field(default_factory=dict)
    """Platform ids of endpoints by their flashkit names (FLASHKIT_ENDPOINTS, a JSON object)."""
    state_url: str = DEFAULT_STATE_URL
    """Where sessions keep their journal (FLASHKIT_STATE)."""
    is_state_shared: bool = False
    """True when the store is named, so that other workers use it too (FLASHKIT_STATE)."""
    state_keys: str | None = field(default=None, repr=False)
    """Keys with which sessions are encrypted, `1:base64[,2:base64]`, the active one first (FLASHKIT_STATE_KEYS)."""
    state_namespace: str = DEFAULT_NAMESPACE
    """Separates apps that keep sessions in the same store (FLASHKIT_NAMESPACE)."""
    lease_seconds: float = 15.0
    """How long a session stays with a worker that does not answer (FLASHKIT_LEASE_SECONDS)."""
    keep_journals: bool = False
    """Keep the steps of finished turns, for timelines and forks; `flashkit dev` does (FLASHKIT_KEEP_JOURNALS)."""
    weights_dir: Path = DEFAULT_WEIGHTS_DIR
    """Folder with weights as `<organisation>/<name>/`, as images bring them (FLASHKIT_WEIGHTS_DIR)."""
    weights_cache: Path = DEFAULT_WEIGHTS_CACHE
    """Where weights are downloaded to when there is no network volume (FLASHKIT_WEIGHTS_CACHE)."""
    weights_s3: str | None = None
    """`s3://bucket/prefix` below which weights are as `<organisation>/<name>/` (FLASHKIT_WEIGHTS_S3)."""
    s3_endpoint: str | None = None
    """Address of the S3 server; Runpod's follow from AWS_REGION (FLASHKIT_S3_ENDPOINT, or AWS_ENDPOINT_URL_S3)."""
    volume_dir: Path = VOLUME_DIR
    """Where the network volume is (FLASHKIT_VOLUME)."""
    model_cache_dir: Path = MODEL_CACHE_DIR
    """Where the platform's model cache is (FLASHKIT_MODEL_CACHE)."""
    hub_cache: Path = DEFAULT_HUB_CACHE
    """Cache of the Hugging Face libraries (HF_HUB_CACHE, or `hub` below HF_HOME)."""
    hub_url: str = DEFAULT_HUB_URL
    """The Hugging Face hub or a mirror (HF_ENDPOINT)."""
    hub_token: str | None = field(default=None, repr=False)
    """Token for gated and private repositories (HF_TOKEN); never logged."""
    is_hub_offline: bool = False
    """Never ask the hub (HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE)."""
    endpoint: str | None = None
    """Which endpoint of its app a worker runs whose command names none (FLASHKIT_ENDPOINT)."""
    worker_id: str = DEFAULT_WORKER_ID
    """This worker's id on the platform (RUNPOD_POD_ID)."""
    http_host: str = LOOPBACK
    """Address at which a load-balanced worker listens (FLASHKIT_HTTP_HOST, every address on the platform)."""
    http_port: str = "80"
    """Port at which a load-balanced worker listens (PORT); read by those workers only."""
    health_port: str | None = None
    """Port at which it answers /ping, when that is another one (PORT_HEALTH)."""
    traces_url: str | None = None
    """Where spans go beside a collector; `flashkit dev` sets it for its workers (FLASHKIT_TRACES_URL)."""
    otlp_endpoint: str | None = None
    """Full URL of the collector that gets spans (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or `/v1/traces` below
    OTEL_EXPORTER_OTLP_ENDPOINT; none with OTEL_TRACES_EXPORTER=none or OTEL_SDK_DISABLED=true)."""
    otel_service: str | None = None
    """Name of the app in traces instead of the endpoint's (OTEL_SERVICE_NAME)."""
    traces_per_second: float = 20.0
    """How many new traces a worker begins a second; others are not recorded (FLASHKIT_TRACES_PER_SECOND)."""
    captures_content: bool = False
    """Put prompts, answers and tool arguments into spans (FLASHKIT_TRACE_CONTENT)."""
    trace_redact: str | None = None
    """`module:function` through which every text of a span goes before it is sent (FLASHKIT_TRACE_REDACT)."""
    trace_store: str | None = None
    """Where `flashkit dev` keeps traces: `sqlite:///FILE` or `postgresql://...` (FLASHKIT_TRACE_STORE)."""
    metrics_url: str | None = None
    """Where metrics go beside a collector; `flashkit dev` sets it for its workers (FLASHKIT_METRICS_URL)."""
    otlp_metrics_endpoint: str | None = None
    """Full URL of the collector that gets metrics (OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, or `/v1/metrics` below
    OTEL_EXPORTER_OTLP_ENDPOINT; none with OTEL_METRICS_EXPORTER=none or OTEL_SDK_DISABLED=true)."""
    metrics_interval_seconds: float = 15.0
    """How often a collector gets metrics (OTEL_METRIC_EXPORT_INTERVAL, in milliseconds)."""
    sends_metric_deltas: bool = False
    """A collector gets what has come since the last report instead of totals
    (OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE, `delta` for it)."""
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to a collector, where OpenTelemetry's own exporter does not do it (OTEL_EXPORTER_OTLP_HEADERS)."""
    show_tracebacks: bool = False
    """Send tracebacks to callers: set by `flashkit dev` only (FLASHKIT_TRACEBACKS)."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, folder: Path | None = None) -> Self:
        """Read the settings, from the process's environment unless one is given.

        Where no platform is configured, a `flashkit dev` that runs in `folder` (the current one by
        default) or a folder above it is used, and its store unless another one is named.

        Raises:
            ConfigurationError: A variable has a value that cannot be used.
        """
        env = os.environ if environ is None else environ
        base_url = env.get("RUNPOD_ENDPOINT_BASE_URL") or None
        api_key = env.get("RUNPOD_API_KEY") or None
        state_url = env.get("FLASHKIT_STATE") or None
        dev = find_dev_server(folder or Path.cwd()) if base_url is None else None
        if dev is not None:
            base_url = f"{dev.url}/v2"
        beside = DevServer("") if dev is None or state_url else dev
        if base_url is None and api_key is not None:
            base_url = RUNPOD_API_URL
        return cls(
            base_url=base_url,
            api_key=api_key,
            management_url=(env.get("RUNPOD_API_BASE_URL") or RUNPOD_MANAGEMENT_URL).rstrip("/"),
            endpoint_ids=_read_endpoint_ids(env),
            state_url=state_url or beside.state_url or DEFAULT_STATE_URL,
            state_keys=env.get("FLASHKIT_STATE_KEYS") or None,
            is_state_shared=state_url is not None,
            state_namespace=env.get("FLASHKIT_NAMESPACE") or beside.state_namespace or DEFAULT_NAMESPACE,
            lease_seconds=_read_seconds(env, "FLASHKIT_LEASE_SECONDS", 15.0),
            keep_journals=_read_flag(env, "FLASHKIT_KEEP_JOURNALS"),
            weights_dir=Path(env.get("FLASHKIT_WEIGHTS_DIR") or DEFAULT_WEIGHTS_DIR),
            weights_cache=Path(env.get("FLASHKIT_WEIGHTS_CACHE") or DEFAULT_WEIGHTS_CACHE),
            weights_s3=_read_s3_place(env, "FLASHKIT_WEIGHTS_S3"),
            s3_endpoint=env.get("FLASHKIT_S3_ENDPOINT") or env.get("AWS_ENDPOINT_URL_S3") or None,
            volume_dir=Path(env.get("FLASHKIT_VOLUME") or VOLUME_DIR),
            model_cache_dir=Path(env.get("FLASHKIT_MODEL_CACHE") or MODEL_CACHE_DIR),
            hub_cache=read_hub_cache(env),
            hub_url=(env.get("HF_ENDPOINT") or DEFAULT_HUB_URL).rstrip("/"),
            hub_token=env.get("HF_TOKEN") or None,
            is_hub_offline=any(env.get(name, "").upper() in _YES_OF_THE_HUB for name in OFFLINE_VARIABLES),
            endpoint=env.get("FLASHKIT_ENDPOINT") or None,
            worker_id=env.get("RUNPOD_POD_ID") or DEFAULT_WORKER_ID,
            http_host=env.get("FLASHKIT_HTTP_HOST") or (EVERY_ADDRESS if env.get("RUNPOD_POD_ID") else LOOPBACK),
            http_port=env.get("PORT") or "80",
            health_port=env.get("PORT_HEALTH") or None,
            traces_url=env.get("FLASHKIT_TRACES_URL") or None,
            otlp_endpoint=_read_otlp_endpoint(env, "traces"),
            otel_service=env.get("OTEL_SERVICE_NAME") or None,
            traces_per_second=_read_rate(env, "FLASHKIT_TRACES_PER_SECOND", 20.0),
            captures_content=_read_flag(env, "FLASHKIT_TRACE_CONTENT"),
            trace_redact=env.get("FLASHKIT_TRACE_REDACT") or None,
            trace_store=env.get("FLASHKIT_TRACE_STORE") or None,
            metrics_url=env.get("FLASHKIT_METRICS_URL") or None,
            otlp_metrics_endpoint=_read_otlp_endpoint(env, "metrics"),
            metrics_interval_seconds=_read_interval(env, "OTEL_METRIC_EXPORT_INTERVAL", 15_000.0) / 1000,
            sends_metric_deltas=_prefers_deltas(env),
            otlp_headers=_read_otlp_headers(env, "metrics"),
            show_tracebacks=_read_flag(env, "FLASHKIT_TRACEBACKS"),
        )

    @property
    def has_traces(self) -> bool:
        """True when spans go somewhere."""
        return self.traces_url is not None or self.otlp_endpoint is not None

    @property
    def has_metrics(self) -> bool:
        """True when metrics go somewhere."""
        return self.metrics_url is not None or self.otlp_metrics_endpoint is not None

    def require_base_url(self) -> str:
        """Return the platform's base URL.

        Raises:
            ConfigurationError: No platform is configured.
        """
        if self.base_url is None:
            raise ConfigurationError(
                "no platform is configured, so there is nowhere to send the job",
                hint="start `flashkit dev app.py` in this folder, or set RUNPOD_API_KEY to use Runpod, "
                "or set RUNPOD_ENDPOINT_BASE_URL (up to /v2) to use another address",
            )
        return self.base_url.rstrip("/")

    def endpoint_url(self, name: str) -> str:
        """Return the URL below which the endpoint's routes are."""
        return f"{self.require_base_url()}/{self.endpoint_ids.get(name, name)}"

    def listen_ports(self) -> ListenPorts:
        """Return where a load-balanced worker listens.

        Raises:
            ConfigurationError: PORT or PORT_HEALTH is not a port. Other programs have such variables too, so it is
                told here, where the value is needed.
        """
        requests = _read_port("PORT", self.http_port)
        return ListenPorts(requests, _read_port("PORT_HEALTH", self.health_port) if self.health_port else requests)

    def load_balanced_url(self, name: str) -> str:
        """Return the URL below which a load-balanced endpoint's own paths are.

        On Runpod each has a host of its own; a local platform has them all below `/lb/`.
        """
        base = urlsplit(self.require_base_url())
        name = self.endpoint_ids.get(name, name)
        if base.hostname == RUNPOD_API_HOST:
            return f"{base.scheme}://{name}.{base.netloc}"
        return f"{base.scheme}://{base.netloc}{base.path.removesuffix('/v2')}/lb/{name}"


def find_dev_server(folder: Path) -> DevServer | None:
    """Return the `flashkit dev` that runs for this folder or one above it, if any does."""
    for parent in (folder, *folder.parents):
        for file in find_dev_records(parent / DEV_FILE):
            if server := read_dev_record(file):
                return server
    return None


def find_dev_records(file: Path) -> list[Path]:
    """Return the records of the servers of a folder: `dev.json`, then each one's own beside it, the newest first."""
    own = [(_changed_at(each), each) for each in file.parent.glob(f"{file.stem}.*{file.suffix}")]
    return [file, *(each for _, each in sorted(own, reverse=True))]


def read_dev_record(file: Path) -> DevServer | None:
    """Return the server that a record tells of, None when it does not run any more."""
    try:
        record = json.loads(file.read_text())
        os.kill(record["pid"], 0)
        return DevServer(str(record["url"]), record.get("state"), record.get("namespace"))
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        return None


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # its server has just ended
        return 0


def _read_endpoint_ids(env: Mapping[str, str]) -> dict[str, str]:
    text = env.get("FLASHKIT_ENDPOINTS") or "{}"
    try:
        ids = json.loads(text)
    except ValueError:
        ids = None
    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        raise ConfigurationError(
            f"FLASHKIT_ENDPOINTS={text!r} is not a JSON object of strings",
            hint='write it as {"endpoint-name": "platform id"}',
        )
    return ids


def _read_seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 3600.0:  # noqa: PLR2004 - an hour without a sign of life is dead
        raise ConfigurationError(f"{name}={text!r} is not a time in seconds", hint="give a number from 1 to 3600")
    return seconds


def _read_interval(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 100.0 <= milliseconds <= 3_600_000.0:  # noqa: PLR2004 - from a tenth of a second to an hour
        raise ConfigurationError(
            f"{name}={text!r} is not a time in milliseconds", hint="give a number from 100 to 3600000"
        )
    return milliseconds


def _read_rate(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate <= 1e6:  # noqa: PLR2004 - more is no limit
        raise ConfigurationError(f"{name}={text!r} is not a number a second", hint="give a number from 0 to 1000000")
    return rate


def _read_otlp_endpoint(env: Mapping[str, str], signal: Literal["traces", "metrics"]) -> str | None:
    """Return where OpenTelemetry's own variables send spans, or metrics."""
    upper = signal.upper()
    is_off = env.get(f"OTEL_{upper}_EXPORTER") == "none" or env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    whole = env.get(f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT")
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if is_off or not (whole or base):
        return None
    url = whole or f"{(base or '').rstrip('/')}/v1/{signal}"
    if not re.fullmatch(r"https?://[^/\s]+\S*", url):
        name = f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT" if whole else "OTEL_EXPORTER_OTLP_ENDPOINT"
        raise ConfigurationError(f"{name}={whole or base!r} is not an address", hint="write it as https://host[:port]")
    return url


def _prefers_deltas(env: Mapping[str, str]) -> bool:
    return env.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").lower() in ("delta", "lowmemory")


def _read_otlp_headers(env: Mapping[str, str], signal: Literal["traces", "metrics"]) -> dict[str, str]:
    """Return headers, as `name=value,name=value`, URL-encoded; those of the signal go before the common ones."""
    upper = signal.upper()
    texts = (env.get("OTEL_EXPORTER_OTLP_HEADERS", ""), env.get(f"OTEL_EXPORTER_OTLP_{upper}_HEADERS", ""))
    pairs = (item.partition("=") for text in texts for item in text.split(",") if "=" in item)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs if name.strip()}


def _read_port(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:  # noqa: PLR2004
        raise ConfigurationError(f"{name}={text!r} is not a port", hint="give a number from 1 to 65535")
    return int(text)


def _read_s3_place(env: Mapping[str, str], name: str) -> str | None:
    text = env.get(name) or None
    if text is not None and not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/\S*)?", text):
        raise ConfigurationError(f"{name}={text!r} is not a place in S3", hint="write it as s3://bucket/prefix")
    return text


def read_hub_cache(env: Mapping[str, str]) -> Path:
    """Return where the Hugging Face libraries keep what they download, by their own variables."""
    if cache := env.get("HF_HUB_CACHE"):
        return Path(cache)
    return Path(env["HF_HOME"]) / "hub" if env.get("HF_HOME") else DEFAULT_HUB_CACHE


def _read_flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in ("", "0", "false", "no"):
        return False
    if value in ("1", "true", "yes"):
        return True
    raise ConfigurationError(f"{name}={env[name]!r} is neither true nor false", hint=f"set {name} to 1 or 0")

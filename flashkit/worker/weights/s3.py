"""Weights in S3, Runpod's S3 for network volumes included: there a bucket is a volume and a key is a path on it.

Below the prefix is what a shelf has: `organisation/name/commit/` with a manifest, and `refs/`. So what is pushed to
`s3://VOLUME/flashkit-weights` is on that volume's shelf. A folder that somebody else uploaded to
`organisation/name/` will do too; nothing can tell then of which commit it is.

Quirks of Runpod's S3 (docs.runpod.io/storage/s3-api, read 2026-11-21) that shape this module: parts of 500 MB at
most; 502 under load, for which ten attempts are advised; a listing may give the same token twice while the server
still computes hashes; empty folders are listed; there are no presigned addresses, so every byte is asked for with
the keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self
from urllib.parse import quote

from flashkit import catalog
from flashkit.errors import WeightsSourceError
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.manifest import MANIFEST_NAME, FileEntry, Manifest, is_commit, is_safe_path
from flashkit.worker.weights.selection import select_files
from flashkit.worker.weights.sources import Body, Listing, Persistence, TransientFailure

_CONNECTIONS: Final = 16
_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 60.0
_SERVER_ERROR: Final = 500
_MISSING: Final = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
_REFUSED: Final = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "401")
_PASSING: Final = ("SlowDown", "RequestTimeout", "429")


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket and a prefix in it."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `s3://bucket/prefix`."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return cls(bucket, prefix.strip("/"))

    def key(self, path: str) -> str:
        """Return the key of a path below the prefix."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class S3:
    """One model below a prefix of a bucket."""

    def __init__(
        self,
        place: S3Place,
        weights: Weights,
        settings: Settings,
        persistence: Persistence = Persistence(),  # noqa: B008
    ) -> None:
        self.label = str(place)
        self._place = place
        self._weights = weights
        self._settings = settings
        self._persistence = persistence
        self._client: Any = None
        self._base = ""

    def list_files(self) -> Listing:
        """Return the files of the commit that is wanted."""
        self._client = make_client(self._settings)
        if commit := self._find_commit():
            return self._of_commit(commit)
        files = {path: size for path, size in self._list().items() if is_safe_path(path)}
        if not files:
            raise WeightsSourceError(f"there is no {self._weights.name}")
        complete = [path for path in files if _is_manifest_of_commit(path) and self._is_wanted(path.split("/")[0])]
        if complete:
            return self._of_commit(complete[-1].split("/")[0])
        return self._of_folder(files)

    @contextmanager
    def open_range(self, entry: FileEntry, start: int, stop: int) -> Iterator[Body]:
        """Return bytes of a file."""
        key = f"{self._base}/{entry.path}"
        with in_our_words(self.label):
            answer = self._client.get_object(Bucket=self._place.bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
        with closing(answer["Body"]) as body:
            yield _S3Body(body)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _find_commit(self) -> str | None:
        """Return the commit that the revision names, by itself or through a reference."""
        revision = self._weights.revision
        if revision and is_commit(revision):
            return revision if self._read(f"{revision}/{MANIFEST_NAME}") else None
        text = (self._read(f"refs/{quote(revision or 'main', safe='')}") or b"").decode(errors="replace").strip()
        return text if is_commit(text) else None

    def _of_commit(self, commit: str) -> Listing:
        self._base = self._key(commit)
        content = self._read(f"{commit}/{MANIFEST_NAME}")
        if content is None:
            raise WeightsSourceError(
                f"commit {commit} of {self._weights.name} has no manifest: its upload is not complete",
                hint="push it again: what is there already is kept",
            )
        manifest = Manifest.from_json(content, where=f"{self._place}/{self._weights.name}/{commit}/{MANIFEST_NAME}")
        files = select_files(manifest.files, self._weights)
        return Listing(self._weights.name, commit, files, self._weights.revision or manifest.revision)

    def _of_folder(self, files: dict[str, int]) -> Listing:
        """Return what somebody uploaded by other means; what stands for its commit is made from names and sizes."""
        held = sorted({path.split("/")[0] for path in files if _is_manifest_of_commit(path)})
        if self._weights.revision is not None or held:
            known = f"it has {', '.join(held)}" if held else "nothing tells of which commit its files are"
            raise WeightsSourceError(f"there is no {self._weights.revision} of {self._weights.name}: {known}")
        self._base = self._key("").rstrip("/")
        entries = tuple(FileEntry(path, size) for path, size in sorted(files.items()))
        digest = hashlib.sha1(repr(entries).encode(), usedforsecurity=False).hexdigest()
        return Listing(self._weights.name, digest, select_files(entries, self._weights))

    def _is_wanted(self, commit: str) -> bool:
        return commit.startswith(self._weights.revision or "")

    def _list(self) -> dict[str, int]:
        prefix = self._key("")
        found = list_objects(self._client, self._place.bucket, prefix, persistence=self._persistence)
        return {key.removeprefix(prefix): size for key, size in found.items()}

    def _key(self, path: str) -> str:
        return self._place.key(f"{self._weights.name}/{path}")

    def _read(self, path: str) -> bytes | None:
        return read_object(self._client, self._place.bucket, self._key(path), persistence=self._persistence)


class _S3Body:
    """The bytes of one answer."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readinto(self, buffer: memoryview, /) -> int:
        """Put bytes into the buffer and return how many."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        try:
            return int(self._body.readinto(buffer))
        except (BotoCoreError, HTTPError, OSError) as exc:
            raise TransientFailure(str(exc)) from exc


def make_client(settings: Settings, *, read_seconds: float = _READ_SECONDS, attempts: int = 1) -> Any:
    """Return a client for S3; keys and region come from where boto3 takes them (AWS_ACCESS_KEY_ID and so on).

    Args:
        settings: The server's address.
        read_seconds: Longest silence.
        attempts: How often it asks by itself. Once, where a `Persistence` asks again.

    Raises:
        WeightsSourceError: boto3 is not installed.
    """
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as exc:
        raise WeightsSourceError(
            "S3 needs the package boto3, which is not installed", hint="pip install 'flashkit-serverless[s3]'"
        ) from exc
    session = boto3.session.Session()
    endpoint = settings.s3_endpoint or catalog.s3_endpoint(session.region_name or "")
    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=read_seconds,
        # Servers that imitate S3 do not know the newer checksums; the manifest's hashes cover the content.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else {},
    )
    region = session.region_name or catalog.s3_region(endpoint or "")
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def read_object(client: Any, bucket: str, key: str, *, persistence: Persistence) -> bytes | None:
    """Return the content of a small object, None where there is none."""

    def ask() -> bytes | None:
        from botocore.exceptions import ClientError

        with in_our_words(f"s3://{bucket}"):
            try:
                return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
            except ClientError as exc:
                if exc.response["Error"].get("Code") == "NoSuchKey":
                    return None
                raise

    return persistence.try_hard(ask, f"s3://{bucket}")


def list_objects(client: Any, bucket: str, prefix: str, *, persistence: Persistence) -> dict[str, int]:
    """Return the objects below a prefix with their sizes, without those that stand for folders.

    Raises:
        WeightsSourceError: The server repeats itself for ever.
    """
    found: dict[str, int] = {}
    token: str | None = None
    while True:
        ask = partial(_list_page, client, bucket, prefix, token, found)
        token = persistence.try_hard(ask, f"s3://{bucket}/{prefix}")
        if token is None:
            return _without_folders(found)


def _list_page(client: Any, bucket: str, prefix: str, token: str | None, found: dict[str, int]) -> str | None:
    """Add what one page lists, and return the token of the next one."""
    known = len(found)
    more = {"ContinuationToken": token} if token else {}
    with in_our_words(f"s3://{bucket}"):
        page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more)
    found.update({each["Key"]: int(each["Size"]) for each in page.get("Contents", ())})
    following: str | None = page.get("NextContinuationToken") if page.get("IsTruncated") else None
    if following is not None and following == token and len(found) == known:
        raise TransientFailure("the listing does not go on: the server gives the same token again")
    return following


def _without_folders(found: dict[str, int]) -> dict[str, int]:
    """Leave out folders, which Runpod's S3 lists like empty files, with and without a slash."""
    parents = {key.rpartition("/")[0] for key in found}
    return {
        key: size for key, size in found.items() if not key.endswith("/") and not (size == 0 and key in parents)
    }  # fmt: skip


def _is_manifest_of_commit(path: str) -> bool:
    commit, _, name = path.partition("/")
    return name == MANIFEST_NAME and is_commit(commit)


@contextmanager
def in_our_words(label: str) -> Iterator[None]:
    """Translate what boto3 raises.

    Raises:
        TransientFailure: Ask again.
        WeightsSourceError: It is not there, or may not be read.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except ClientError as exc:
        raise _explained(exc, label) from exc
    except (NoCredentialsError, PartialCredentialsError) as exc:
        raise WeightsSourceError(
            f"{label}: there are no keys for S3",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a Runpod volume they are its S3 keys, "
            "not the account's API key",
        ) from exc
    except BotoCoreError as exc:
        raise TransientFailure(str(exc)) from exc


def _explained(exc: Any, label: str) -> Exception:
    error, answer = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
    code, status = str(error.get("Code", "")), int(answer.get("HTTPStatusCode", 0))
    if status >= _SERVER_ERROR or code in _PASSING:
        return TransientFailure(f"HTTP {status} {code}")
    if code in _MISSING:
        return WeightsSourceError(f"{label}: {error.get('Message') or code}", hint="check bucket and prefix")
    if code in _REFUSED or status in (401, 403):
        return WeightsSourceError(
            f"{label} refuses: {code}", hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the region"
        )
    return WeightsSourceError(f"{label}: {exc}")

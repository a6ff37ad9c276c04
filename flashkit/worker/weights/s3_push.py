"""Uploading a folder of weights to S3: files first, the manifest last, so that half of one is never taken for all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from flashkit import catalog
from flashkit.errors import ConfigurationError, WeightsDamaged
from flashkit.settings import Settings
from flashkit.worker.weights.folders import check_folder, walk
from flashkit.worker.weights.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    check_sizes,
    hash_file,
    is_commit,
    read_manifest,
)
from flashkit.worker.weights.progress import Progress
from flashkit.worker.weights.s3 import S3Place, in_our_words, make_client
from flashkit.worker.weights.sources import Persistence, TransientFailure

T = TypeVar("T")
_PART_BYTES: Final = 64_000_000
_MOST_PARTS: Final = 9_000
"""Of the 10,000 that S3 allows."""
_FILES_AT_A_TIME: Final = 3
ATTEMPTS: Final = 10
"""What Runpod advises for its 502s (AWS_MAX_ATTEMPTS)."""
_ONCE: Final = Persistence(attempts=1)
_COMPLETE_SECONDS: Final = 7200.0
"""Runpod's S3 puts the parts of a large file together before it answers."""


def describe_for_push(folder: Path, name: str | None, revision: str | None) -> Manifest:
    """Return the manifest of a folder that is to be uploaded; made from its files where it has none.

    Args:
        folder: The weights.
        name: `organisation/name`, for a folder without a manifest.
        revision: What readers will ask for; `main` by default.

    Raises:
        ConfigurationError: It has no name.
        WeightsDamaged: Files are missing, cut off or changed.
    """
    held = read_manifest(folder)
    damage = check_sizes(folder, held.files) if held else check_folder(folder)
    if damage:
        raise WeightsDamaged(
            f"{folder} is not complete: {'; '.join(map(str, damage))}",
            hint="download it again; half a model is not pushed",
            details={"files": [each.path for each in damage]},
        )
    if held:
        return replace(held, name=name or held.name, revision=revision or held.revision)
    if name is None:
        raise ConfigurationError(f"nothing tells which model {folder} is", hint="say it: --name organisation/name")
    files = tuple(_entry(path, folder) for path in walk(folder))
    commit = folder.name if is_commit(folder.name) else _content_hash(files)
    return Manifest(name, commit, files, revision, f"the folder {folder.name}")


def push(
    folder: Path,
    place: S3Place,
    manifest: Manifest,
    settings: Settings,
    *,
    progress: Progress,
    attempts: int = ATTEMPTS,
) -> str:
    """Upload the files of a manifest, and return where they are. Files that are there already stay.

    Args:
        folder: The weights.
        place: Where to.
        manifest: What they are.
        settings: The server's address.
        progress: Told how far it is.
        attempts: How often each part is sent.

    Raises:
        WeightsSourceError: S3 refuses, or fails too often.
    """
    with closing(make_client(settings, read_seconds=_COMPLETE_SECONDS, attempts=attempts)) as client:
        return _push(folder, manifest, place, _Upload(client, place, progress), progress)


def _push(folder: Path, manifest: Manifest, place: S3Place, upload: _Upload, progress: Progress) -> str:
    model = place.key(manifest.name)
    base = f"{model}/{manifest.commit}"
    missing = [entry for entry in manifest.files if not upload.is_there(f"{base}/{entry.path}", entry.size)]
    there = manifest.size - sum(entry.size for entry in missing)
    progress.begin(f"{manifest.name} to {place}", total=manifest.size, done=there)
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        jobs = [pool.submit(upload.file, folder / entry.path, f"{base}/{entry.path}") for entry in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
    upload.text(f"{base}/{MANIFEST_NAME}", manifest.to_json())
    if manifest.revision != manifest.commit:
        upload.text(f"{model}/refs/{quote(manifest.revision or 'main', safe='')}", manifest.commit)
    return f"s3://{place.bucket}/{base}"


class _Upload:
    """Puts objects into one bucket. Its client asks again by itself: a part that fails is sent anew, not the file."""

    def __init__(self, client: Any, place: S3Place, progress: Progress) -> None:
        self._client = client
        self._bucket = place.bucket
        self._progress = progress

    def is_there(self, key: str, size: int) -> bool:
        """Say whether an object of this length has the key."""

        def ask() -> bool:
            from botocore.exceptions import ClientError

            with in_our_words(f"s3://{self._bucket}"):
                try:
                    return bool(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"] == size)
                except ClientError as exc:
                    if exc.response["Error"].get("Code") in ("404", "NoSuchKey"):
                        return False
                    raise

        return self._try_hard(ask, key)

    def file(self, path: Path, key: str) -> None:
        """Upload a file in parts."""
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig

        size = part_bytes(path.stat().st_size)
        config = TransferConfig(multipart_threshold=size, multipart_chunksize=size, preferred_transfer_client="classic")

        def send() -> None:
            told = _Told(self._progress)
            with in_our_words(f"s3://{self._bucket}"), told:
                try:
                    self._client.upload_file(str(path), self._bucket, key, Config=config, Callback=told.advance)
                except S3UploadFailedError as exc:
                    raise _cause_of(exc) from exc

        self._try_hard(send, key)

    def text(self, key: str, text: str) -> None:
        """Put a small object."""

        def send() -> None:
            with in_our_words(f"s3://{self._bucket}"):
                self._client.put_object(Bucket=self._bucket, Key=key, Body=text.encode())

        self._try_hard(send, key)

    def _try_hard(self, work: Callable[[], T], key: str) -> T:
        return _ONCE.try_hard(work, f"s3://{self._bucket}/{key}")


class _Told:
    """What the progress was told of one try; taken back when the try fails."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._counts: list[int] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._progress.advance(-sum(self._counts))

    def advance(self, count: int) -> None:
        """Tell the progress; boto3 calls it from several threads."""
        self._counts.append(count)
        self._progress.advance(count)


def part_bytes(size: int) -> int:
    """Return how long the parts of an upload are: S3 allows 10,000 of them, Runpod 500 MB each.

    Raises:
        ConfigurationError: The file is too large.
    """
    if size > catalog.S3_OBJECT_BYTES:
        raise ConfigurationError(
            f"a file of {size:,} bytes is too large for S3", hint=f"at most {catalog.S3_OBJECT_BYTES:,} bytes"
        )
    return max(_PART_BYTES, math.ceil(size / _MOST_PARTS))


def _entry(path: Path, folder: Path) -> FileEntry:
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256=hash_file(path))


def _content_hash(files: tuple[FileEntry, ...]) -> str:
    """Return what stands for the commit of weights that are in no repository: the same files have the same."""
    lines = sorted(f"{entry.sha256} {entry.path}" for entry in files)
    return hashlib.sha1("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def _cause_of(exc: Exception) -> Exception:
    """Return what made an upload fail: boto3 tells it in the context only."""
    from botocore.exceptions import BotoCoreError, ClientError

    inner = exc.__context__
    return inner if isinstance(inner, ClientError | BotoCoreError) else TransientFailure(str(exc))

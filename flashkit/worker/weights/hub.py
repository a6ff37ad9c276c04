"""Weights from the Hugging Face hub: its library says what there is and who may have it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flashkit import __version__
from flashkit.errors import WeightsError, WeightsSourceError
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.http_ranges import RangeReader, Refused
from flashkit.worker.weights.manifest import FileEntry, is_safe_path
from flashkit.worker.weights.offline import hub_allowed
from flashkit.worker.weights.selection import select_files
from flashkit.worker.weights.sources import Body, Listing, Persistence, TransientFailure

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LISTING_SECONDS: Final = 30.0
_ASKING: Final = Persistence(attempts=3)
_SERVER_ERROR: Final = 500
_PASSING: Final = (408, 429)


class Hub:
    """One repository of the hub, or of a mirror.

    Args:
        weights: The repository and its revision.
        settings: The hub's address, and the token.
        persistence: How often the list of files is asked for.
    """

    def __init__(self, weights: Weights, settings: Settings, persistence: Persistence = _ASKING) -> None:
        self.label = f"the hub ({settings.hub_url})"
        self._weights = weights
        self._url = settings.hub_url
        self._token = settings.hub_token
        self._persistence = persistence
        self._guard = threading.Lock()  # threads share one reader, made when the first byte is wanted
        self._ranges: RangeReader | None = None
        self._commit: str | None = None

    def list_files(self) -> Listing:
        """Return the files of the commit that is wanted, with what the hub knows of their content."""
        info = self._persistence.try_hard(self._ask, "it")
        self._commit = str(info.sha)
        entries = [_entry_of(sibling) for sibling in info.siblings or ()]
        files = select_files((entry for entry in entries if is_safe_path(entry.path)), self._weights)
        return Listing(self._weights.name, self._commit, files, self._weights.revision)

    @contextmanager
    def open_range(self, entry: FileEntry, start: int, stop: int) -> Iterator[Body]:
        """Return bytes of a file."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._weights.name, entry.path, revision=self._commit, endpoint=self._url)
        try:
            with self._reader().open(url, start, stop) as body:
                yield body
        except Refused as exc:
            self._explain(url, exc)

    def close(self) -> None:
        """Close the connections."""
        if self._ranges is not None:
            self._ranges.close()

    def _ask(self) -> Any:
        api = self._api()
        with hub_allowed(), self._in_our_words():
            return api.model_info(
                self._weights.name, revision=self._weights.revision, files_metadata=True, timeout=_LISTING_SECONDS
            )

    def _api(self) -> HfApi:
        try:
            from huggingface_hub import HfApi
        except ModuleNotFoundError as exc:
            raise WeightsSourceError(
                "the package huggingface-hub is not installed", hint="pip install 'flashkit-serverless[hub]'"
            ) from exc
        return HfApi(endpoint=self._url, token=self._token, library_name="flashkit", library_version=__version__)

    def _reader(self) -> RangeReader:
        from huggingface_hub.utils import build_hf_headers

        with self._guard:
            if self._ranges is None:
                self._ranges = RangeReader(
                    build_hf_headers(token=self._token, library_name="flashkit", library_version=__version__)
                )
            return self._ranges

    def _explain(self, url: str, refused: Refused) -> NoReturn:
        """Ask the hub's library for the reason of a refusal, which it reads from headers."""
        from huggingface_hub import get_hf_file_metadata

        with hub_allowed(), self._in_our_words():
            get_hf_file_metadata(url, token=self._token, endpoint=self._url)
        raise WeightsSourceError(f"{url}: {refused}")

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        from huggingface_hub import errors, get_token

        name, revision = self._weights.name, self._weights.revision or "main"
        http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # httpx, httpx2 or requests: as it is built on
        try:
            yield
        except errors.GatedRepoError as exc:
            whose = "the token in use has no access" if self._token or get_token() else "no token is set"
            raise WeightsError(
                f"the repository {name} is gated, and {whose}",
                hint=f"accept its terms at {self._url}/{name}, then set HF_TOKEN to a token of that account",
            ) from exc
        except errors.RevisionNotFoundError as exc:
            raise WeightsSourceError(
                f"it has no revision {revision!r} of {name}", hint="name a commit, tag or branch that is there"
            ) from exc
        except errors.RepositoryNotFoundError as exc:
            raise WeightsSourceError(
                f"it has no repository {name}, or a private one",
                hint="check the name; for a private repository set HF_TOKEN to a token that may read it",
            ) from exc
        except errors.EntryNotFoundError as exc:
            raise WeightsSourceError(f"a file of {name} is not there: {_first_line(exc)}") from exc
        except (http_error, OSError) as exc:
            status = getattr(getattr(exc, "response", None), "status_code", None)
            if status is None or status >= _SERVER_ERROR or status in _PASSING:
                raise TransientFailure(_first_line(exc)) from exc
            raise WeightsSourceError(f"it answers {_first_line(exc)}") from exc


def _entry_of(sibling: Any) -> FileEntry:
    """Return what the hub says of a file: large ones have a SHA-256, the others the hash of git."""
    if sibling.lfs is not None:
        return FileEntry(sibling.rfilename, int(sibling.lfs.size), sha256=sibling.lfs.sha256)
    return FileEntry(sibling.rfilename, int(sibling.size or 0), git_sha1=sibling.blob_id)


def _first_line(exc: BaseException) -> str:
    return next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)

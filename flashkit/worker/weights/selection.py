"""Which files of a repository are downloaded.

Many repositories hold the same weights several times: safetensors beside PyTorch's pickles, TensorFlow, ONNX,
OpenVINO and the author's original format. One of them is enough, so where there are safetensors the copies beside
them stay away, unless patterns say what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from flashkit.errors import WeightsSourceError
from flashkit.spec import Weights
from flashkit.worker.weights.manifest import MANIFEST_NAME, FileEntry, Manifest, Selection

_OTHER_FORMATS: Final = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".tflite")
_OTHER_FOLDERS: Final = ("onnx", "openvino", "coreml", "original")
_NEVER: Final = (".gitattributes", ".gitignore", MANIFEST_NAME)


def select_files(files: Iterable[FileEntry], weights: Weights) -> tuple[FileEntry, ...]:
    """Return the files of a repository that the weights ask for.

    Raises:
        WeightsSourceError: None of them is.
    """
    everything = [entry for entry in files if PurePosixPath(entry.path).name not in _NEVER]
    wanted = [entry for entry in everything if not _fits(entry.path, weights.ignore)]
    chosen = [e for e in wanted if _fits(e.path, weights.allow)] if weights.allow else _without_copies(wanted)
    if not chosen:
        names = ", ".join(sorted(entry.path for entry in everything)[:10]) or "no files"
        raise WeightsSourceError(
            f"no file of {weights.name} fits allow={weights.allow!r}, ignore={weights.ignore!r}",
            hint=f"the repository has: {names}",
        )
    return tuple(chosen)


def covers(manifest: Manifest, weights: Weights) -> bool:
    """Say whether a download has all that the weights ask for, as far as can be told without asking the source.

    What was downloaded by other patterns may lack files. The usual choice has what narrower patterns select, if each
    of them selects something of it.
    """
    asked = Selection(weights.allow, weights.ignore)
    if not manifest.selections or asked in manifest.selections:
        return True
    paths = [entry.path for entry in manifest.files]
    is_usual = Selection() in manifest.selections
    return is_usual and all(any(_fits(path, (pattern,)) for path in paths) for pattern in weights.allow)


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _without_copies(files: list[FileEntry]) -> list[FileEntry]:
    folders = {PurePosixPath(entry.path).parent for entry in files if entry.path.endswith(".safetensors")}
    has_root = PurePosixPath() in folders

    def is_copy(path: PurePosixPath) -> bool:
        is_format = path.suffix in _OTHER_FORMATS and path.parent in folders
        return is_format or (has_root and path.parts[0] in _OTHER_FOLDERS and len(path.parts) > 1)

    return [entry for entry in files if not is_copy(PurePosixPath(entry.path))]

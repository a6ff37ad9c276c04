"""Stand-ins for the base images that Dockerfiles name, made of this machine's own packages: no registry is asked.

    python scripts/images/engine.py run python scripts/images/standins.py [PYTHON_VERSION...]

`python:3.11-slim` becomes a root file system of Debian's essential packages and a CPython below /usr/local, as the
published image has it. The CUDA base is derived from it: no Python below /usr/local, and CUDA's variables and folder,
but no CUDA. They prove that Dockerfiles build and that workers run, not what is in the published images.

An image carries a fingerprint of what it was made of; one that is up to date is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import Places

USUAL_PYTHON = "3.11"
CUDA_TAGS = ("nvidia/cuda:12.8.1-base-ubuntu24.04",)
_LABEL = "flashkit.standin"
_SEED = (
    "ca-certificates", "netbase", "tzdata", "libssl3", "libffi8", "libsqlite3-0", "zlib1g", "libbz2-1.0", "liblzma5",
    "libreadline8", "libncursesw6", "libuuid1", "libexpat1", "libcrypt1", "apt", "debian-archive-keyring",
)  # fmt: skip
"""What CPython links against, and what RUN steps of Dockerfiles call."""
_LEFT_OUT = re.compile(r"/usr/share/(man|info|lintian|locale|doc-base|bug)/|/usr/share/doc/(?!.*copyright)")
_MERGED = ("bin", "sbin", "lib", "lib64")
"""Folders of the root that are links into /usr."""
_FOLDERS = (
    "proc", "sys", "dev", "run", "var/lib/dpkg/updates", "var/lib/apt/lists/partial", "var/log/apt",
    "var/cache/apt/archives/partial", "usr/local/bin", "root", "home",
)  # fmt: skip
_STDLIB_LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "site-packages", "__pycache__", "idlelib", "tkinter", "turtledemo", "lib2to3", "config-*",
    "_tkinter*", "*.a",
)  # fmt: skip
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES = "/etc/ssl/standin-ca.crt"
"""A copy of this machine's: installing `ca-certificates` in a build writes the usual file anew."""


class StandInUnavailable(Exception):
    """This machine has not what a stand-in is made of; the text says what."""


@dataclass(frozen=True)
class Package:
    """An installed Debian package."""

    name: str
    full_name: str
    """With the architecture where dpkg wants it."""
    is_essential: bool
    needs: tuple[tuple[str, ...], ...]
    """Alternatives of each dependency."""
    provides: tuple[str, ...]


def installed_packages() -> dict[str, Package]:
    """Return what dpkg says is installed, by name."""
    fields = (
        "${Package}", "${binary:Package}", "${Essential}", "${Priority}", "${Pre-Depends}, ${Depends}", "${Provides}",
        "${db:Status-Abbrev}",
    )  # fmt: skip
    listing = _output("dpkg-query", "--show", "--showformat", "\t".join(fields) + "\n")
    found: dict[str, Package] = {}
    for line in listing.splitlines():
        name, full_name, essential, priority, needs, provides, status = line.split("\t")
        if not status.startswith("ii"):
            continue
        found[name] = Package(
            name,
            full_name,
            essential == "yes" or priority == "required",
            tuple(tuple(map(_bare_name, each.split("|"))) for each in needs.split(",") if each.strip()),
            tuple(map(_bare_name, provides.split(","))) if provides else (),
        )
    return found


def _bare_name(text: str) -> str:
    return text.strip().split(" ")[0].split(":")[0]


def choose_packages(installed: dict[str, Package]) -> list[Package]:
    """Return the essential packages and the seed, with all that they need."""
    providers = {name: package for package in installed.values() for name in package.provides}
    chosen: dict[str, Package] = {}
    wanted = [name for name, package in installed.items() if package.is_essential]
    wanted += [name for name in _SEED if name in installed]
    while wanted:
        name = wanted.pop()
        package = installed.get(name) or providers.get(name)
        if package is None or package.name in chosen:
            continue
        chosen[package.name] = package
        for alternatives in package.needs:
            known = [each for each in alternatives if each in installed or each in providers]
            wanted += known[:1]
    return [chosen[name] for name in sorted(chosen)]


def files_of(packages: Iterable[Package]) -> set[Path]:
    """Return the packages' files, what dpkg knows about them, and the settings that make them work."""
    found: set[Path] = set()
    for package in packages:
        for line in _output("dpkg", "--listfiles", package.full_name).splitlines():
            path = Path(line)
            if line.count("/") > 1 and not _LEFT_OUT.match(line) and os.path.lexists(path):
                found.add(path.parent.resolve() / path.name)  # dpkg lists /bin/x, which lies in /usr/bin
        for stem in {package.name, package.full_name}:
            found.update(Path("/var/lib/dpkg/info").glob(f"{stem}.*"))
    extra = ["/var/lib/dpkg/info/format", "/var/lib/dpkg/arch", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone",
             "/etc/nsswitch.conf", "/etc/profile", "/root/.profile", "/etc/debian_version",
             *(f"/usr/bin/{name}" for name in ("awk", "which", "pager"))]  # fmt: skip
    found.update(path for path in map(Path, extra) if os.path.lexists(path))
    for folder in ("/etc/ssl/certs", "/etc/alternatives", "/etc/pam.d", "/etc/apt/sources.list.d"):
        found.update(path for path in Path(folder).rglob("*") if "docker" not in path.name)
    return found


def make_root(root: Path, python: Path) -> None:
    """Write a root file system with this CPython."""
    packages = choose_packages(installed_packages())
    _make_skeleton(root)
    _copy_files(files_of(packages), root)
    _write_accounts(root)
    _write_dpkg_status(root, {package.name for package in packages})
    # What this machine's network needs, and no published image has.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / _CERTIFICATES.lstrip("/"))
    (root / "etc/pip.conf").write_text(f"[global]\ncert = {_CERTIFICATES}\ndisable-pip-version-check = true\n")
    _copy_python(root / "usr/local", python)
    _in_root(root, "/sbin/ldconfig")
    _in_root(root, "/usr/local/bin/python3", "-m", "ensurepip", "--altinstall")
    for name in ("pip", "pip3"):
        (root / "usr/local/bin" / name).symlink_to(next((root / "usr/local/bin").glob("pip3.*")).name)


def _make_skeleton(root: Path) -> None:
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o1777)


def _copy_files(files: Iterable[Path], root: Path) -> None:
    """Copy files with owners, modes and links; `tar` does what a loop would take long for."""
    names = b"\0".join(sorted(str(path).lstrip("/").encode() for path in files))
    pack = ["tar", "--directory=/", "--no-recursion", "--create", "--null", "--files-from=-"]
    unpack = ["tar", f"--directory={root}", "--keep-directory-symlink", "--extract", "--preserve-permissions"]
    with subprocess.Popen(pack, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packing:
        assert packing.stdin is not None
        with subprocess.Popen(unpack, stdin=packing.stdout) as unpacking:
            packing.stdin.write(names)
            packing.stdin.close()
    if packing.returncode or unpacking.returncode:
        raise StandInUnavailable("tar could not copy this machine's packages")


def _write_accounts(root: Path) -> None:
    """Write Debian's own accounts, not this machine's."""
    for name, shadow, rest in (("passwd", "shadow", "19000:0:99999:7:::"), ("group", "gshadow", ":")):
        master = Path(f"/usr/share/base-passwd/{name}.master").read_text()
        (root / "etc" / name).write_text(master)
        hidden = "".join(f"{line.split(':')[0]}:*:{rest}\n" for line in master.splitlines())
        (root / "etc" / shadow).write_text(hidden)
        (root / "etc" / shadow).chmod(0o640)


def _write_dpkg_status(root: Path, names: set[str]) -> None:
    """Write only the copied packages into dpkg's list, so that apt-get works in RUN steps."""
    stanzas = Path("/var/lib/dpkg/status").read_text().strip().split("\n\n")
    kept = {
        match[1]: stanza
        for stanza in stanzas
        if (match := re.match(r"Package: (\S+)", stanza)) and match[1] in names and "install ok installed" in stanza
    }
    (root / "var/lib/dpkg/status").write_text("".join(f"{stanza}\n\n" for stanza in kept.values()))
    (root / "var/lib/dpkg/available").write_text("")


@dataclass(frozen=True)
class Interpreter:
    """A CPython with a folder of its own."""

    prefix: Path
    version: str
    """Such as 3.11."""

    @classmethod
    def ask(cls, program: Path) -> Interpreter:
        """Return what the program says about itself."""
        text = "import json, sys; print(json.dumps([sys.base_prefix, '%d.%d' % sys.version_info[:2]]))"
        prefix, version = json.loads(_output(str(program), "-c", text))
        if prefix == "/usr":
            raise StandInUnavailable(
                f"Python {version} lies in /usr among the system's files, not in a folder of its own"
            )
        return cls(Path(prefix), version)


def find_python(version: str) -> Path:
    """Return a program of this Python version that lies in a folder of its own."""
    own = Path(sys.base_prefix) / "bin" / f"python{version}"
    candidates = [own, *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))]
    found = shutil.which(f"python{version}")
    for path in [*candidates, *([Path(found)] if found else [])]:
        if path.exists() and not str(path.resolve()).startswith("/usr/bin/"):
            return path
    raise StandInUnavailable(f"there is no Python {version} here that lies in a folder of its own, as pyenv's do")


def _copy_python(to: Path, program: Path) -> None:
    python = Interpreter.ask(program)
    name = f"python{python.version}"
    library = python.prefix / "lib" / name
    shutil.copytree(library, to / "lib" / name, symlinks=True, ignore=_STDLIB_LEFT_OUT)
    (to / "lib" / name / "site-packages").mkdir(exist_ok=True)
    shutil.copytree(python.prefix / "include" / name, to / "include" / name)
    shutil.copy2((python.prefix / "bin" / name).resolve(), to / "bin" / name)
    for link in ("python", "python3"):
        (to / "bin" / link).symlink_to(name)
    for shared in (python.prefix / "lib").glob(f"libpython{python.version}.so.*"):
        shutil.copy2(shared, to / "lib", follow_symlinks=False)
        subprocess.run(["strip", "--strip-unneeded", to / "lib" / shared.name], capture_output=True, check=False)


def _in_root(root: Path, *command: str) -> None:
    done = subprocess.run(
        ["/usr/sbin/chroot", root, *command], env={"PATH": _PATH}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StandInUnavailable(f"{command[0]} failed in the stand-in: {done.stderr.strip()[-300:]}")


def import_root(root: Path, tags: Sequence[str], changes: Iterable[str]) -> None:
    """Make an image of a root file system."""
    given = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(["tar", f"--directory={root}", "--create", "."], stdout=subprocess.PIPE) as packing:
        done = subprocess.run(
            ["docker", "import", *given, "-", tags[0]],
            stdin=packing.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if packing.returncode or done.returncode:
        raise StandInUnavailable(f"docker import failed: {done.stderr.strip()}")
    for tag in tags[1:]:
        _output("docker", "tag", tags[0], tag)


def python_changes(fingerprint: str) -> list[str]:
    """Return what the published Python image sets, and where this machine's certificates are."""
    return [
        f"ENV PATH={_PATH}", "ENV LANG=C.UTF-8", f"ENV SSL_CERT_FILE={_CERTIFICATES}", 'CMD ["python3"]',
        f"LABEL {_LABEL}={fingerprint}",
    ]  # fmt: skip


def cuda_changes(fingerprint: str) -> list[str]:
    """Return what the published CUDA image sets."""
    return [
        f"ENV PATH=/usr/local/nvidia/bin:/usr/local/cuda/bin:{_PATH}", "ENV CUDA_VERSION=12.8.1",
        "ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64", "ENV NVIDIA_VISIBLE_DEVICES=all",
        "ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility", f"ENV SSL_CERT_FILE={_CERTIFICATES}",
        f"LABEL {_LABEL}={fingerprint}",
    ]  # fmt: skip


def make_standins(versions: Sequence[str] = (USUAL_PYTHON,)) -> list[str]:
    """Make the stand-ins that are not there yet, and return the tags of all of them.

    The CUDA base goes with the usual Python, from whose files it is made.

    Raises:
        StandInUnavailable: This machine has not what they are made of.
    """
    made = []
    with (Places.usual().root / "standins.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes that want the same ones, the second finds them made
        for version in versions:
            tags = [f"python:{version}-slim", *(CUDA_TAGS if version == USUAL_PYTHON else ())]
            python = find_python(version)
            fingerprint = _fingerprint(python)
            if any(_label_of(tag) != fingerprint for tag in tags):
                _make(tags, python, fingerprint)
            made += tags
    return made


def _make(tags: Sequence[str], python: Path, fingerprint: str) -> None:
    with tempfile.TemporaryDirectory(dir=Places.usual().root) as folder:
        root = Path(folder) / "root"
        make_root(root, python)
        import_root(root, tags[:1], python_changes(fingerprint))
        if cuda := tags[1:]:
            _turn_into_cuda(root)
            import_root(root, cuda, cuda_changes(fingerprint))


def _turn_into_cuda(root: Path) -> None:
    shutil.rmtree(root / "usr/local")
    for name in ("bin", "lib", "cuda/lib64", "nvidia/lib"):
        (root / "usr/local" / name).mkdir(parents=True)
    (root / "usr/local/cuda/version.json").write_text('{"cuda": {"version": "12.8.1"}}\n')


def _fingerprint(python: Path) -> str:
    sources = (Path(__file__), Path("/var/lib/dpkg/status"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + str(python.resolve()).encode())
    return digest.hexdigest()[:16]


def _label_of(tag: str) -> str | None:
    done = subprocess.run(
        ["docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{_LABEL}"}}}}', tag],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else None


def pinned_contexts(dockerfile: Path) -> Iterator[str]:
    """Yield what `--build-context` needs for the stand-ins to take the place of images that are pinned by a digest."""
    for image, digest in sorted(set(re.findall(r"([\w./-]+:[\w.-]+)@(sha256:[0-9a-f]{64})", dockerfile.read_text()))):
        yield f"{image}@{digest}=docker-image://{image}"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    try:
        print("\n".join(make_standins(sys.argv[1:] or (USUAL_PYTHON,))))
    except StandInUnavailable as exc:
        sys.exit(f"no stand-in images here: {exc}")

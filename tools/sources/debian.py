"""Packages of Debian that hold data: fetched by apt-get at exact versions, checked, read in place; nothing is installed."""

import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_SECONDS = 900
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


class PackageError(RuntimeError):
    """A package that could not be had, or is not what it should be; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Deb:
    """One version of a package for all architectures. sha256: of its .deb file."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def file_name(self) -> str:
        """The name that `apt-get download` gives the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"

    @property
    def spec(self) -> str:
        """What apt calls this version."""
        return f"{self.name}={self.version}"


def fetch(packages: Iterable[Deb], cache_dir: Path, source_dir: Path | None = None) -> dict[str, Path]:
    """The verified .deb of each package, by package name.

    Files in cache_dir are kept if they are whole. With source_dir nothing is fetched: the files must lie there.
    PackageError: a file is missing, differs from what it should be, or apt-get cannot give it.
    """
    packages = list(packages)
    folder = Path(source_dir) if source_dir is not None else Path(cache_dir)
    if source_dir is None:
        folder.mkdir(parents=True, exist_ok=True)
        for package in packages:
            if (
                not (folder / package.file_name).is_file()
                or _sha256(folder / package.file_name) != package.sha256
            ):
                _download(package, folder)
    for package in packages:
        file = folder / package.file_name
        if not file.is_file():
            raise PackageError(f"{folder} lacks {package.file_name}; {_by_hand(package)}")
        found = _sha256(file)
        if found != package.sha256:
            raise PackageError(
                f"{file} is not the published file: its SHA-256 is {found}, expected {package.sha256}; get it again"
            )
    return {package.name: folder / package.file_name for package in packages}


def files(deb: Path) -> Iterator[tuple[str, bytes]]:
    """(path without the leading "./", content) of every regular file of a .deb, in the order of the archive."""
    with _data(deb) as tar:
        for entry in tar:
            if entry.isreg():
                yield entry.name.removeprefix("./"), tar.extractfile(entry).read()


def description(packages: Iterable[Deb]) -> dict[str, Mapping[str, str]]:
    """What a dataset's json says of its packages: name -> version, licence, SHA-256."""
    return {p.name: {"version": p.version, "licence": p.licence, "sha256": p.sha256} for p in packages}


def _data(deb: Path) -> tarfile.TarFile:
    """The data archive inside a .deb, which is an `ar` archive of three members."""
    with open(deb, "rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise PackageError(f"{deb} is no Debian package; get it again")
        while header := file.read(_AR_HEADER):
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                return tarfile.open(fileobj=io.BytesIO(file.read(size)), mode="r:*")
            file.seek(size + size % 2, os.SEEK_CUR)
    raise PackageError(f"{deb} holds no data archive; get it again")


def _download(package: Deb, folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise PackageError(f"this machine has no apt-get; {_by_hand(package)}")
    partial = folder / ".fetching"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir()
    try:
        done = subprocess.run(
            ["apt-get", "download", package.spec],
            cwd=partial,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        found = partial / package.file_name
        if done.returncode or not found.is_file():
            reason = next(
                (line for line in done.stderr.splitlines() if line.startswith("E:")), "it wrote no such file"
            )
            raise PackageError(f"apt-get download {package.spec} failed ({reason}); {_by_hand(package)}")
        os.replace(found, folder / package.file_name)
    except subprocess.TimeoutExpired:
        raise PackageError(f"apt-get did not end within {_SECONDS} s; {_by_hand(package)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _by_hand(package: Deb) -> str:
    return f"get {package.file_name} from a Debian mirror or the snapshot archive and give its folder as --source_dir"


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

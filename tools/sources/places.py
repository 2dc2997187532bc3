"""Where a tool keeps what it fetches, and what it compares with."""

import posixpath
from collections.abc import Sequence
from pathlib import Path

from tools.pairs.files import matching
from tools.sources.likeness import EvaluationPictures


def cache_folder(output_dir: str, cache_dir: str | None) -> Path:
    """The local folder for packages: --cache_dir, or OUTPUT_DIR/cache. ValueError if neither is local."""
    if cache_dir is None and "://" in output_dir:
        raise ValueError(f"--output_dir={output_dir} is not local: name a local folder with --cache_dir")
    return Path(cache_dir or posixpath.join(output_dir, "cache"))


def evaluation_pictures(patterns: Sequence[str], similarity: float) -> EvaluationPictures | None:
    """The pictures of evaluation sets that no record may resemble; None without patterns. FileNotFoundError."""
    return EvaluationPictures(matching(patterns), similarity) if patterns else None

r"""Makes image-text data out of the Open Clip Art Library (public domain), from Debian's packages.

  python tools/prepare_clipart.py --output_dir=data/clipart
  python tools/prepare_clipart.py --output_dir=data/clipart --source_dir=folder_of_deb_files     (without network)

openclipart-svg has the titles and keywords, openclipart-png the pictures (a third of the SVGs say no size). Datasets:
test_clipart_folders, a fifth of the drawings of each larger folder, whose names are the classes; train, the others,
with title and keywords as captions and folders as labels. Left out: generated stars, pictures of more than 16
megapixels, and drawings whose texts name a concept that the emoji data holds out.
"""

import os
import posixpath
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from tools.clipart.library import PNG, SVG, Drawings, Library
from tools.emoji.held_out import held_out_phrases
from tools.sources import debian, npm
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.places import cache_folder, evaluation_pictures
from tools.sources.rejects import TooManyRejectsError

_OUTPUT = flags.DEFINE_string("output_dir", "data/clipart", "Where the datasets go; gs:// too.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Local folder for the packages; default OUTPUT_DIR/cache.")
_SOURCE = flags.DEFINE_string(
    "source_dir", None, "Folder of the .deb files, fetched by hand; nothing is fetched."
)
_EMOJI = flags.DEFINE_string(
    "emoji_dir", "data/emoji", "Emoji data whose held-out concepts stay out; empty: none."
)
_SIZE = flags.DEFINE_integer("size", 128, "Longer side of the pictures in pixels.", lower_bound=8)
_AGAINST = flags.DEFINE_list(
    "against",
    [],
    "Jsons (or patterns of them) of further evaluation sets whose near-duplicates are left out.",
)
_SIMILARITY = flags.DEFINE_float("similarity", 0.9, "SSIM from which a picture is a near-duplicate.")
_LIMIT = flags.DEFINE_integer("limit", None, "So many drawings, drawn by hash.", lower_bound=1)


def main(argv):
    """Fetches, splits, writes the test and then the training set."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        cache = cache_folder(_OUTPUT.value, _CACHE.value)
        forbidden = held_out_phrases(_EMOJI.value)
        files = debian.fetch([SVG, PNG], cache, Path(_SOURCE.value) if _SOURCE.value else None)
        prepare(_OUTPUT.value, files, forbidden, _SIZE.value, _LIMIT.value, _AGAINST.value, _SIMILARITY.value)
    except (
        debian.PackageError,
        npm.PackageError,
        TooManyRejectsError,
        ValueError,
        FileNotFoundError,
    ) as error:
        sys.exit(f"error: {error}")


def prepare(
    output_dir: str,
    files,
    forbidden,
    size: int,
    limit: int | None = None,
    against: Sequence[str] = (),
    similarity: float = 0.9,
) -> None:
    """Writes both datasets; no test where no folder is large enough.

    The training set has no near-duplicates of the test's pictures, nor of those of the jsons (or patterns) `against`.
    """
    library = Library(files[SVG.name], files[PNG.name], forbidden, limit)
    facts = {"source": "Open Clip Art Library 0.18, Debian packages", "licences": ["public domain"]}
    facts |= {
        "tool": "tools/prepare_clipart.py",
        "tool_version": "1",
        "packages": debian.description([SVG, PNG]),
    }
    against = list(against)
    if library.test:
        against.append(posixpath.join(output_dir, "test_clipart_folders.json"))
        tested = facts | {"classes": library.described_classes()}
        write_dataset(
            Drawings(library, True, size), Check(), output_dir, "test_clipart_folders", shards=1, facts=tested
        )
    check = Check(evaluation=evaluation_pictures(against, similarity))
    write_dataset(Drawings(library, False, size), check, output_dir, "train", shards=2, facts=facts)


if __name__ == "__main__":
    app.run(main)

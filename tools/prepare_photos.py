r"""Makes tests and training data out of photographs that Debian packages.

  python tools/prepare_photos.py --output_dir=data/photos
  python tools/prepare_photos.py --output_dir=data/photos --source_dir=folder_of_deb_files     (without network)

Datasets: test_photos, Tux Paint's stamps that are photographs (about 280, nearly each of a class of its own; GPL-2);
test_fashion, the 10,000 test pictures of Fashion-MNIST in ten classes, and train, its 60,000 others with labels (MIT).
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from tools.photos.fashion import FASHION, Fashion
from tools.photos.stamps import STAMPS, Stamps
from tools.sources import debian
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.places import cache_folder
from tools.sources.rejects import TooManyRejectsError

_OUTPUT = flags.DEFINE_string("output_dir", "data/photos", "Where the datasets go; gs:// too.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Local folder for the packages; default OUTPUT_DIR/cache.")
_SOURCE = flags.DEFINE_string(
    "source_dir", None, "Folder of the .deb files, fetched by hand; nothing is fetched."
)
_SIZE = flags.DEFINE_integer("size", 128, "Longer side of the stamps in pixels.", lower_bound=8)
_LIMIT = flags.DEFINE_integer("limit", None, "So many pictures of each dataset.", lower_bound=1)


def main(argv):
    """Fetches, writes the three datasets."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        cache = cache_folder(_OUTPUT.value, _CACHE.value)
        files = debian.fetch([STAMPS, FASHION], cache, Path(_SOURCE.value) if _SOURCE.value else None)
        prepare(_OUTPUT.value, files, _SIZE.value, _LIMIT.value)
    except (debian.PackageError, TooManyRejectsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def prepare(output_dir: str, files, size: int, limit: int | None = None) -> None:
    """Writes test_photos, test_fashion and train."""
    stamps = Stamps(files[STAMPS.name], size)
    for name, source, package in (
        ("test_photos", stamps, STAMPS),
        ("test_fashion", Fashion(files[FASHION.name], "t10k"), FASHION),
        ("train", Fashion(files[FASHION.name], "train"), FASHION),
    ):
        facts = {
            "source": package.spec,
            "licences": [package.licence],
            "packages": debian.description([package]),
        }
        facts |= {"tool": "tools/prepare_photos.py", "tool_version": "1"}
        if name != "train":
            facts["classes"] = source.described_classes()
        write_dataset(source, Check(), output_dir, name, shards=1, limit=limit, facts=facts)


if __name__ == "__main__":
    app.run(main)

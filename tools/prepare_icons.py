r"""Makes image-text data out of icon sets: fetches, leaves out, renders, writes TFRecords.

  python tools/prepare_icons.py --output_dir=data/icons
  python tools/prepare_icons.py --output_dir=data/icons_small --limit=3000
  python tools/prepare_icons.py --output_dir=data/icons --source_dir=folder_with_iconify-json-2.2.535.tgz  (no network)

npm's @iconify/json holds 390,000 icons with names; 183 sets with 299,000 of them are used: those whose licence lets
pictures be changed and passed on, without emoji, logos and flags. Each icon has its name without words of style
("arrow down") and its whole name ("arrow down bold outline") as captions, and the frequent words of the former as
labels. Icons whose name says a concept that the emoji data holds out are left out. All of them take about 5 minutes
of two cores. --against leaves out near-duplicates of evaluation pictures.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output_dir", "data/icons", "Where the dataset goes; gs:// too.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Local folder for the package; default OUTPUT_DIR/cache.")
_SOURCE = flags.DEFINE_string("source_dir", None, "Folder of the package's .tgz, fetched by hand.")
_EMOJI = flags.DEFINE_string(
    "emoji_dir", "data/emoji", "Emoji data whose held-out concepts stay out; empty: none."
)
_SIZE = flags.DEFINE_integer("size", 64, "Side of the pictures in pixels.", lower_bound=8)
_LIMIT = flags.DEFINE_integer("limit", None, "So many icons, drawn by hash.", lower_bound=1)
_LEAST = flags.DEFINE_integer(
    "least_icons", 40, "Icons that a word must name to become a label.", lower_bound=1
)
_AGAINST = flags.DEFINE_list(
    "against",
    [],
    "Jsons (or patterns of them) of evaluation sets; near-duplicates of their pictures are left out.",
)
_SIMILARITY = flags.DEFINE_float("similarity", 0.9, "SSIM from which a picture is a near-duplicate.")
_SHARDS = flags.DEFINE_integer("shards", 8, "Records go to this many shards in turn.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes that draw; default: one per core.", lower_bound=1)


def main(argv):
    """Fetches and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    from tools.emoji.held_out import held_out_phrases
    from tools.icons.sets import ICONIFY, Icons
    from tools.sources import npm
    from tools.sources.conversion import Check
    from tools.sources.dataset import write_dataset
    from tools.sources.places import cache_folder, evaluation_pictures
    from tools.sources.rejects import TooManyRejectsError

    try:
        check = Check(evaluation=evaluation_pictures(_AGAINST.value, _SIMILARITY.value))
        forbidden = held_out_phrases(_EMOJI.value)
        cache = cache_folder(_OUTPUT.value, _CACHE.value)
        files = npm.fetch([ICONIFY], cache, Path(_SOURCE.value) if _SOURCE.value else None)
        print(f"reading the names of {ICONIFY.spec}", flush=True)
        icons = Icons(files[ICONIFY.name], forbidden, _SIZE.value, _LIMIT.value, _LEAST.value, _WORKERS.value)
        facts = {"source": ICONIFY.spec, "tool": "tools/prepare_icons.py", "tool_version": "1"}
        facts |= {"packages": npm.description([ICONIFY]), "picture_size": _SIZE.value, "limit": _LIMIT.value}
        facts |= icons.facts()
        write_dataset(icons, check, _OUTPUT.value, "train", shards=_SHARDS.value, facts=facts)
    except (npm.PackageError, TooManyRejectsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":  # worker processes import this file again: nothing heavy above
    app.run(main)

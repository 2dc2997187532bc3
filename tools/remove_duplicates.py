r"""Copies a dataset without the pictures that resemble a picture of an evaluation set.

  python tools/remove_duplicates.py --input=data/web/train.json --against='data/emoji/test_*.json' \
    --output_dir=data/web_clean

Candidates are pictures whose perceptual hash differs in at most --distance of its 64 bits; of those, a structural
similarity (SSIM of grey 64 px squares) of --similarity or more makes a near-duplicate. Each one stands in
<output_dir>/<name>.rejects.jsonl with the evaluation picture it resembles; the json's `near_duplicates` says how many
were removed and how similar the best candidates of the others were. Drawings on white are alike in their white: 0.9
suits them.
"""

import os
import posixpath
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

from basic_tf.data.examples import FeatureKeys
from basic_tf.data.records import RecordFileError
from tools.pairs.files import matching
from tools.pairs.record_files import RecordFiles
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.likeness import EvaluationPictures
from tools.sources.places import refuse_overwriting
from tools.sources.rejects import TooManyRejectsError

_INPUT = flags.DEFINE_string("input", None, "The dataset's json.", required=True)
_AGAINST = flags.DEFINE_list(
    "against", None, "Jsons (or patterns of them) of evaluation sets.", required=True
)
_OUTPUT = flags.DEFINE_string("output_dir", None, "Where the copy goes; gs:// too.", required=True)
_SIMILARITY = flags.DEFINE_float("similarity", 0.5, "SSIM from which a picture is a near-duplicate.")
_DISTANCE = flags.DEFINE_integer("distance", 12, "Bits in which the hashes of candidates may differ.")
_SHARDS = flags.DEFINE_integer("shards", 8, "Records go to this many shards in turn.", lower_bound=1)
_SHARE = flags.DEFINE_float("max_reject_share", 0.01, "Stop above this share of damaged records.")


def main(argv):
    """Reads the evaluation sets, then copies."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: patterns go into --against, in quotes")
    try:
        name = posixpath.basename(_INPUT.value).removesuffix(".json")
        refuse_overwriting([_INPUT.value], _OUTPUT.value, name)
        source = RecordFiles(_INPUT.value, FeatureKeys())
        evaluation = EvaluationPictures(matching(_AGAINST.value), _SIMILARITY.value, _DISTANCE.value)
        write_dataset(
            source,
            Check(smallest_side=1, evaluation=evaluation),
            _OUTPUT.value,
            name,
            shards=_SHARDS.value,
            max_reject_share=_SHARE.value,
            facts=source.facts | {"without_duplicates_of": _AGAINST.value},
        )
    except (TooManyRejectsError, RecordFileError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except tf.errors.OpError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    app.run(main)

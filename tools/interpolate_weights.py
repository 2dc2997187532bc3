r"""Interpolates between the weights of two stages: run folders for evaluate.py, one for each alpha (WiSE-FT).

  python tools/interpolate_weights.py --start=runs/demo/contrastive --end=runs/demo/finetune \
      --alphas=0,0.25,0.5,0.75,1 --output_dir=runs/interpolated
  python -m basic_tf.evaluate --model_dir=runs/interpolated/alpha-0.50 --data_dir=data/emoji

Weights are (1 - alpha) start + alpha end, of the averaged weights where a stage kept them. Fine-tuning raises accuracy
on its own distribution and lowers it elsewhere; a mean of both often keeps most of both (arXiv 2109.01903). Each folder
under --output_dir is a run folder with the configuration of --end; nothing in --start and --end is touched. The last
line printed is one JSON object: folders, parameters, start, end.
"""

import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags  # noqa: E402 (after the project's root is on the path)

_START = flags.DEFINE_string(
    "start", None, "Stage folder of the model at alpha 0, e.g. runs/demo/contrastive."
)
_END = flags.DEFINE_string("end", None, "Stage folder of the model at alpha 1, e.g. runs/demo/finetune.")
_ALPHAS = flags.DEFINE_list("alphas", ["0", "0.25", "0.5", "0.75", "1"], "Numbers in [0, 1].")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the run folders go; alpha-0.50 and so on are made in it."
)

flags.mark_flags_as_required(["start", "end", "output_dir"])


def main(argv: list[str]) -> None:
    """Reads both, writes a folder for each alpha."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    from basic_tf.training import checkpoints
    from tools.checkpoints import interpolated

    try:
        alphas = [float(alpha) for alpha in _ALPHAS.value]
        figures = interpolated.write(_START.value, _END.value, alphas, _OUTPUT_DIR.value)
    except (ValueError, checkpoints.CheckpointError) as error:
        print(f"interpolate_weights: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)

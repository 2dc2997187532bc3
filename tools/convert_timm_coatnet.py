r"""Turns PyTorch weights of timm's coatnet_0 ... coatnet_5 into a checkpoint that a stage can warm-start from.

  python tools/convert_timm_coatnet.py --weights=coatnet_0.safetensors --output=weights/coatnet_0
  python -m basic_tf.train --gin_file=... --gin_param="contrastive/WarmStart.stage = 'weights/coatnet_0'" ...

Reads .safetensors, and .pth as torch.save has written it since PyTorch 1.6, without PyTorch: a .pth file's pickle is
read by an unpickler that knows tensors and refuses everything else, so nothing in the file can run.

Every tensor is used or is one of the declared useless ones (counters, look-up tables, the layer before a classifier that
is not there); every weight of the tower comes from a tensor or is a bias that timm's model does not have (zero). Anything
else is an error. The gin bindings that the tower needs are printed; the last line is one JSON object: variant, image_size,
parameters, used, ignored, zero, resized, checkpoint.

The tower computes as TensorFlow does (padding SAME, GELU by tanh, eps 1e-3 in BatchNorm and 1e-5 in LayerNorm), which
is timm's TensorFlow configuration. Weights that were trained under timm's own configuration (symmetric padding, exact
GELU, eps 1e-5 and 1e-6) give features that differ by some percent until they are trained further: say --epsilons=timm
for its eps, the other two remain.
"""

import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags  # noqa: E402 (after the project's root is on the path)

_WEIGHTS = flags.DEFINE_string("weights", None, "The .safetensors or .pth file; local or gs://.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; a stage warm-starts from it by its path.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Side of the pictures in pixels; relative biases of another size are resized.", 32
)
_KEY = flags.DEFINE_string("key", None, "Entry of the .pth file that holds the state dict (default: found).")
_EPSILONS = flags.DEFINE_enum(
    "epsilons", "tensorflow", ["tensorflow", "timm"], "Which eps the bindings name."
)

flags.mark_flags_as_required(["weights", "output"])


def main(argv: list[str]) -> None:
    """Converts one file."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    from tools.pytorch import coatnet_checkpoint, timm_coatnet, weights

    try:
        figures = coatnet_checkpoint.write(_WEIGHTS.value, _OUTPUT.value, _IMAGE_SIZE.value, _KEY.value)
    except (weights.WeightsError, timm_coatnet.ConversionError) as error:
        print(f"convert_timm_coatnet: {error}", file=sys.stderr)
        sys.exit(1)
    source = figures.pop("source")
    print("The tower, as gin bindings:")
    for row in coatnet_checkpoint.bindings(source, _IMAGE_SIZE.value, _EPSILONS.value, _OUTPUT.value):
        print(f"  {row}")
    if source.classes is None:
        print("  contrastive/WarmStart.ignored = ()  # there is no classifier to leave behind")
    if not source.mirrored and _EPSILONS.value == "tensorflow":
        print(
            "Flat bias tables: these weights may come from timm's own configuration; read --help on --epsilons",
            file=sys.stderr,
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)

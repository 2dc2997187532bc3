"""Turns a training run into one SavedModel: picture decoding, tokenizer and towers inside.

    python -m basic_tf.export --model_dir=runs/demo --output_dir=runs/demo/saved_model

The folder loads in any process that has tensorflow and imports tensorflow_text; its signatures are described
in basic_tf/serving/module.py, its sizes, prompts and versions in its basic.json. For TensorFlow Serving let
--output_dir end in a version number (.../basic/1). Exit codes: 0 done; 2 something is missing, said in one
line.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model_dir", None, "A run folder of basic_tf.train.")
flags.DEFINE_string("stage", None, "The stage of the run to take (default: the last that has a checkpoint).")
flags.DEFINE_integer("step", None, "The checkpoint's step (default: the newest).")
flags.DEFINE_string("output_dir", None, "The SavedModel folder to write (default: <model_dir>/saved_model).")
flags.DEFINE_string(
    "templates",
    None,
    'Prompts to store: "emoji", "bare", or a JSON file {"templates": [...]} (default: those of the run).',
)
flags.DEFINE_bool("overwrite", False, "Replace the folder if it exists.")


def flag_problem(arguments: list[str]) -> str | None:
    """What is wrong with the command line, said before TensorFlow is loaded."""
    if arguments:
        return f"unexpected arguments {' '.join(arguments)}: everything is a --flag here"
    if not FLAGS.model_dir:
        return "--model_dir is missing: the run folder of basic_tf.train"
    return None


def run() -> None:
    """The whole recipe."""
    output_dir = FLAGS.output_dir or f"{FLAGS.model_dir.rstrip('/')}/saved_model"

    from basic_tf.evaluation import prompts
    from basic_tf.serving import saved_model

    saved_model.check_output(output_dir, FLAGS.overwrite)
    given = FLAGS.templates and prompts.load_templates(FLAGS.templates)

    from basic_tf import runs

    loaded = runs.load(FLAGS.model_dir, stage=FLAGS.stage, step=FLAGS.step)
    provenance = {
        "run": FLAGS.model_dir,
        "stage": loaded.stage,
        "step": int(loaded.step),
        "config": loaded.config_text,
    }
    templates = given or prompts.load_templates(loaded.templates)
    saved_model.export(
        loaded.model, loaded.tokenizer, loaded.view, output_dir, templates, provenance, FLAGS.overwrite
    )
    print(f"wrote {output_dir} (stage {loaded.stage}, step {loaded.step}, {loaded.image_size} px pictures)")


def main(argv: list[str]) -> int:
    """Runs, and turns what a person can mend into one line."""
    problem = flag_problem(argv[1:])
    if problem:
        print(f"export: {problem}", file=sys.stderr)
        return 2
    import tensorflow as tf

    from basic_tf.training import checkpoints

    try:
        run()
    except (ValueError, OSError, tf.errors.OpError, checkpoints.CheckpointError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(main)

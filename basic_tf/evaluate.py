"""Zero-shot accuracy under style shift and retrieval, of a training run or of an exported SavedModel.

    python -m basic_tf.evaluate --model_dir=runs/demo --data_dir=data/emoji
    python -m basic_tf.evaluate --saved_model=runs/demo/saved_model --data_dir=data/emoji --output_dir=out
    python -m basic_tf.evaluate --saved_model=runs/demo/saved_model --tests=imagenet,imagenet_v2 --output_dir=out

Evaluates every `test_*.json` of --data_dir, and `retrieval.json`, or the tests that --tests names: of that folder, or
public ones (ImageNet and its shifts, and others of CLIP's suite: basic_tf/evaluation/public_sets.py), which are read from
TensorFlow Datasets with the names and templates of --prompts. A public test that is not on disk is said and left out, the
others run. Writes results.json, results.md, accuracy.png and predictions.png. Exit codes: 0 done; 2 something is missing,
said in one line.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model_dir", None, "A run folder of basic_tf.train; its newest checkpoint is evaluated.")
flags.DEFINE_string("stage", None, "The stage of the run to take (default: the last that has a checkpoint).")
flags.DEFINE_integer("step", None, "The checkpoint's step (default: the newest).")
flags.DEFINE_string("saved_model", None, "A folder that basic_tf.export wrote, instead of --model_dir.")
flags.DEFINE_string(
    "data_dir", None, "The folder with test_*.json, retrieval.json and their records; several: a,b."
)
flags.DEFINE_string("output_dir", None, "Where the results go (default: --model_dir).")
flags.DEFINE_list(
    "tests", None, "These tests, by name (default: all in the folder); `public` for all public ones."
)
flags.DEFINE_string(
    "prompts", "data/prompts.json", "Names and templates of public tests: tools/prepare_prompts.py."
)
flags.DEFINE_string(
    "tfds_dir", None, "Where TensorFlow Datasets are (default: its own, ~/tensorflow_datasets)."
)
flags.DEFINE_string(
    "templates",
    None,
    'Prompt templates: "emoji", "bare", or a JSON file {"templates": [...]} (default: those of the run or the SavedModel).',
)
flags.DEFINE_string(
    "described_templates", "bare", "Templates for classes given by a description, as --templates."
)
flags.DEFINE_string(
    "canonicalisation", "as_is", 'Class names "as_is" or "plain" (lower case, no punctuation).'
)
flags.DEFINE_bool("retrieval", True, "Also evaluate retrieval where the folder has retrieval.json.")
flags.DEFINE_bool(
    "analysis", False, "Also analysis.md and confusions.png: templates, classes, confusions, few-shot curves."
)
flags.DEFINE_integer("batch_size", 64, "Pictures or sentences a batch.", 1)


def flag_problem(arguments: list[str]) -> str | None:
    """What is wrong with the command line, said before TensorFlow is loaded."""
    if arguments:
        return f"unexpected arguments {' '.join(arguments)}: everything is a --flag here"
    if bool(FLAGS.model_dir) == bool(FLAGS.saved_model):
        return "pass either --model_dir (a run folder) or --saved_model (an exported folder)"
    if not FLAGS.data_dir and not FLAGS.tests:
        return (
            "--data_dir is missing: the folder with test_*.json or retrieval.json and their records (or --tests with public "
            "tests)"
        )
    if not (FLAGS.output_dir or FLAGS.model_dir):
        return "--output_dir is missing: with --saved_model there is no run folder for the results"
    return None


def named_tests(names: list[str]):
    """(the names, how to open a test), from --tests; ValueError for a name that is neither public nor in the folder."""

    from basic_tf.evaluation import datasets, public_tests
    from basic_tf.evaluation.public_sets import PUBLIC_SETS

    names = list(
        dict.fromkeys(one for name in names for one in (PUBLIC_SETS if name == "public" else [name]))
    )
    if FLAGS.data_dir:
        datasets.folders(FLAGS.data_dir)
    others = [name for name in names if name not in PUBLIC_SETS]
    own = datasets.test_names(FLAGS.data_dir) if others and FLAGS.data_dir else []
    unknown = [name for name in others if name not in own]
    if unknown:
        folder = f"{FLAGS.data_dir} has {', '.join(own)}; " if own else ""
        raise ValueError(f"no test {unknown[0]!r}: {folder}public ones are {', '.join(PUBLIC_SETS)}")
    if len(others) == len(names):
        return names, None
    prompts_file = public_tests.Prompts.load(FLAGS.prompts)

    def open_test(name: str):
        if name in PUBLIC_SETS:
            return public_tests.open_public(name, prompts_file, FLAGS.data_dir, FLAGS.tfds_dir)
        return datasets.open_test(FLAGS.data_dir, name)

    return names, open_test


def run() -> None:
    """The whole recipe."""
    import tensorflow as tf

    from basic_tf.evaluation import analysis_report, datasets, prompts, report, suite, weight_cache
    from basic_tf.evaluation import encoder as encoders
    from basic_tf.serving import decoding
    from basic_tf.serving.saved_model import versions

    # What is missing, and that the results could not be written, is said before the model is loaded.
    tests, open_test = (None, None) if FLAGS.tests is None else named_tests(FLAGS.tests)
    if tests is None:
        datasets.test_names(FLAGS.data_dir)
    output_dir = FLAGS.output_dir or FLAGS.model_dir
    if FLAGS.output_dir:
        tf.io.gfile.makedirs(output_dir)
    if FLAGS.model_dir:
        from basic_tf import runs

        loaded = runs.load(FLAGS.model_dir, stage=FLAGS.stage, step=FLAGS.step)
        encoder = encoders.ModelEncoder(loaded.model, loaded.tokenizer, loaded.view, FLAGS.batch_size)
        templates = prompts.load_templates(FLAGS.templates or loaded.templates)
        view = decoding.description(loaded.view)
        provenance = {"model": FLAGS.model_dir, "stage": loaded.stage, "step": int(loaded.step)}
    else:
        encoder = encoders.SavedModelEncoder(FLAGS.saved_model, FLAGS.batch_size)
        templates = (
            prompts.load_templates(FLAGS.templates) if FLAGS.templates else encoder.metadata["templates"]
        )
        view = encoder.metadata.get("view", "not recorded: exported by an earlier version")
        origin = {key: value for key, value in encoder.metadata["provenance"].items() if key != "config"}
        provenance = {"model": FLAGS.saved_model, **origin}

    results = suite.run(
        encoder,
        FLAGS.data_dir,
        templates,
        tests=tests,
        described_templates=prompts.load_templates(FLAGS.described_templates),
        canonicalisation=FLAGS.canonicalisation,
        with_retrieval=FLAGS.retrieval,
        say=lambda line: print(line, flush=True),
        open_test=open_test,
        cache=weight_cache.WeightCache(f"{output_dir}/classifiers", encoder) if open_test else None,
        keep_embeddings=FLAGS.analysis,
        keep=sys.maxsize if FLAGS.analysis else 1000,
    )
    provenance |= {
        "data": FLAGS.data_dir,
        "view": view,
        "temperature": encoder.temperature,
        "versions": versions(),
    }
    report.write(results, output_dir, provenance)
    if FLAGS.analysis and results.zero_shot:
        analysis_report.write(results, encoder, output_dir)
    figures = ", accuracy.png, predictions.png" if results.zero_shot else ""
    print(f"{results.seconds:.0f} s; wrote {output_dir}/results.json, results.md{figures}")


def main(argv: list[str]) -> int:
    """Runs, and turns what a person can mend into one line."""
    problem = flag_problem(argv[1:])
    if problem:
        print(f"evaluate: {problem}", file=sys.stderr)
        return 2
    import tensorflow as tf

    from basic_tf.data import records
    from basic_tf.training import checkpoints

    mendable = (ValueError, OSError, tf.errors.OpError, checkpoints.CheckpointError, records.DamagedDataError)
    try:
        run()
    except mendable as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(main)

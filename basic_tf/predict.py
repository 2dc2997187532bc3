"""Classify or search your own pictures with an exported SavedModel.

    python -m basic_tf.predict --saved_model=runs/demo/saved_model --classes="cat,dog,red apple" pictures/
    python -m basic_tf.predict --saved_model=runs/demo/saved_model --search="something to eat" pictures/

Uses the SavedModel alone, no checkpoint. Arguments are pictures or folders, local or gs://. Each file that is
no readable picture gives one line, and the rest is still done.

Exit codes: 0 every file got an answer; 1 some files were unreadable (the others got theirs); 2 nothing could
be done (a wrong flag, no such SavedModel, no readable picture).
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # one line for each problem, and it is ours

import posixpath
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("saved_model", None, "The SavedModel folder that basic_tf.export wrote.")
flags.DEFINE_list(
    "classes", None, "Class names, separated by commas; each is put into the model's prompt templates."
)
flags.DEFINE_string("classes_file", None, "A text file with one class name on each line.")
flags.DEFINE_bool(
    "prompts", True, "Put the class names into the model's prompt templates; --noprompts takes them as typed."
)
flags.DEFINE_string("search", None, "Rank the pictures by this sentence instead of classifying them.")
flags.DEFINE_integer(
    "top", None, "How many classes to show for a picture (3); with --search how many pictures (all).", 1
)
flags.DEFINE_bool("recursive", False, "Also look into the folders inside a folder.")
flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
flags.DEFINE_string("sheet", None, "Also write the pictures with their answers to this PNG file.")
flags.DEFINE_integer("batch_size", 32, "Pictures a batch.", 1)
flags.DEFINE_float("max_megapixels", 100, "Larger pictures are not decoded.")


def read_classes() -> list[str]:
    """The class names of --classes and --classes_file, without repetitions."""
    import tensorflow as tf

    names = list(FLAGS.classes or [])
    if FLAGS.classes_file:
        if not tf.io.gfile.exists(FLAGS.classes_file):
            raise ValueError(f"--classes_file={FLAGS.classes_file} does not exist")
        with tf.io.gfile.GFile(FLAGS.classes_file, "rb") as file:
            content = file.read()
        try:
            # Without the byte-order mark that some editors leave.
            names += content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--classes_file={FLAGS.classes_file} is not UTF-8 text: {error}") from error
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ValueError('no class names: pass --classes="cat,dog", --classes_file, or --search="a sentence"')
    return names


def check_flags(arguments: list[str]) -> None:
    """Everything that can be said before TensorFlow is loaded."""
    if not FLAGS.saved_model:
        raise ValueError("--saved_model is missing: the folder that basic_tf.export wrote")
    if not arguments:
        raise ValueError("no pictures: name files or folders after the flags")
    if bool(FLAGS.search) == bool(FLAGS.classes or FLAGS.classes_file):
        raise ValueError(
            'pass either classes (--classes="cat,dog" or --classes_file) or --search="a sentence"'
        )
    # The model has no embedding for an empty text: every picture would be equally like it.
    if FLAGS.search and not FLAGS.search.strip():
        raise ValueError(f'--search={FLAGS.search!r} is empty: pass a sentence, --search="a red apple"')
    if any(not name.strip() for name in FLAGS.classes or []):
        raise ValueError('--classes has an empty name: pass names with one comma between them, "cat,dog"')


def run(arguments: list[str]) -> int:
    """The whole recipe; returns the exit code."""
    import tensorflow as tf
    from rich.console import Console

    from basic_tf.evaluation.encoder import SavedModelEncoder
    from basic_tf.prediction import output, pictures, prediction

    complain = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    classes = None if FLAGS.search else read_classes()
    if FLAGS.sheet and posixpath.dirname(FLAGS.sheet):  # before the work, not after it
        tf.io.gfile.makedirs(posixpath.dirname(FLAGS.sheet))
    listing = pictures.find_files(arguments, FLAGS.recursive)
    for problem in listing.problems:
        complain.print(output.unreadable_line(problem))
    if listing.passed_over:
        complain.print(f"{listing.passed_over} files do not end like a picture's and were left out")
    encoder = SavedModelEncoder(FLAGS.saved_model, FLAGS.batch_size)

    unreadable = list(listing.problems)
    readable = pictures.read_pictures(listing.files, bool(FLAGS.sheet), FLAGS.max_megapixels)

    def note(item):
        unreadable.append(item)
        complain.print(output.unreadable_line(item))

    if FLAGS.search:
        answers = prediction.search(encoder, readable, FLAGS.search, FLAGS.batch_size, note)
        shown = answers[: FLAGS.top]
    else:
        templates = encoder.metadata["templates"] if FLAGS.prompts else ("{}",)
        answers = []
        for item in prediction.classify(
            encoder, readable, classes, templates, FLAGS.top or 3, FLAGS.batch_size
        ):
            answers.append(item) if isinstance(item, prediction.Prediction) else note(item)
        shown = answers

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if FLAGS.json and FLAGS.search:
        print(output.matches_json(shown, unreadable, FLAGS.search))
    elif FLAGS.json:
        print(output.predictions_json(shown, unreadable, classes))
    elif FLAGS.search and shown:
        output.print_matches(console, FLAGS.search, shown)
    elif shown:
        output.print_predictions(console, shown)
    if FLAGS.sheet and shown:
        output.write_sheet(FLAGS.sheet, shown, FLAGS.search or "Which class?")
        complain.print(f"wrote {FLAGS.sheet}")
    if not answers:
        complain.print("no readable picture")
        return 2
    return 1 if unreadable else 0


def main(argv: list[str]) -> int:
    """Runs, and turns what a person can mend into one line."""
    mendable: tuple = (ValueError, OSError)
    try:
        check_flags(argv[1:])
        import tensorflow as tf

        mendable += (tf.errors.OpError,)
        return run(argv[1:])
    except mendable as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    app.run(main)

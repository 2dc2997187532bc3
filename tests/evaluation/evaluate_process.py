"""Runs basic_tf.evaluate several times in one fresh process (its flags have the names of other binaries'), on an encoder
of random directions: python -m tests.evaluation.evaluate_process '[["--tests=...", ...], ...]'. The last line is a JSON
list: of each run its exit code, what it printed and said as errors, and how many texts it embedded.
"""

import contextlib
import io
import json
import sys

from basic_tf import evaluate
from basic_tf.evaluation import encoder as encoders
from tests.evaluation.hash_encoder import HashEncoder


def main(runs: list[list[str]]) -> None:
    """Runs each list of flags."""
    encoder = HashEncoder()
    encoders.SavedModelEncoder = lambda folder, batch_size: encoder
    results = []
    for arguments in runs:
        evaluate.FLAGS.unparse_flags()
        for name in ("data_dir", "tests"):
            evaluate.FLAGS[name].unparse()
        evaluate.FLAGS(["evaluate", "--saved_model=any", *arguments])
        before, out, err = encoder.texts, io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = evaluate.main(["evaluate"])
        results.append([code, out.getvalue(), err.getvalue(), encoder.texts - before])
    print(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Writes the generated parts of documents (tables and charts) from the JSON that runs left in their folders.

    python tools/make_report.py docs/results/demo.md
    python tools/make_report.py --check docs/results/*.md

A part stands between `<!-- generated: KIND [RUN ...] -->` and `<!-- end -->`; kinds: zero_shot, retrieval, training,
stages, generalization (one run each), ablations, robustness (several), chaos (the folder of tools/chaos.py), interpolation
(that of tools/interpolate_weights.py), estimator_bias (no run), and study_verdicts, study_batches and others (the folder of
tools/run_study.py; where that holds no run, the record of its runs beside the document). Prose around them stays. Charts go
into a folder named like the document. The same runs give the same bytes. Relative paths of runs count from where it is
started.

Exit codes: 0 done; 1 some part could not be made and stays as it was (said in a line each), or with --check some part is
not what the runs say; 2 a document or a marker is wrong.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import functools
import tempfile

from absl import app, flags

_CHECK = flags.DEFINE_bool("check", False, "Change nothing; say what differs from what the runs say.")


def update(paths: list[str], check: bool = False) -> int:
    """Regenerates the documents; returns the exit code."""
    from tools.report import blocks, document

    incomplete = False
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            with tempfile.TemporaryDirectory() as scratch:
                trial = os.path.join(scratch, os.path.basename(path)) if check else path
                charts = blocks.Charts(trial, original=path)
                make = {kind: functools.partial(maker, charts=charts) for kind, maker in blocks.KINDS.items()}
                made, missing = document.regenerate(text, path, make)
            if made != text and not check:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(made)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            print(f"make_report: {error}", file=sys.stderr)
            return 2
        for line in missing:
            print(f"make_report: {line}", file=sys.stderr)
        state = "differs from its runs" if check else "written"
        print(f"{path} {state if made != text else 'is up to date'}")
        incomplete |= bool(missing) or (check and made != text)
    return 1 if incomplete else 0


def main(argv: list[str]) -> int:
    """Regenerates each document named on the command line."""
    if len(argv) < 2:
        print("make_report: name a document, e.g. docs/results/demo.md", file=sys.stderr)
        return 2
    return update(argv[1:], _CHECK.value)


if __name__ == "__main__":
    app.run(main)

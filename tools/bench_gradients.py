"""Exactness of Algorithm 1: the largest error of any gradient against the dense full-batch gradient.

Error of a variable: |difference| / max(|gradient|, 1e-3 x global gradient norm), in 2-norms. Towers of
every block type with dropout 0.1 and stochastic depth 0.1, uneven tiles; the reference is one tape over
the whole batch (tests/contrastive/exactness_grid.py). A bias that BatchNorm cancels has a gradient of exactly
zero, so in float32 its row shows rounding alone; `worst` names the variable.

    python tools/bench_gradients.py                        # the whole grid, 252 cases: minutes on two cores
    python tools/bench_gradients.py --short                # a pairwise selection, 12 cases
    python tools/bench_gradients.py --rows=grid.jsonl      # keeps finished rows; run again, it goes on

The last line is one JSON object: fp64_max_relative_error, fp32_max_relative_error and the rows behind them.
"""

import concurrent.futures
import json
import os
import resource
import sys
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from basic_tf.machine import cores  # noqa: E402 (the project's root must be on the path first)
from tests.contrastive import exactness_grid  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_bool("short", False, "A pairwise selection in place of the whole grid.")
flags.DEFINE_list("replicas", ["1", "2", "4"], "Only the cases with these numbers of replicas.")
flags.DEFINE_string(
    "rows", None, "A file of JSON lines: finished rows are kept there and not computed again."
)
flags.DEFINE_integer(
    "pieces", None, "Stop after so many pieces of the grid, each about a minute (with --rows)."
)
flags.DEFINE_integer("processes", cores(), "Processes at a time, of one thread each.")


def _finished(path: str | None) -> dict:
    """Case -> row of the rows that the file holds; a line that was cut short is computed again."""
    found = {}
    if path and os.path.exists(path):
        for line in Path(path).read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[exactness_grid.Case(*(row[name] for name in exactness_grid.Case._fields))] = row
    return found


def main(_) -> None:
    """Runs the grid and prints it."""
    chosen = exactness_grid.PAIRWISE if FLAGS.short else exactness_grid.cases()
    chosen = [case for case in chosen if str(case.replicas) in FLAGS.replicas]
    if not chosen:
        raise app.UsageError(f"no case has --replicas={','.join(FLAGS.replicas)}; choose from 1, 2 and 4")
    rows = {case: row for case, row in _finished(FLAGS.rows).items() if case in set(chosen)}
    left = exactness_grid.pieces([case for case in chosen if case not in rows])[: FLAGS.pieces]
    already, start = len(rows), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(FLAGS.processes) as pool:
        for done in concurrent.futures.as_completed([pool.submit(exactness_grid.run, p) for p in left]):
            for row in done.result():
                rows[exactness_grid.Case(*(row[name] for name in exactness_grid.Case._fields))] = row
                line = json.dumps(row)
                print(line, flush=True)
                if FLAGS.rows:
                    with open(FLAGS.rows, "a") as file:
                        file.write(line + "\n")
            per_minute = 60 * (len(rows) - already) / (time.monotonic() - start)
            print(
                f"{len(rows)}/{len(chosen)} cases  {per_minute:.0f} a minute  "
                f"about {(len(chosen) - len(rows)) / per_minute:.1f} min left",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    found = [rows[case] for case in chosen if case in rows]
    for fault in exactness_grid.faults(found):
        print(fault, file=sys.stderr)
    largest = {
        dtype: max((row["error"] for row in found if row["dtype"] == dtype), default=None)
        for dtype in ("float64", "float32")
    }
    summary = {
        "fp64_max_relative_error": largest["float64"],
        "fp32_max_relative_error": largest["float32"],
        "cases": len(found),
        "cases_left": len(chosen) - len(found),
        "faults": len(exactness_grid.faults(found)),
        "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]),
    }
    print(json.dumps({**summary, "rows": found}))
    if summary["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)

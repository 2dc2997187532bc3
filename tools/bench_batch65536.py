"""One contrastive training step with 65,536 real pairs on a small machine, and a proof that it is exact.

    python tools/bench_batch65536.py            # two runs of about five minutes
    make batch-65536                            # the same, with the emoji data prepared first

Each run is a process of its own: it reads the pairs (32 px emoji; the pictures repeat with other captions and
crops), takes one whole step of tasks.Contrastive and AdaFactorW, and reports its high-water mark (VmHWM, data
and TensorFlow included). Pictures stay uint8 until their microbatch. The second run cuts the same batch into
other microbatches and other tiles, and recomputes norms and activations; its gradient must be the same: the
largest error of any variable is |difference| / max(|gradient|, 1e-3 x global norm), in 2-norms.

The last line is one JSON object: peak_gib, seconds, gradient_max_relative_error and the rows behind them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
flags.DEFINE_integer("pairs", 65536, "B, the contrastive batch.")
flags.DEFINE_string("data_dir", "data/emoji", "Folder that tools/prepare_emoji.py made.")
flags.DEFINE_list("microbatches", ["512", "256"], "Pairs embedded at once, of each run.")
flags.DEFINE_list("tiles", ["2048", "1500"], "Rows of a loss tile, of each run.")
flags.DEFINE_list("remats", ["none", "norms_and_activations"], "Rematerialisation, of each run.")
flags.DEFINE_string("batch_norm", "layer", "BatchNorm policy: layer or frozen.")
flags.DEFINE_multi_string("gin_file", ["gin/models/basic_xs.gin"], "The towers (Encoders).")
flags.DEFINE_multi_string("gin_param", [], "Bindings over the gin files.")
flags.DEFINE_string("work_dir", None, "Keeps what each run found; run again, finished runs are not repeated.")
flags.DEFINE_string("run", None, "For the processes of this tool: MICROBATCH,TILE,REMAT,FOLDER.")


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def peak_gib() -> float:
    """The high-water mark of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("/proc/self/status has no VmHWM: this tool measures memory on Linux only")


def read_pairs():
    """(images uint8 [B, 32, 32, 3], token ids int32 [B, T], number of different records)."""
    import numpy as np

    import gin

    records = gin.get_configurable("Records")()
    batches = gin.get_configurable("ContrastiveBatches")(
        batch_size=min(FLAGS.pairs, records.count // 2), seed=0
    )
    images = token_ids = None
    seen, done, step, start = set(), 0, 0, time.monotonic()
    while done < FLAGS.pairs:
        found = batches.at(step)
        take = min(len(found["images"]), FLAGS.pairs - done)
        if images is None:
            images = np.empty((FLAGS.pairs, *found["images"].shape[1:]), np.uint8)
            token_ids = np.empty((FLAGS.pairs, found["token_ids"].shape[1]), np.int32)
        images[done : done + take], token_ids[done : done + take] = (
            found[name][:take] for name in ("images", "token_ids")
        )
        seen.update(found["record"][:take].tolist())
        done, step = done + take, step + 1
        rate = done / (time.monotonic() - start)
        say(
            f"reading  {done:,}/{FLAGS.pairs:,} pairs  {rate:,.0f} pairs/s  {(FLAGS.pairs - done) / rate:.0f} s left"
        )
    return images, token_ids, len(seen)


class Progress:
    """Tells how far the step is: pass 1 counts one forward pass a pair, pass 2 three, the loss `loss_cost`."""

    def __init__(self, pairs: int, microbatch: int, pair_cost: float, loss_cost: float):
        self.microbatch, self.count = microbatch, pairs // microbatch
        self.share, self.loss_cost = microbatch * pair_cost, loss_cost
        self.total = 4 * self.count * self.share + loss_cost
        self.times, self.told = [], 0.0  # when each microbatch was asked for; when a line was last shown

    def asked(self, index: int) -> int:
        """The graph asks for the pictures of a microbatch: in pass 1, then in pass 2."""
        index = int(index)  # NumPy's int32 would overflow below
        now, second = time.monotonic(), len(self.times) >= self.count
        self.times.append(now)
        # Pass 2 asks for its first pictures while the loss is still being computed.
        done = self.share * index * (3 if second else 1)
        done += self.count * self.share if second else 0
        done += self.loss_cost if second and index else 0
        if done and (now - self.told >= 5 or not index):
            self.told = now
            elapsed, of_pass = now - self.times[0], now - self.times[self.count if second else 0]
            rate = (
                f"{index * self.microbatch / of_pass:,.0f} pairs/s  " if index else "the loss comes first  "
            )
            say(
                f"pass {2 if second else 1}  {index}/{self.count} microbatches  {rate}{elapsed:.0f} s  "
                f"about {elapsed * (self.total - done) / done:.0f} s left"
            )
        return index

    def parts(self, end: float) -> dict:
        """Seconds of the two passes and of the loss between them, from the pace of each pass. `end`: of the step."""
        first, second = self.times[: self.count], [*self.times[self.count :], end]
        pass_1 = (first[-1] - first[0]) / max(len(first) - 1, 1) * self.count
        pass_2 = (second[-1] - second[1]) / max(len(second) - 2, 1) * self.count
        return {
            "pass_1_seconds": pass_1,
            "loss_seconds": end - first[0] - pass_1 - pass_2,
            "pass_2_seconds": pass_2,
        }


def run(microbatch: int, tile: int, remat: str, folder: str) -> dict:
    """One step in this process; leaves its gradients and new weights in `folder`."""
    import numpy as np
    import tensorflow as tf

    import gin
    from basic_tf import configurables, randomness
    from basic_tf.machine import cores
    from basic_tf.optimization.adafactorw import AdaFactorW
    from basic_tf.training.tasks import Contrastive

    tf.config.threading.set_intra_op_parallelism_threads(cores())
    tf.config.threading.set_inter_op_parallelism_threads(1)
    bindings = [f"CoAtNet.remat = '{remat}'", f"TextTransformer.remat = '{remat}'"]
    bindings += [f"CoAtNet.batch_norm = '{FLAGS.batch_norm}'", "CoAtNet.stochastic_depth = 0.1"]
    bindings += ["TextTransformer.dropout = 0.1", "ContrastiveBatches.order = None"]
    bindings += [
        f"Records.path = '{FLAGS.data_dir}/train.json'",
        f"Tokenizer.model_file = '{FLAGS.data_dir}/tokenizer.model'",
    ]
    configurables.parse([*FLAGS.gin_file, "gin/data/emoji.gin"], [*bindings, *FLAGS.gin_param])
    images, token_ids, records = read_pairs()
    task = Contrastive(None, gin.get_configurable("Encoders"), microbatch=microbatch, tile=tile)
    parameters = task.parameters()
    trained = {path: v for path, v in parameters.items() if v.trainable}
    optimizer = AdaFactorW(1e-3)
    optimizer.build(parameters)
    macs = sum(sum(getattr(task.model, t).multiply_adds().values()) for t in ("image_tower", "text_tower"))
    # The loss costs about twice its products: exponentials and sums walk over the tiles too.
    progress = Progress(FLAGS.pairs, microbatch, macs, 8.0 * FLAGS.pairs**2 * task.model.embedding_dim)
    pictures = tf.constant(images)
    del images

    def rows(index):
        told = tf.numpy_function(progress.asked, [index], tf.int64)
        with tf.control_dependencies([told]):
            start = tf.stack([index * microbatch, 0, 0, 0])
        found = tf.slice(pictures, start, [microbatch, -1, -1, -1])
        return tf.ensure_shape(found, [microbatch, *pictures.shape[1:]])

    @tf.function(autograph=False)
    def step(token_ids):
        batch = {"images": rows, "token_ids": token_ids, "examples": tf.range(FLAGS.pairs)}
        variables = [v.value for v in trained.values()]
        result = task.step(batch, randomness.step_key(0, 0), variables, None)
        optimizer.apply(result.gradients, list(trained.values()), step=0)
        return result.metrics, result.gradients

    token_ids = tf.constant(token_ids)
    start = time.monotonic()
    compiled = step.get_concrete_function(token_ids)
    say(f"traced in {time.monotonic() - start:.1f} s; {peak_gib():.2f} GiB so far")
    before = peak_gib()
    start = time.monotonic()
    metrics, gradients = compiled(token_ids)
    metrics = {name: float(value) for name, value in metrics.items()}
    seconds = time.monotonic() - start
    np.savez(os.path.join(folder, "gradients.npz"), *[np.asarray(g) for g in gradients])
    np.savez(os.path.join(folder, "weights.npz"), *[np.asarray(v) for v in trained.values()])
    return {
        "microbatch": microbatch,
        "tile": tile,
        "remat": remat,
        "records": records,
        "parameters": int(sum(np.prod(v.shape) for v in trained.values())),
        "paths": list(trained),
        "seconds": seconds,
        **progress.parts(start + seconds),
        "pairs_per_second": FLAGS.pairs / seconds,
        "gib_before_the_step": before,
        "peak_gib": peak_gib(),
        **metrics,
    }


def in_process(number: int, folder: str) -> dict:
    """Run `number` in a fresh process, unless `folder` holds its results."""
    row_file = os.path.join(folder, "row.json")
    if os.path.exists(row_file):
        return json.loads(Path(row_file).read_text())
    os.makedirs(folder, exist_ok=True)
    setting = [str(options[number]) for options in (FLAGS.microbatches, FLAGS.tiles, FLAGS.remats)]
    command = [sys.executable, __file__, f"--run={','.join([*setting, folder])}"]
    command += [f"--{name}={FLAGS[name].value}" for name in ("pairs", "data_dir", "batch_norm")]
    command += [f"--gin_file={x}" for x in FLAGS.gin_file] + [f"--gin_param={x}" for x in FLAGS.gin_param]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench_batch65536: the run with {' '.join(setting)} failed; its words are above")
    row = json.loads(done.stdout.splitlines()[-1])
    Path(row_file).write_text(json.dumps(row))
    return row


def main(_) -> None:
    """Takes the steps, compares the gradients, prints."""
    os.chdir(ROOT)
    if FLAGS.run:
        microbatch, tile, remat, folder = FLAGS.run.split(",")
        print(json.dumps(run(int(microbatch), int(tile), remat, folder)))
        return
    import numpy as np

    for size in FLAGS.microbatches:
        if FLAGS.pairs % int(size):
            raise app.UsageError(f"--microbatches: {size} does not divide the {FLAGS.pairs} pairs")
    if not os.path.exists(os.path.join(FLAGS.data_dir, "train.json")):
        raise app.UsageError(f"there is no {FLAGS.data_dir}/train.json; tools/prepare_emoji.py makes it")
    rows, gradients, weights = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for number, setting in enumerate(zip(FLAGS.microbatches, FLAGS.tiles, FLAGS.remats, strict=True)):
            towers = zlib.crc32(repr((FLAGS.gin_file, FLAGS.gin_param, FLAGS.data_dir)).encode())
            name = "-".join([str(FLAGS.pairs), FLAGS.batch_norm, *setting, f"{towers:08x}"])
            folder = os.path.abspath(os.path.join(FLAGS.work_dir or temporary, name))
            rows.append(in_process(number, folder))
            for name, found in (("gradients", gradients), ("weights", weights)):
                with np.load(os.path.join(folder, f"{name}.npz")) as arrays:
                    found.append([arrays[key].astype(np.float64) for key in arrays.files])
            row = rows[-1]
            paths = row.pop("paths")
            say(f"loss {row['loss']:.6f}  {row['seconds']:.0f} s  {row['peak_gib']:.2f} GiB")
    summary = {
        "pairs": FLAGS.pairs,
        "batch_norm": FLAGS.batch_norm,
        "peak_gib": max(row["peak_gib"] for row in rows),
        "seconds": [row["seconds"] for row in rows],
        "gradient_max_relative_error": None,
    }
    if len(rows) > 1:
        from tests.contrastive import dense_reference

        errors = [dense_reference.errors(found, gradients[0]) for found in gradients[1:]]
        worst = int(np.argmax(errors[0]))
        summary["gradient_max_relative_error"] = float(np.max(errors))
        summary["worst"] = paths[worst]
        summary["loss_difference"] = max(abs(row["loss"] - rows[0]["loss"]) for row in rows)
        summary["weights_max_relative_error"] = max(
            dense_reference.exactness(found, weights[0]) for found in weights[1:]
        )
    print(json.dumps({**summary, "runs": rows}))


if __name__ == "__main__":
    app.run(main)

r"""The first step of a recipe at its real size, through train.py, stage by stage, on a handful of real pictures.

  python tools/bench_first_steps.py --gin_file=gin/runs/basic_s.gin
  python tools/bench_first_steps.py --gin_file=gin/runs/basic_m.gin --folder=runs/first_steps_m

Shows that a run file works from TFRecords to the checkpoint on this machine, and what that takes: each stage is one
process of basic_tf.train with the file's own towers, picture size, types, schedule and rematerialisation, and starts from
the checkpoint of the stage before; only data, batch size and microbatch are replaced. Pictures are emoji, enlarged to
256 px and stored as JPEG, with their captions and labels. The last line is one JSON object: the parameters, and for each
stage its loss, its seconds (start, tracing and writing the checkpoint included) and peak memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
_GIN_FILE = flags.DEFINE_string("gin_file", "gin/runs/basic_s.gin", "A run file over gin/data/web.gin.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Further bindings, as for basic_tf.train.")
_DATA = flags.DEFINE_string("data_dir", "data/emoji", "Pairs: train.json and tokenizer.model (make data).")
_PICTURES = flags.DEFINE_integer("pictures", 64, "So many pictures.", 8)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures a step.", 2)
_MICROBATCH = flags.DEFINE_integer(
    "microbatch", 4, "Pictures at a time; also the groups of ghost BatchNorm.", 1
)
_STEPS = flags.DEFINE_integer("steps", 1, "Steps of each stage.", 1)
_STAGES = flags.DEFINE_list("stages", ["pretrain", "contrastive", "finetune"], "In this order.")
_FOLDER = flags.DEFINE_string("folder", None, "Where data and run are kept (default: a temporary folder).")
_SIDE = 256  # of the pictures; the recipe cuts 224 out of them


def write_pictures(folder: str, count: int) -> None:
    """`count` records of the data, spread over it: pictures enlarged, as JPEGs; captions and labels as they are."""
    import numpy as np
    import tensorflow as tf

    from basic_tf.data import decoding, examples, records

    source = records.RecordSource.open(f"{_DATA.value}/train.json")
    chosen = np.linspace(0, source.count - 1, count).astype(np.int64)
    with records.RecordWriter(folder, "train", shards=1) as writer:
        for payload in source.read(chosen):
            record = records.parse_example(payload)
            picture = decoding.resize(decoding.decode(record.image), _SIDE, _SIDE)
            encoded = tf.io.encode_jpeg(picture, quality=90).numpy()
            writer.write(examples.serialize_example(encoded, record.captions, record.labels, record.id))
        writer.finish(label_names=source.metadata["label_names"])


def bindings(data: str) -> list[str]:
    """What replaces the recipe's data, batch size and microbatch."""
    batch, rows = _BATCH_SIZE.value, _MICROBATCH.value
    found = [f"{name} = '{data}/train.json'" for name in ("PAIRS", "LABELLED")]
    found.append(f"TOKENIZER = '{_DATA.value}/tokenizer.model'")
    found += [f"{stage}/Stage.batch_size = {batch}" for stage in ("pretrain", "contrastive", "finetune")]
    found += [f"pretrain/Classification.microbatch = {rows}", f"Contrastive.microbatch = {rows}"]
    found += [f"pretrain/CoAtNet.ghost_size = {rows}"]
    # 14 epochs of JFT-300M. Of these few pictures they were a hundred steps, and the warm-up two: another first step.
    found += ["pretrain/Duration.epochs = None", "pretrain/Duration.steps = 256000"]
    return found + _GIN_PARAM.value


def run_stage(name: str, folder: str, params: list[str]) -> dict:
    """One stage as a process of its own: its figures."""
    command = [sys.executable, "-m", "basic_tf.train", f"--gin_file={_GIN_FILE.value}", f"--model_dir={folder}/run",
               "--mode=train", f"--stage={name}", f"--train_steps={_STEPS.value}",
               *(f"--gin_param={param}" for param in params)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)  # the high-water mark of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench_first_steps: stage {name} failed; its own words are above")
    seconds = time.monotonic() - start
    with open(os.path.join(folder, "run", name, "metrics.jsonl"), encoding="utf-8") as file:
        last = json.loads(file.read().splitlines()[-1])
    return {
        "loss": round(last["loss"], 4),
        "step": last["step"],
        "seconds": round(seconds, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def weights_of(stage_folder: str) -> int:
    """Weights in the stage's checkpoint, moving statistics left out."""
    from basic_tf.training import checkpoints, stage_run

    arrays = stage_run.trained_arrays(checkpoints.load_latest(stage_run.checkpoint_folder(stage_folder)))
    return sum(array.size for path, array in arrays.items() if "/moving_" not in path)


def main(argv: list[str]) -> None:
    """All stages of the recipe in their order."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(_FOLDER.value or temporary)
        data = os.path.join(folder, "data")
        write_pictures(data, max(_PICTURES.value, _BATCH_SIZE.value))
        figures = {}
        for name in _STAGES.value:
            figures[name] = run_stage(name, folder, bindings(data))
            print(f"{name}: {figures[name]}", flush=True)
        parameters = weights_of(os.path.join(folder, "run", _STAGES.value[-1]))
    head = {"gin_file": _GIN_FILE.value, "batch_size": _BATCH_SIZE.value, "microbatch": _MICROBATCH.value}
    print(json.dumps({**head, "parameters": parameters, **figures}))


if __name__ == "__main__":
    app.run(main)

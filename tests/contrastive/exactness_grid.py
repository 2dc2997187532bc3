"""The exactness of Algorithm 1 as a grid: every case against the dense gradient of the same model.

The model is the real dual encoder at test size with dropout 0.1 and stochastic depth 0.1; the reference is one
tape over the whole batch without rematerialisation. Axes: replicas, precision, BatchNorm policy,
rematerialisation, what is frozen, microbatches. `cases()` is the whole grid, PAIRWISE a cheap selection that
holds every pair of values of any two axes.

    python -m tests.contrastive.exactness_grid REPLICAS CASES_AS_JSON     # one JSON row per case

is one process: a MirroredStrategy over logical CPU devices can exist once in each.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
AXES = {
    "replicas": (1, 2, 4),
    "dtype": ("float64", "float32"),
    "batch_norm": ("ghost", "frozen", "layer"),
    "remat": ("none", "blocks", "norms_and_activations"),
    "frozen": ("nothing", "image_tower"),
    "microbatches": (1, 2, 3, 8),
}
MICROBATCH, GHOST_SIZE, TILE, SIDE = 4, 2, (3, 5), 16
LIMITS = {"float64": 1e-12, "float32": 2e-5}


class Case(NamedTuple):
    """One cell. mode: 'eager' or 'graph'; a graph is traced for a batch of unknown size, so that one serves
    several numbers of microbatches."""

    replicas: int
    dtype: str
    batch_norm: str
    remat: str
    frozen: str
    microbatches: int
    mode: str = "eager"
    reuse_last: bool = False


# As few cases as can be, found by search for the least cost.
PAIRWISE = [
    Case(1, "float32", "ghost", "norms_and_activations", "image_tower", 2),
    Case(1, "float64", "frozen", "none", "image_tower", 1),
    Case(1, "float64", "ghost", "norms_and_activations", "nothing", 3),
    Case(1, "float64", "layer", "blocks", "nothing", 8),
    Case(2, "float32", "frozen", "blocks", "image_tower", 3),
    Case(2, "float32", "ghost", "none", "image_tower", 8),
    Case(2, "float32", "layer", "norms_and_activations", "nothing", 1),
    Case(2, "float64", "layer", "blocks", "image_tower", 2),
    Case(4, "float32", "ghost", "blocks", "image_tower", 1),
    Case(4, "float64", "frozen", "none", "nothing", 2),
    Case(4, "float64", "frozen", "norms_and_activations", "image_tower", 8),
    Case(4, "float64", "layer", "none", "image_tower", 3),
]


def cases() -> list[Case]:
    """The whole grid for one replica; for more, every combination of the towers' settings, with the numbers of
    microbatches in turn (pairwise with each of them)."""
    settings = list(itertools.product(*(AXES[a] for a in ("dtype", "batch_norm", "remat", "frozen"))))
    found = []
    for setting in settings:
        found += [Case(1, *setting, n, "eager" if n == 1 else "graph") for n in AXES["microbatches"]]
        found.append(Case(1, *setting, 3, "eager", reuse_last=True))
    for replicas, setting in itertools.product(AXES["replicas"][1:], settings):
        dtype, *others = (
            AXES[a].index(x) for a, x in zip(("dtype", "batch_norm", "remat", "frozen"), setting)
        )
        turn = (2 * dtype + sum(others)) % 4  # no axis keeps step with it
        found.append(Case(replicas, *setting, AXES["microbatches"][turn], reuse_last=turn == 2))
    return found


def pieces(chosen: list[Case]) -> list[list[Case]]:
    """The cases in runs of a minute at most, each with one number of replicas."""
    ordered = sorted(chosen, key=lambda c: (c.replicas, c.dtype, c.batch_norm))
    return [
        list(own) for _, own in itertools.groupby(ordered, key=lambda c: (c.replicas, c.dtype, c.batch_norm))
    ]


def pairs_of(case: Case) -> set:
    """Every pair of (axis, value) that the case holds."""
    return set(itertools.combinations([(axis, getattr(case, axis)) for axis in AXES], 2))


class Runner:
    """Runs cases in this process; models and references are shared between them."""

    def __init__(self, replicas: int):
        from basic_tf import randomness
        from basic_tf.parallel import strategies

        self.replicas = replicas
        name = "one_device" if replicas == 1 else "mirrored"
        self.runtime = strategies.create(name, logical_devices=None if replicas == 1 else replicas)
        self.key = randomness.step_key(7, 11)
        self._references: dict = {}
        self._graphs: dict = {}

    def batch(self, case: Case):
        """(images, token ids) of the global batch."""
        from tests.contrastive import tiny_dual_encoder

        pairs = self.replicas * case.microbatches * MICROBATCH
        return tiny_dual_encoder.random_batch(pairs, seed=pairs, side=SIDE)

    def model(self, case: Case, remat: str):
        """A model, and paths and variables of what the case trains. Blocks with and without a stride.

        Narrow towers start by fan in, as the demo's do. Under N(0, 0.02) the first convolution says so little that
        ghost BatchNorm blows up its rounding: its bias, whose exact gradient is zero, would show 5e-5 in float32.
        """
        from basic_tf.towers.coatnet_table import CoAtNetTable
        from tests.contrastive import tiny_dual_encoder

        blocks = 2 if self.replicas == 1 else 1  # eager steps of several replicas are slow
        table = CoAtNetTable((2, 8), (("mbconv", blocks, 12), ("attention", blocks, 32)), head_dim=16)
        model = tiny_dual_encoder.tiny_model(
            case.dtype,
            case.batch_norm,
            remat,
            ghost_size=GHOST_SIZE,
            table=table,
            side=SIDE,
            initializer="fan_in",
        )
        trainable = {id(v) for v in model.trainable_variables}
        frozen = "image_tower/" if case.frozen == "image_tower" else "-"
        paths = [p for p, v in model.parameters().items() if id(v) in trainable and not p.startswith(frozen)]
        return model, paths, [model.parameters()[path] for path in paths]

    def reference(self, case: Case):
        """(loss, gradients, statistics) of the dense full batch, without rematerialisation."""
        from tests.contrastive import dense_reference

        name = case.dtype, case.batch_norm, case.frozen, case.microbatches
        if name not in self._references:
            model, _, variables = self.model(case, "none")
            self._references[name] = dense_reference.full_batch_gradients(
                model, *self.batch(case), self.key, variables
            )
        return self._references[name]

    def found(self, case: Case):
        """(paths, loss, gradients, statistics) by Algorithm 1."""
        import tensorflow as tf

        from basic_tf.contrastive.gradients import contrastive_gradients

        name = case.dtype, case.batch_norm, case.remat, case.frozen, case.mode, case.reuse_last
        if name not in self._graphs:
            with self.runtime.scope():
                model, paths, variables = self.model(case, case.remat)
            collectives = self.runtime.collectives

            def replica_half(images, token_ids):
                found = contrastive_gradients(
                    model, images, token_ids, MICROBATCH, noise_key=self.key, variables=variables, tile=TILE,
                    collectives=collectives, reuse_last=case.reuse_last,
                )  # fmt: skip
                return found.loss, found.gradients, found.statistics

            step = replica_half
            if case.mode == "graph":
                images, token_ids = self.batch(case)
                signature = [
                    tf.TensorSpec([None, *images.shape[1:]], images.dtype),
                    tf.TensorSpec([None, *token_ids.shape[1:]], token_ids.dtype),
                ]
                step = tf.function(replica_half, input_signature=signature, autograph=False)
            self._graphs = {name: (paths, step)}  # one at a time: graphs are large
        paths, step = self._graphs[name]
        loss, gradients, statistics = self.runtime.run(step, [self._cut(x) for x in self.batch(case)])
        if (
            self.replicas > 1
        ):  # each replica returns its share; a collective for each variable would take seconds
            gradients = [sum(self.runtime.strategy.experimental_local_results(g)) for g in gradients]
        return paths, *self.runtime.local((loss, gradients, statistics))

    def _cut(self, rows):
        if self.replicas == 1:
            return rows
        local = rows.shape[0] // self.replicas
        return self.runtime.strategy.experimental_distribute_values_from_function(
            lambda context: rows[context.replica_id_in_sync_group * local :][:local]
        )

    def row(self, case: Case) -> dict:
        """The case with its errors; `error` is the largest of any variable, `worst` that variable's path."""
        import numpy as np

        from tests.contrastive import dense_reference

        paths, loss, gradients, statistics = self.found(case)
        expected_loss, expected, expected_statistics = self.reference(case)
        errors = dense_reference.errors(gradients, expected)
        differences = [
            float(np.abs(np.asarray(f) - np.asarray(e)).max())
            for f, e in zip(statistics, expected_statistics, strict=True)
        ]
        return {
            **case._asdict(),
            "error": float(np.max(errors)),  # NaN stays NaN
            "worst": paths[int(np.argmax(errors))],
            "loss_error": abs(float(loss) - float(expected_loss)),
            "statistics": len(differences),
            "statistics_error": max([0.0, *differences]),
        }


def run(chosen: list[Case]) -> list[dict]:
    """Rows of cases that share one number of replicas, from a fresh process."""
    (replicas,) = {case.replicas for case in chosen}
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        **os.environ,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.contrastive.exactness_grid", str(replicas), json.dumps(chosen)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{len(chosen)} cases with {replicas} replicas failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def faults(rows: list[dict]) -> list[str]:
    """What is wrong with the rows, one line each; empty when all is well."""
    found = []
    for row in rows:
        limit = LIMITS[row["dtype"]]
        for name in ("error", "loss_error", "statistics_error"):
            if not row[name] <= limit * (10 if name == "loss_error" else 1):
                found.append(f"{name} {row[name]:.2e} in {row}")
        moving = row["batch_norm"] == "ghost" and row["frozen"] == "nothing"
        if bool(row["statistics"]) != moving:
            found.append(f"{row['statistics']} BatchNorm statistics in {row}")
    return found


def main(replicas: int, chosen: list) -> None:
    """Prints a row per case, as JSON."""
    import tensorflow as tf

    # Tiny tensors: a second thread only gets in the way.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    runner = Runner(replicas)
    for values in chosen:
        print(json.dumps(runner.row(Case(*values))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))

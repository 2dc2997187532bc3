"""The generated parts of docs/theory.md."""

import os
from collections.abc import Sequence

import numpy as np

from basic_tf.contrastive.generalization import BiasTerms
from tools.report import sphere
from tools.report.layout import Charts, one_run, table
from tools.report.runs import read_json


def generalization(runs: Sequence[str], charts: Charts) -> str:
    """The gaps that tools/measure_generalization.py found in one run, and the terms of our bound for it."""
    del charts
    run = one_run(runs, "generalization")
    content = read_json(os.path.join(run.folder, "generalization.json"))
    rows = [
        [
            f"{gaps['batch']:,}",
            *(
                f"{gaps[name]['value']:+.3f} ± {gaps[name]['standard_error']:.3f}"
                for name in ("same_estimator", "reference_pool", "train_objective")
            ),
        ]
        for gaps in content["gaps"]
    ]
    terms = content["bound"]["log10"]
    names = list(terms["all_encoders"])
    bounds = [
        [
            name.replace("_", " "),
            *(
                "0" if terms[of][name] is None else f"10^{terms[of][name]:.1f}"
                for of in ("all_encoders", "fixed_encoders")
            ),
        ]
        for name in names
    ]
    train, test = content["train"]["pairs"], content["test"]["pairs"]
    weights = content["bound"]["weights"]
    lines = [
        f"`{run.folder}`, stage {content['stage']}, step {content['step']:,}, 1/tau = "
        f"{content['inverse_temperature']:.1f}; {train:,} training and {test:,} test pairs; reference pools of "
        f"{content['gaps'][0]['pool']:,} pairs.",
        "",
        *table(["B", "same estimator", "reference pool", "train objective"], rows),
        "",
        f"The bound at m = {content['bound']['pairs']:,}, B = {content['bound']['batch']:,}, delta = "
        f"{content['bound']['delta']}, for {weights['image']:,} + {weights['text']:,} weights of "
        f"{content['bound']['bits_of_a_weight']} bits, and for encoders fixed in advance:",
        "",
        *table(["term", "all encoders of the architecture", "fixed encoders"], bounds),
    ]
    return "\n".join(lines)


def estimator_bias(runs: Sequence[str], charts: Charts) -> str:
    """The bias of the estimators on unit vectors in 64 dimensions at tau = 0.07, by simulation and to first order."""
    del runs, charts
    dimension, s, cosine = 64, 1 / 0.07, 0.5
    terms = BiasTerms(sphere.relative_variance(dimension, s), sphere.positive_weight(dimension, s, cosine))
    rows = []
    for count in (16, 64, 256, 1024, 4096):
        rng = np.random.default_rng(count)
        draws = 20_000 if count <= 256 else 4_000
        negatives, with_own = (
            sphere.simulated_bias(dimension, s, count, own, rng, draws) for own in (None, cosine)
        )
        rows.append(
            [
                f"{count:,}",
                f"{negatives[0]:+.3f} ± {negatives[1]:.3f}",
                f"{terms.left_out(count):+.3f}",
                f"{with_own[0]:+.3f} ± {with_own[1]:.3f}",
                f"{terms.in_batch(count):+.3f}",
                f"{negatives[2] * count**0.5:.1f}",
            ]
        )
    head = ["B", "negatives alone", "first order", f"own pair (cosine {cosine}) in the batch", "first order"]
    return "\n".join(table([*head, "deviation x sqrt(B)"], rows))

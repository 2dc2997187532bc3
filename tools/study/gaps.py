"""The evaluation of a study's run: the suite's accuracies, and the three gaps on pairs that nothing has learned from."""

import numpy as np
import orbit

from basic_tf import configurables
from basic_tf.contrastive import generalization
from basic_tf.data.features import FeatureBatches
from basic_tf.data.subset import Subset
from tools.study import plan

PAIRS = 4096  # drawn of each side, with replacement, so that a batch of 4,096 can be had
POOL = 2048
_TEXTS = 256


class StudyEvaluator(orbit.AbstractEvaluator):
    """The suite while training (`basic_tf.evaluation`), and for runs on features of the emoji pairs the gaps."""

    def __init__(self, run, report):
        """run: training.stage_run.StageRun. report: takes all figures of an evaluation at once."""
        self._run, self._report, self._figures = run, report, {}
        self._suite = configurables.Evaluation().of(run, self._figures.update)

    def evaluate(self, num_steps) -> dict[str, float]:
        """One pass over everything."""
        self._figures.clear()
        self._suite.evaluate(num_steps)
        batches = self._run.batches
        if isinstance(batches, FeatureBatches) and isinstance(batches.source, Subset):
            with self._run.averaged_weights():
                self._figures |= gap_figures(self._run.task.model, batches)
        self._report(dict(self._figures))
        return dict(self._figures)


def gap_figures(model, batches: FeatureBatches, seed: int = 0) -> dict[str, float]:
    """The gaps of a model trained on `batches`, a part of the records before plan.TRAINED; held out are those behind.

    Losses are normalised (docs/theory.md). Pairs are draws with replacement of a record, its picture unaugmented, and one
    of its captions: samples of the two empirical distributions, in which concepts meet as often as in a shuffled batch.
    """
    source = batches.source.source
    if batches.source.metadata["subset"]["stop"] > plan.TRAINED:
        raise ValueError(f"the run trains on records behind the share {plan.TRAINED}, which are held out")
    held_out = FeatureBatches(
        Subset(source, plan.TRAINED, 1.0),
        batches.tokenizer,
        batches.augmentation,
        1,
        0,
        captions=batches.captions,
    )
    rng = np.random.default_rng(seed)
    train, test = (embedded(model, side, PAIRS, rng) for side in (batches, held_out))
    scale = float(np.exp(float(model.log_inverse_temperature.numpy())))

    def loss(split, pool, own_pair):
        return generalization.normalised_loss(*split, scale, pool, own_pair)

    losses = {
        "train_batch": loss(train, batches.batch_size, True),
        "test_batch": loss(test, batches.batch_size, True),
        "train_pool": loss(train, POOL, False),
        "test_pool": loss(test, POOL, False),
    }
    gaps = {
        "same_estimator": losses["test_batch"] - losses["train_batch"],
        "reference_pool": losses["test_pool"] - losses["train_pool"],
        "train_objective": losses["test_pool"] - losses["train_batch"],
    }
    figures = {"gap/inverse_temperature": scale}
    for name, estimate in (losses | gaps).items():
        figures[f"gap/{name}"] = estimate.value
        figures[f"gap/{name}_standard_error"] = estimate.standard_error
    return figures


def embedded(model, batches: FeatureBatches, pairs: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (images, texts) [pairs, E] of records drawn with replacement, the first view and a caption of each."""
    usable = np.flatnonzero([texts is not None and len(texts.captions) > 0 for texts in batches.record_texts])
    records = rng.choice(usable, pairs)
    images = model.project_image(batches.features[records, 0].astype(np.float32)).numpy()
    captions = [batches.record_texts[r].captions for r in records.tolist()]
    chosen = [own[rng.integers(len(own))] for own in captions]
    rows = [
        model.encode_text(batches.tokenizer(chosen[start : start + _TEXTS])).numpy()
        for start in range(0, pairs, _TEXTS)
    ]
    return images, np.concatenate(rows)

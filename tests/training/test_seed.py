"""Everything random of a run follows from its seed: initial values and the optimizer's noise too."""

import numpy as np
import pytest

from basic_tf import configurables
from basic_tf.parallel import strategies
from basic_tf.training import stage_run
from tests import tiny_data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    data = tiny_data.make(str(tmp_path_factory.mktemp("tiny")))

    def build(seed, *extra, stage="finetune"):
        bindings = [f"TRAIN = '{data}/train.json'", f"MODEL = '{data}/tokenizer.model'", *extra]
        configurables.parse(["tests/training/tiny.gin"], bindings)
        options = stage_run.Options(seed=seed)
        chosen = configurables.recipe().stage(stage)
        return stage_run.built(chosen, str(data), strategies.create("one_device"), options)

    return build


def kernels(run):
    """Everything that is drawn: the arrays that are not constant."""
    arrays = {path: np.asarray(variable) for path, variable in run.parameters.items()}
    return {path: array for path, array in arrays.items() if array.size > 1 and np.ptp(array) > 0}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_initial_values_follow_from_the_seed(built, stage):
    first, same, other = (kernels(built(seed, stage=stage)) for seed in (4, 4, 5))
    assert {path.split("/")[0] for path in first} >= {"image_tower"} and first.keys() == other.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(array, same[path])
        assert abs(np.corrcoef(array.ravel(), other[path].ravel())[0, 1]) < 0.5, path
    if stage == "finetune":
        assert {"text_tower", "image_projection", "text_projection"} <= {path.split("/")[0] for path in first}


def test_a_seed_of_gin_adds_to_it(built):
    bound, plain = kernels(built(4, "CoAtNet.seed = 3")), kernels(built(4))
    changed = {path for path in plain if not np.array_equal(plain[path], bound[path])}
    assert changed == {path for path in plain if path.startswith("image_tower/")}


def test_a_seed_after_the_weights_is_refused(built):
    with pytest.raises(RuntimeError, match="exist already"):
        built(4).task.model.add_seed(1)


def test_the_optimizers_noise_follows_from_it(built):
    seeds = {built(seed, stage=stage).optimizer.seed for seed in (4, 5) for stage in ("pretrain", "finetune")}
    assert len(seeds) == 4


@pytest.mark.parametrize(
    "binding",
    ["AdaFactorW.learning_rate = 0.1", "AdaFactorW.seed = 1", "Schedule.total_steps = 7",
     "ContrastiveBatches.seed = 3", "LabelledBatches.batch_size = 3"],
)  # fmt: skip
def test_what_a_stage_gives_itself_cannot_be_bound(built, binding):
    with pytest.raises(configurables.GinError, match=binding.split(" ")[0].split(".")[1]):
        built(0, binding)

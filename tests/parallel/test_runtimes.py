"""The real train.py on every runtime: the losses of one device, checkpoints that move, what is made of its runs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from basic_tf.training import stage_run
from tests.parallel.programs import output_of
from tools import bench_runtimes, bench_sharding

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "runtime",
    [
        "mirrored_2",
        "multi_worker_2",
        "dtensor_2x1",
        *(
            pytest.param(name, marks=slow)
            for name in ("mirrored_4", "dtensor_2x2", "dtensor_1x2", "dtensor_2x1_batch")
        ),
    ],
)
def test_three_steps_equal_one_device(run, one_device, runtime):
    found = run.losses(runtime)
    assert len(found) == 3
    np.testing.assert_allclose(found, one_device, rtol=1e-9)


def check_against_one_device(run, folder, runtime, rtol=1e-9):
    """The same run on one device and on `runtime` has the same losses."""
    reference = run.losses("one_device", folder=folder / "one_device")
    found = run.losses(runtime, folder=folder / runtime)
    np.testing.assert_allclose(found, reference, rtol=rtol, err_msg="; ".join(run.bindings))


@slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_three_narrow_steps_are_near_those_of_one_device(run, tmp_path, dtype):
    check_against_one_device(dataclasses.replace(run, dtype=dtype), tmp_path, "dtensor_2x1", rtol=0.01)


OPTIONS = {
    "CoAtNet.batch_norm": ("'ghost'", "'layer'", "'frozen'"),
    "CoAtNet.remat": ("'none'", "'blocks'", "'norms_and_activations'"),
    "TextTransformer.remat": ("'none'", "'blocks'", "'norms_and_activations'"),
    "CoAtNet.downsample": ("'expand'", "'depthwise'"),
    "CoAtNet.mbconv_pool": ("'average'", "'max'"),
    "CoAtNet.attention_pool": ("'average'", "'max'"),
    "CoAtNet.se_ratio": ("0.0", "0.25"),
    "CoAtNet.pre_logits": ("True", "False"),
    "CoAtNet.initializer": ("'normal'", "'fan_in'"),
    "Encoders.text_projection": ("True", "False"),
    "joint/Contrastive.microbatch": ("2", "4", "8", "None"),
    "Contrastive.tile": ("2048", "4", "(4, 6)"),
    "Contrastive.label_smoothing": ("0.0", "0.1"),
    "Contrastive.max_inverse_temperature": ("100.0", "None", "5.0"),
    "AdaFactorW.beta1": ("0.9", "0.0"),
    "AdaFactorW.second_moment": ("'factored'", "'full'"),
    "AdaFactorW.bias_correction": ("True", "False"),
    "AdaFactorW.global_clip_norm": ("None", "1.0"),
    "AdaFactorW.factor_min_dim": ("1", "32"),
    "Stage.weight_average": ("@WeightAverage", "None"),
    "ContrastiveBatches.order": ("None", "@DistinctLabels", "@BlockOrder"),
    "Schedule.shape": ("'cosine'", "'linear'", "'constant'", "'rsqrt'"),
}


@slow
@pytest.mark.parametrize("runtime", ["mirrored_2", "dtensor_2x1", "dtensor_1x2"])
def test_any_options_equal_one_device(run, tmp_path, runtime):
    rng = np.random.default_rng()
    chosen = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
    # As wide as the tiniest text tower, so that it may go without a projection.
    chosen |= {"Encoders.embedding_dim": "16", "AdaFactorW.momentum_dtype": "None"}
    bindings = [*run.bindings, *(f"{name} = {value}" for name, value in chosen.items())]
    check_against_one_device(dataclasses.replace(run, bindings=bindings), tmp_path, runtime)


@slow
def test_a_mesh_trains_without_a_bound_of_the_temperature(run, tmp_path):
    """A mesh cannot run a function that does nothing."""
    bindings = (*run.bindings, "Contrastive.max_inverse_temperature = None")
    check_against_one_device(dataclasses.replace(run, bindings=bindings), tmp_path, "dtensor_1x2")


@slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_twenty_steps_equal_one_device(run, tmp_path, dtype):
    whole = dataclasses.replace(run, dtype=dtype, steps=20, bindings=())
    reference = whole.losses("one_device", folder=tmp_path / "one_device")
    worse = {}
    for runtime in bench_runtimes.RUNTIMES[1:]:
        found = whole.losses(runtime, folder=tmp_path / runtime)
        difference = bench_runtimes.differences(reference, found)
        held = (
            difference["worst_relative"] <= 1e-9
            if dtype == "float64"
            else difference["first_relative"] <= 1e-5 and difference["last_relative"] <= 1e-3
        )
        if not held:
            worse[runtime] = difference
    assert not worse


def keep_only(run, step: int) -> None:
    """Makes a finished run one that was killed after the checkpoint of `step`."""
    run.forget_the_end()
    for other in run.checkpoint_steps():
        if other != step:
            shutil.rmtree(f"{stage_run.checkpoint_folder(str(run.stage))}/step-{other:09d}")


SAVING = ("Stage.checkpoint_steps = 2", "Stage.keep_checkpoints = 9")


@slow
def test_checkpoints_move_between_runtimes(run):
    """1 device -> 4 replicas -> a 2 x 2 mesh -> 2 workers -> 1 device, two steps each: the same curve, the same arrays."""
    moved = dataclasses.replace(run, steps=10, bindings=(*run.bindings, *SAVING))
    reference = moved.losses("one_device")
    expected = moved.last()
    path = ((2, "mirrored_4"), (4, "dtensor_2x2"), (6, "multi_worker_2"), (8, "one_device"))
    for step, runtime in path:
        keep_only(moved, step)
        found = moved.losses(runtime)
        np.testing.assert_allclose(found, reference, rtol=1e-9, err_msg=runtime)
        last = moved.last()
        assert last.step == 10 and last.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(
                last.arrays[name], array, rtol=1e-6, atol=1e-9, err_msg=f"{runtime} {name}"
            )


@slow
@pytest.mark.parametrize("runtime", ["mirrored_2", "multi_worker_2", "dtensor_2x2"])
def test_runs_of_any_runtime_are_evaluated_and_exported(run, tiny, runtime):
    """Figures and embeddings are those of the run on one device."""
    figures, embeddings = [], []
    for name in ("one_device", runtime):
        own = dataclasses.replace(run, folder=run.folder / name, dtype="float32")
        own.losses(name)
        output_of("-m", "basic_tf.evaluate", f"--model_dir={own.folder}", f"--data_dir={tiny}", timeout=600)
        output_of("-m", "basic_tf.export", f"--model_dir={own.folder}", timeout=600)
        results = json.loads((own.folder / "results.json").read_text())
        figures.append(
            [
                results["zero_shot"]["in_distribution"]["top1"],
                results["retrieval"]["text_to_image"]["R@1"],
            ]
        )
        code = (
            "import sys, tensorflow as tf, tensorflow_text;"
            "f = tf.saved_model.load(sys.argv[1]).signatures['encode_text'];"
            "v = f(tf.constant(['red circle', 'a picture of a blue cross']));"
            "print(next(iter(v.values())).numpy().tolist())"
        )
        found = output_of("-c", code, str(own.folder / "saved_model"), timeout=300)
        embeddings.append(json.loads(found.splitlines()[-1]))
    np.testing.assert_allclose(figures[1], figures[0], atol=0.1)  # float32 may break ties otherwise
    np.testing.assert_allclose(embeddings[1], embeddings[0], rtol=1e-3, atol=1e-4)


@slow
def test_weights_and_slots_fall_with_the_model_axis():
    result = json.loads(output_of("tools/bench_sharding.py", timeout=900).splitlines()[-1])
    for axis, row in result["per_device"].items():
        assert 1.0 <= row["of_ideal"] <= 1.1, (axis, row)
    for axis, row in result["real"].items():
        for kind in ("weights", "slots"):
            assert row["planned"][kind] == row["real"][kind], (axis, kind)


def test_planned_bytes_add_up():
    """One sharded kernel, one bias that stays whole: 4 bytes a weight; momentum 2, factors and full moments 4."""
    from basic_tf.optimization.update_rule import UpdateRule
    from basic_tf.towers.layers import WeightSpec

    class Model:
        compute_dtype = "float32"

        @staticmethod
        def specs():
            return [WeightSpec("a/kernel", (40, 64), "normal"), WeightSpec("a/bias", (64,), "zeros")]

    row = bench_sharding.planned(Model, 4, 100, UpdateRule())
    assert row["weights"] == 4 * 40 * 64 // 4 + 4 * 64
    # The kernel is cut along its 64 columns: the row factors [40] lose that axis and stay whole.
    assert row["slots"] == 2 * 40 * 64 // 4 + 4 * 40 + 4 * 64 // 4 + (2 + 4) * 64

"""What can be said of the TPU runtime without a TPU: how it is set up, its loop of steps, its step under XLA."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import configurables
from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.parallel import strategies
from basic_tf.parallel.runtime import DeviceError
from basic_tf.training import stage_run, tasks
from basic_tf.training.trainer import Trainer
from tests import tiny_data


@pytest.mark.parametrize("address,expected", [("local", []), ("grpc://10.0.0.2:8470", ["connect"])])
def test_the_resolver_is_asked_connected_and_initialised_in_that_order(monkeypatch, address, expected):
    calls = []

    class Resolver:
        def __init__(self, tpu):
            calls.append(("resolver", tpu))

    def note(name, result=None):
        return lambda resolver: (
            calls.append(name),
            isinstance(resolver, Resolver) or calls.append("?"),
            result,
        )[2]

    strategy = tf.distribute.get_strategy()
    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", Resolver)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", note("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", note("initialize"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", note("strategy", strategy))
    runtime = strategies.create("tpu", tpu=address)
    assert calls == [("resolver", address), *expected, "initialize", "strategy"]
    assert runtime.strategy is strategy and runtime.name == "tpu"
    assert not runtime.host_loop and (runtime.host, runtime.hosts) == (0, 1)


def test_no_tpu_is_said_in_one_line(monkeypatch):
    def resolver(tpu):
        raise ValueError("Please provide\na TPU Name")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    with pytest.raises(DeviceError, match=r"finds no TPU with --tpu= .*Please provide a TPU Name"):
        strategies.create("tpu")


class Regression(tasks.Task):
    """Least squares; the gradient also depends on the noise key, so that a wrong step would show."""

    def __init__(self):
        self.weight = tf.Variable(np.linspace(-1, 1, 5), name="weight")
        self.model = self

    def parameters(self):
        return {"weight": self.weight}

    def step(self, batch, noise_key, variables, collectives):
        with tf.GradientTape() as tape:
            shift = tf.cast(noise_key[0] % 7, tf.float64)
            loss = tf.reduce_mean(tf.square(tf.linalg.matvec(batch["x"], self.weight) - shift))
        return tasks.StepResult(tape.gradient(loss, variables), [], {"loss": loss})

    def multiply_adds_per_example(self, trained):
        return 5.0


def test_a_loop_of_steps_in_one_program_equals_steps_fed_one_by_one():
    x = np.random.default_rng(0).normal(size=(7, 4, 5))
    found = []
    for name, loops in (("one_device", [1] * 7), ("tpu", [3, 4]), ("tpu", [1, 6])):
        task, step = Regression(), tf.Variable(0, dtype=tf.int64)
        optimizer = AdaFactorW(0.1, momentum_dtype=None)
        optimizer.build(task.parameters())
        trainer = Trainer(
            task,
            task.parameters(),
            optimizer,
            None,
            lambda host, hosts: tf.data.Dataset.from_tensor_slices({"x": x}),
            strategies.StrategyRuntime(name, tf.distribute.get_strategy()),
            seed=3,
            global_step=step,
        )
        losses = [float(trainer.train(tf.constant(count))["loss"]) for count in loops]
        assert int(step) == 7
        assert (trainer.take_data_wait() is None) == (name == "tpu")  # the program itself waits
        found.append((losses[-1], task.weight.numpy()))
    for loss, weight in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-14)
        np.testing.assert_allclose(weight, found[0][1], rtol=1e-14)


class Slice:
    """A strategy of one process and several hosts: a pipeline for each, of which a step takes its own replicas' elements."""

    def __init__(self, replicas, hosts):
        self.num_replicas_in_sync, self._hosts = replicas, hosts

    def distribute_datasets_from_function(self, make):
        pipelines = [
            make(tf.distribute.InputContext(self._hosts, host, self.num_replicas_in_sync))
            for host in range(self._hosts)
        ]
        local = self.num_replicas_in_sync // self._hosts
        iterators = [iter(pipeline) for pipeline in pipelines]

        def steps():
            while True:
                yield [next(iterator) for iterator in iterators for _ in range(local)]

        return steps()


@pytest.mark.parametrize("replicas,hosts", [(4, 1), (4, 2), (2, 2)])
def test_every_host_of_a_slice_reads_its_own_rows(replicas, hosts):
    """Three batches of 8 rows: each replica gets its part of every one of them, whatever the hosts."""
    runtime = strategies.StrategyRuntime("tpu", Slice(replicas, hosts))

    def host_rows(host, hosts):
        rows = 8 // hosts
        return tf.data.Dataset.range(3).map(
            lambda step: {
                "x": tf.ensure_shape(step * 8 + host * rows + tf.range(rows, dtype=tf.int64), [rows])
            }
        )

    steps = runtime.iterator(host_rows)
    for step in range(3):
        found = [element["x"].numpy().tolist() for element in next(steps)]
        expected = np.arange(step * 8, step * 8 + 8).reshape(replicas, -1)
        np.testing.assert_array_equal(found, expected)


def test_a_slice_whose_hosts_are_unequal_is_refused():
    runtime = strategies.StrategyRuntime("tpu", Slice(4, 3))
    with pytest.raises(DeviceError, match="4 replicas cannot be shared evenly by 3 hosts"):
        runtime.iterator(lambda host, hosts: pytest.fail("read"))


@pytest.mark.slow
def test_the_whole_step_compiles_under_xla_and_gives_the_same(tmp_path):
    """What a TPU would compile: joint training with everything on, static shapes, one program. float64."""
    data = tiny_data.make(str(tmp_path))
    bindings = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", "DTYPE='float64'"]
    bindings += [
        "AdaFactorW.momentum_dtype=None",
        "joint/Contrastive.microbatch=4",
        "CoAtNetTable.stem=(1, 8)",
    ]
    bindings += ["CoAtNetTable.stages=(('mbconv', 1, 8), ('attention', 1, 16))", "TextTransformer.width=16"]
    found = []
    for jit in (False, True):
        configurables.parse(["tests/training/joint.gin"], bindings)
        stage = configurables.recipe().stage("joint")
        runtime = strategies.create("one_device")
        run = stage_run.StageRun(stage, str(tmp_path / "run"), runtime, stage_run.Options(train_steps=3))
        trainer = Trainer(
            run.task, run.trained, run.optimizer, run.average, None, runtime, run.seed, run.global_step
        )
        step = tf.function(trainer._one_step, autograph=False, jit_compile=jit)
        losses = []
        for number in range(3):
            batch = {key: tf.constant(value) for key, value in run.batches.at(number).items()}
            losses.append(float(step(batch, tf.constant(number, tf.int64))["loss"]))
        found.append((losses, {path: np.asarray(variable) for path, variable in run.parameters.items()}))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-9)
    for path, value in found[0][1].items():
        np.testing.assert_allclose(found[1][1][path], value, rtol=1e-6, atol=1e-9, err_msg=path)

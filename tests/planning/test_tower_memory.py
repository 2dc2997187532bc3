"""Traced towers: a block whose memory is known by hand, and what must hold for any tower."""

import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.rules import Rule, RuleTable
from basic_tf.planning import step_memory, subject
from basic_tf.planning.tower_memory import tower_memory
from basic_tf.towers import ops
from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_table import CoAtNetTable
from basic_tf.towers.layers import Block, Dense
from basic_tf.towers.text_transformer import TextTransformer
from basic_tf.towers.tower import Tower
from basic_tf.training.tasks import Classification

ROWS, WIDTH, INNER = 7, 64, 256
TABLE = CoAtNetTable((1, 8), (("mbconv", 1, 8), ("attention", 1, 32)), head_dim=16)
COTANGENT = 4 * ROWS * INNER  # of the features: the loss has made it when the backward pass starts


class _Layer(Block):
    """x [B, C] -> GELU(x) W, W [C, D]."""

    def __init__(self, path, inputs, outputs):
        super().__init__(path)
        self.dense = self.child(Dense(f"{path}/dense", inputs, outputs, use_bias=False))

    def apply(self, state, training=False, noise=None):
        return self.dense.project(ops.gelu(state)), []


class _Rows(Block):
    def apply(self, state, training=False, noise=None):
        return tf.cast(state[:, :WIDTH], tf.float32), []


class _Tower(Tower):
    def __init__(self, remat="none", layers=2):
        super().__init__(dtype="float32", seed=0, initializer="normal", remat=remat, name="tower")
        widths = [WIDTH, *[INNER] * layers]
        pairs = itertools.pairwise(widths)
        self.blocks = [_Rows("rows"), *(_Layer(f"layer{i}", a, b) for i, (a, b) in enumerate(pairs))]
        self.length, self.output_width = WIDTH, INNER


def test_a_tower_whose_memory_is_known():
    found = tower_memory(_Tower(), ROWS, True, True, "none", frozenset(), False)
    # Each layer keeps GELU's slope and its result, for the gradients of x and of W; the inputs are not kept.
    assert found.held == 4 * ROWS * 2 * (WIDTH + INNER) + COTANGENT
    # The last product: its two operands and its result, nothing else; the first layer's are gone.
    assert found.inference == 4 * ROWS * 2 * INNER
    gradients = 4 * (WIDTH * INNER + INNER * INNER)
    assert found.training < found.with_gradients <= found.training + gradients
    # TensorFlow's executor leaves the slope for later: GELU's input and gate wait with it.
    assert tower_memory(_Tower(), ROWS, True, True, "none").held > found.held


def test_recomputed_blocks_keep_their_inputs_alone():
    found = tower_memory(_Tower(), ROWS, True, True, "blocks", frozenset(), False)
    inputs = 4 * ROWS * (WIDTH + INNER)
    assert found.held == inputs + COTANGENT


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_nothing_is_allocated_and_equal_blocks_are_traced_once(remat, monkeypatch):
    from basic_tf.planning import block_trace

    traced, real = [], block_trace.trace
    monkeypatch.setattr(block_trace, "trace", lambda *a: traced.append(a[1]) or real(*a))
    tower = _Tower(layers=5)
    tower_memory(tower, 3, True, True, remat)
    assert traced == [0, 1, 2]


def test_text_tower_more_rows_need_more_and_recomputation_less():
    tower = TextTransformer(vocabulary_size=100, length=16, width=64, layers=3, heads=2)
    by_rows = [tower_memory(tower, rows, True, True, "none") for rows in (8, 16)]
    growth = (by_rows[1].held - by_rows[0].held) / by_rows[0].held
    assert 0.5 < growth <= 1.0  # copies of weights do not grow
    held = [tower_memory(tower, 16, True, True, p).held for p in ("none", "norms_and_activations", "blocks")]
    assert held[0] > held[1] > held[2] > 0
    frozen = tower_memory(tower, 16, False, False, "none")
    assert (frozen.training, frozen.held) == (0, 0)
    assert frozen.inference == by_rows[1].inference


def test_a_classifier_holds_logits_and_labels_of_all_classes():
    def plan(classes):
        stage = SimpleNamespace(
            name="pretrain",
            task=functools.partial(
                Classification, image_tower=functools.partial(CoAtNet, TABLE, image_size=16)
            ),
            rules=RuleTable([Rule(".*")]),
            optimizer=AdaFactorW,
            weight_average=None,
        )
        _, found = subject.describe(stage, classes)
        setting = step_memory.Setting(pairs=ROWS, host=False)
        return step_memory.step_memory(found, setting)

    few, many = plan(10), plan(50_000)
    rows = 4 * ROWS * 49_990
    assert many.largest("input") - few.largest("input") == rows
    # Logits and the float32 terms of the cross-entropy; weights have a cause of their own.
    grown = many.largest("activations") - few.largest("activations")
    assert 2 * rows <= grown <= 12 * rows


def test_gathered_weights_count_where_they_are_cut():
    tower = TextTransformer(vocabulary_size=512, length=16, width=64, layers=3, heads=2)
    cut = frozenset(spec.path for spec in tower.specs() if spec.size >= 4096)
    of_block = sum(4 * s.size for s in tower.blocks[1].specs() if s.path in cut)
    kept = [
        tower_memory(tower, 2, True, True, remat, sharded, False).held
        for remat in ("none", "blocks")
        for sharded in (frozenset(), cut)
    ]
    # Without recomputation the gathered copies wait for the backward pass; inside a recomputed block they do not.
    assert kept[1] - kept[0] >= 3 * of_block * 0.3
    assert kept[3] == kept[2]
    peaks = [
        tower_memory(tower, 2, True, True, "blocks", sharded, False).training
        for sharded in (frozenset(), cut)
    ]
    assert 0 < peaks[1] - peaks[0] <= max(of_block, 4 * 512 * 64) * 1.5
    assert np.isfinite(peaks).all()

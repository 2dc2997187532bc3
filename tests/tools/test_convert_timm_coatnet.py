"""Weights of PyTorch: read without it, and computing what timm computes with them."""

import io
import json
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from basic_tf.towers.coatnet import CoAtNet
from basic_tf.training import checkpoints, warm_start
from tests.golden import timm_weights
from tools.pytorch import coatnet_checkpoint, timm_coatnet, weights

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
# As in golden/make_timm_coatnet.py.
CLASSES = 7
TINY_WIDTHS, TINY_DEPTHS, TINY_STEM = (32, 32, 64, 96), (1, 2, 2, 1), 16
WIDTHS = {0: (96, 192, 384, 768), 1: (96, 192, 384, 768), 2: (128, 256, 512, 1024), 3: (192, 384, 768, 1536)}
DEPTHS = {0: (2, 3, 5, 2), 1: (2, 6, 14, 2), 2: (2, 6, 14, 2), 3: (2, 6, 14, 2)}


def timm_shapes(widths, depths, stem, size, flat=False, stem_bias=False):
    """name -> shape of the state dict of a paper-like CoAtNet, written down from timm's module tree."""
    shapes = {}

    def dense(name, outputs, inputs, *kernel, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, width, batch=True):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})
        if batch:
            shapes.update({f"{name}.running_mean": (width,), f"{name}.running_var": (width,)})
            shapes[f"{name}.num_batches_tracked"] = ()

    dense("stem.conv1", stem, 3, 3, 3, bias=stem_bias)
    norm("stem.norm1", stem)
    dense("stem.conv2", stem, stem, 3, 3, bias=stem_bias)
    inputs, height, width = stem, size[0] // 2, size[1] // 2
    for stage, (outputs, depth) in enumerate(zip(widths, depths)):
        height, width = height // 2, width // 2
        for i in range(depth):
            at = f"stages.{stage}.blocks.{i}"
            if i == 0 and inputs != outputs:
                dense(f"{at}.shortcut.expand", outputs, inputs, 1, 1)
            if stage < 2:
                inner = 4 * outputs
                norm(f"{at}.pre_norm", inputs)
                dense(f"{at}.conv1_1x1", inner, inputs, 1, 1, bias=False)
                norm(f"{at}.norm1", inner)
                dense(f"{at}.conv2_kxk", inner, 1, 3, 3, bias=False)
                norm(f"{at}.norm2", inner)
                dense(f"{at}.se.fc1", outputs // 4, inner, 1, 1)
                dense(f"{at}.se.fc2", inner, outputs // 4, 1, 1)
                dense(f"{at}.conv3_1x1", outputs, inner, 1, 1)
            else:
                norm(f"{at}.norm1.norm" if i == 0 else f"{at}.norm1", inputs, batch=False)
                dense(f"{at}.attn.qkv", 3 * outputs, inputs, 1, 1)
                sides = (2 * height - 1, 2 * width - 1)
                table = (sides[0] * sides[1], outputs // 32) if flat else (outputs // 32, *sides)
                shapes[f"{at}.attn.rel_pos.relative_position_bias_table"] = table
                dense(f"{at}.attn.proj", outputs, outputs, 1, 1)
                norm(f"{at}.norm2", outputs, batch=False)
                dense(f"{at}.mlp.fc1", 4 * outputs, outputs, 1, 1)
                dense(f"{at}.mlp.fc2", outputs, 4 * outputs, 1, 1)
            inputs = outputs
    norm("head.norm", inputs, batch=False)
    dense("head.pre_logits.fc", inputs, inputs)
    dense("head.fc", CLASSES, inputs)
    return shapes


def state_dict(case: str) -> tuple[dict, tuple[int, int]]:
    """The weights of a golden case and its picture size."""
    if case.startswith("tiny"):
        size, flat = (96, 64), case == "tiny_flat"
        shapes = timm_shapes(TINY_WIDTHS, TINY_DEPTHS, TINY_STEM, size, flat, stem_bias=not flat)
    else:
        number, size = int(case[-1]), (64, 64)
        shapes = timm_shapes(WIDTHS[number], DEPTHS[number], WIDTHS[number][0] if number > 1 else 64, size)
    return {name: timm_weights.weight(name, shape) for name, shape in shapes.items()}, size


def tower_of(source, size, **options) -> CoAtNet:
    return CoAtNet(
        source.name or source.table,
        size,
        downsample="depthwise",
        attention_pool="average",
        num_classes=source.classes,
        pre_logits=source.pre_logits,
        **options,
    )


@pytest.mark.parametrize(
    "case",
    [
        "tiny",
        "tiny_flat",
        "coatnet_0",
        *[pytest.param(f"coatnet_{n}", marks=pytest.mark.slow) for n in (1, 2, 3)],
    ],
)
def test_features_are_those_of_timm(case):
    state, size = state_dict(case)
    source = timm_coatnet.described(state)
    assert source.classes == CLASSES and source.name == (case if case.startswith("coatnet") else None)
    tower = tower_of(source, size)
    account = timm_coatnet.converted(state, tower)
    assert len(account.used) + len(account.ignored) == len(state) and not account.resized
    checkpoints.assign(account.arrays, tower.parameters(), case)
    features = tower(timm_weights.pictures(*size))
    logits = tower.logits(features)
    with np.load(GOLDEN / "timm_coatnet.npz") as golden:
        for name, ours in (("features", features), ("logits", logits)):
            theirs = golden[f"{case}/{name}"]
            error = np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()
            assert error < 1e-5, f"{name} differ by {error:.2e}"
            print(f"{case}: {name} differ by {error:.2e}")
    if case == "tiny":  # the bound can fail: the stride elsewhere gives something else
        other = CoAtNet(
            source.table, size, downsample="expand", attention_pool="average", num_classes=CLASSES
        )
        checkpoints.assign(account.arrays, other.parameters(), case)
        assert np.abs(other(timm_weights.pictures(*size)).numpy() - features.numpy()).max() > 0.01


def tiny(**options):
    return {
        name: timm_weights.weight(name, shape)
        for name, shape in timm_shapes(TINY_WIDTHS, TINY_DEPTHS, TINY_STEM, (64, 64), **options).items()
    }


def test_anything_unaccounted_is_refused():
    state = tiny()
    tower = tower_of(timm_coatnet.described(state), 64)
    with pytest.raises(timm_coatnet.ConversionError, match="1 tensors have no place in the tower \\(extra"):
        timm_coatnet.converted({**state, "extra.weight": np.zeros(3)}, tower)
    lacking = dict(state)
    del lacking["stages.2.blocks.1.attn.qkv.bias"]
    with pytest.raises(timm_coatnet.ConversionError, match=r"lack stages\.2\.blocks\.1\.attn\.qkv\.bias"):
        timm_coatnet.converted(lacking, tower)
    wrong = {**state, "stages.1.blocks.0.se.fc1.weight": np.zeros((8, 99, 1, 1))}
    with pytest.raises(timm_coatnet.ConversionError, match=r"se\.fc1\.weight .* has shape \(128, 8\)"):
        timm_coatnet.converted(wrong, tower)
    broken = {**state, "head.norm.bias": np.full(96, np.nan)}
    with pytest.raises(
        timm_coatnet.ConversionError, match=r"head.norm.bias holds numbers that are not finite"
    ):
        timm_coatnet.converted(broken, tower)


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda s: s | {"stem.conv1.weight": np.zeros((8, 3, 3, 3))}, "a stem of two widths"),
        (lambda s: s | {"norm.weight": np.ones(96)}, "the last norm before pooling"),
        (lambda s: s | {"stages.2.blocks.0.ls1.gamma": np.ones(64)}, "layer scale"),
        (lambda s: s | {"stages.0.blocks.0.conv1_1x1.weight": np.zeros((64, 16, 1, 1))}, "the block's input"),
        (lambda s: {"cls_token": np.ones(3)}, "no weights of timm's CoAtNet"),
    ],
)
def test_other_architectures_are_refused_in_one_line(change, words):
    with pytest.raises(timm_coatnet.ConversionError, match=words) as error:
        timm_coatnet.described(change(tiny()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flat", [False, True])
def test_another_resolution_resizes_the_relative_biases(flat):
    state = tiny(flat=flat)
    source = timm_coatnet.described(state)
    small, large = tower_of(source, 64), tower_of(source, 128)
    account = timm_coatnet.converted(state, large)
    assert len(account.resized) == 3
    original = timm_coatnet.converted(state, small).arrays
    for path in account.resized:
        table, resized = original[path], account.arrays[path]
        assert resized.shape == (table.shape[0], *(2 * side + 1 for side in table.shape[1:]))
        # The bias of offset zero stays in the centre.
        centre = tuple(side // 2 for side in table.shape[1:])
        np.testing.assert_allclose(
            resized[:, 2 * centre[0] + 1, 2 * centre[1] + 1], table[:, *centre], rtol=1e-6
        )


def test_a_stage_warm_starts_from_a_converted_file(tmp_path):
    state = tiny()
    state["head.norm.bias"] = state["head.norm.bias"].astype(np.float16)
    safetensors.numpy.save_file(state, tmp_path / "tiny.safetensors")
    figures = coatnet_checkpoint.write(f"{tmp_path}/tiny.safetensors", f"{tmp_path}/converted", 64)
    assert figures["used"] + figures["ignored"] == len(state) and figures["zero"] == 2
    with pytest.raises(weights.WeightsError, match="holds a checkpoint already"):
        coatnet_checkpoint.write(f"{tmp_path}/tiny.safetensors", f"{tmp_path}/converted", 64)
    checkpoint = checkpoints.load_latest(str(tmp_path / "converted" / "checkpoints"))
    arrays = {path.removeprefix("parameters/"): array for path, array in checkpoint.arrays.items()}
    tower = tower_of(timm_coatnet.described(state), 64)
    parameters = {f"image_tower/{path}": variable for path, variable in tower.parameters().items()}
    parameters["text_tower/x"] = tf.Variable(0.0)
    report = warm_start.apply(parameters, arrays, ("text_tower/.*",), (), "converted")
    assert len(report.loaded) == len(parameters) - 1
    np.testing.assert_array_equal(
        parameters["image_tower/stage3/block0/attention/key/kernel"],
        state["stages.2.blocks.0.attn.qkv.weight"].reshape(2, 3, 32, 32)[:, 1].reshape(64, 32).T,
    )


@pytest.mark.parametrize(
    "gone,classes,ignored,row",
    [
        (("head.fc",), None, 2, False),  # timm's num_classes=0
        (("head.fc", "head.pre_logits"), None, 0, False),
        (("head.pre_logits",), CLASSES, 0, True),
    ],
)
def test_heads_that_lack_a_part(tmp_path, gone, classes, ignored, row):
    whole = tiny()
    state = {name: array for name, array in whole.items() if not name.startswith(gone)}
    source = timm_coatnet.described(state)
    assert source.classes == classes
    account = timm_coatnet.converted(state, tower_of(source, 64))
    usual = len(timm_coatnet.converted(whole, tower_of(timm_coatnet.described(whole), 64)).ignored)
    assert len(account.ignored) == usual + ignored
    safetensors.numpy.save_file(state, tmp_path / "x.safetensors")
    figures = coatnet_checkpoint.write(f"{tmp_path}/x.safetensors", f"{tmp_path}/out", 64)
    assert figures["used"] == len(account.used)
    rows = coatnet_checkpoint.bindings(source, 64, "tensorflow", f"{tmp_path}/out")
    assert ("CoAtNet.pre_logits = False" in rows) == row


def test_a_pth_file_is_read_without_torch():
    state = weights.read(str(GOLDEN / "tensors.pth"))
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / np.float32(7)
    assert state["weight"].shape == (3, 2) and state["count"] == 1000 and state["empty"].shape == (0, 3)
    np.testing.assert_array_equal(state["weight"], base[:3, :2])
    np.testing.assert_array_equal(state["transposed"], base.T)
    np.testing.assert_array_equal(state["cut"], base[1:3, ::2])
    np.testing.assert_array_equal(state["half"], base.astype(np.float16))
    np.testing.assert_array_equal(state["parameter"], base * 2)
    np.testing.assert_array_equal(state["double"], base.astype(np.float64))
    np.testing.assert_array_equal(state["flags"], [True, False])
    assert state["bfloat"].dtype.name == "bfloat16"
    np.testing.assert_allclose(state["bfloat"].astype(np.float32), base, rtol=2**-8)
    assert weights.read(str(GOLDEN / "tensors.pth"), "state_dict").keys() == state.keys()
    with pytest.raises(weights.WeightsError, match="'weights' is no state dict"):
        weights.read(str(GOLDEN / "tensors.pth"), "weights")


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path):
    """Headers of all lengths of a multiple of 8, in the first byte and in the first two."""
    firsts = set()
    for letters in range(1, 1000, 8):
        name = "w" * letters
        path = tmp_path / "x.safetensors"
        safetensors.numpy.save_file({name: np.ones(3, np.float32)}, path)
        firsts.add(path.read_bytes()[:2])
        np.testing.assert_array_equal(weights.read(str(path))[name], [1, 1, 1])
    assert {b"\x80\x00", b"\x80\x02"} <= firsts


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def zipped(path, pickled: bytes, **storages: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for number, raw in storages.items():
            archive.writestr(f"archive/data/{number}", raw)
    return str(path)


class FloatStorage:
    pass


def pickled_tensor(offset, shape, strides) -> bytes:
    """A state dict of one tensor, as torch would pickle it."""
    rebuild = type("Rebuild", (), {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", FloatStorage, "0", "cpu", 4) if isinstance(thing, rebuild) else None

        def reducer_override(self, thing):
            return NotImplemented

    buffer = io.BytesIO()
    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
    stand_in = type(sys)("torch")
    stand_in.FloatStorage = FloatStorage
    utils = type(sys)("torch._utils")

    def _rebuild_tensor_v2(*_):
        return None

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    class Tensor:
        def __reduce__(self):
            return (_rebuild_tensor_v2, (rebuild(), offset, shape, strides, False, {}))

    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": stand_in, "torch._utils": utils})
    try:
        Pickler(buffer, 2).dump({"x": Tensor()})
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return buffer.getvalue()


def test_a_pth_file_runs_nothing(tmp_path):
    path = zipped(tmp_path / "bad.pth", pickle.dumps({"x": Harmful(tmp_path / "written")}))
    with pytest.raises(
        weights.WeightsError, match=r"an object of (_?io|builtins)\.open, which is not among weights"
    ):
        weights.read(path)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "offset,shape,strides,fits",
    [(0, (2, 2), (2, 1), True), (1, (2, 2), (2, 1), False), (0, (4, 4), (0, 0), False), (0, (1, 9), (9, 1), False),
     (-1, (2, 2), (2, 1), False)],
)  # fmt: skip
def test_a_tensor_stays_inside_its_storage(tmp_path, offset, shape, strides, fits):
    values = np.arange(4, dtype=np.float32)
    path = zipped(tmp_path / "x.pth", pickled_tensor(offset, shape, strides), **{"0": values.tobytes()})
    if fits:
        np.testing.assert_array_equal(weights.read(path)["x"], values.reshape(2, 2))
    else:
        with pytest.raises(weights.WeightsError, match=r"beyond its storage|description is damaged"):
            weights.read(path)


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (b"\x80\x02}", "before 1.6"),
        (b"PK\x03\x04broken", "no PyTorch file"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(weights.WeightsError, match=words):
        weights.read(str(tmp_path / "x"))
    with pytest.raises(weights.WeightsError, match="there is no file"):
        weights.read(str(tmp_path / "y"))


def test_bindings_build_the_tower():
    source = timm_coatnet.Source(
        tower_of(timm_coatnet.described(tiny()), 64).table, CLASSES, None, False, True
    )
    from basic_tf import configurables

    rows = coatnet_checkpoint.bindings(source, 64, "timm", "out")
    assert rows[-1] == "contrastive/WarmStart.stage = './out'"
    configurables.parse(["gin/runs/basic_s.gin"], rows)
    import gin

    made = gin.get_configurable("basic_tf.CoAtNet")()
    assert made.table == source.table and made.image_size == (64, 64)


@pytest.mark.slow
def test_the_tool_from_the_command_line(tmp_path):
    safetensors.numpy.save_file(tiny(), tmp_path / "tiny.safetensors")
    tool = [sys.executable, ROOT / "tools" / "convert_timm_coatnet.py"]

    def run(*arguments):
        return subprocess.run([*tool, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run("--weights=tiny.safetensors", "--output=converted", "--image_size=64")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["checkpoint"] == "converted/checkpoints/step-000000000"
    assert (
        "CoAtNet.downsample = 'depthwise'" in done.stdout and "WarmStart.stage = './converted'" in done.stdout
    )
    failed = run("--weights=nothing.pth", "--output=other")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "convert_timm_coatnet: there is no file nothing.pth"

"""timm's CoAtNet (models/maxxvit.py, the paper-like coatnet_0 ... coatnet_5) in the names and layouts of our towers.

Conversion is an account: every tensor of the source is used or declared ignored, every weight of the tower comes from
a tensor or is declared zero (biases that timm's model does not have), and every shape is checked.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_blocks import MBConv, RelativeTransformer, resized_relative_bias
from basic_tf.towers.coatnet_table import TABLES, CoAtNetTable, Stage

# timm keeps the layer before the classifier when the classifier goes (num_classes=0); features come before both.
BEFORE_NO_CLASSIFIER = r"head\.pre_logits\..*"
# Buffers that carry no information: counters of training steps, and look-up tables that follow from the sizes.
IGNORED = (r".*\.num_batches_tracked", r".*\.relative_position_index", r".*\.(height|width)_lookup")


class ConversionError(ValueError):
    """Weights that are no CoAtNet of ours; one line says what differs."""


class Source(NamedTuple):
    """What the weights are of. table: the tower's; classes: of the classifier, None without; name: in TABLES or None.

    mirrored: relative biases are stored by key minus query, as the TensorFlow code of MaxViT does and timm's 'bias_tf'.
    pre_logits: whether a tanh layer comes before the classifier.
    """

    table: CoAtNetTable
    classes: int | None
    name: str | None
    mirrored: bool
    pre_logits: bool


class Conversion(NamedTuple):
    """The account. arrays: parameter path -> float32. used, ignored: names of the source. zero, resized: paths."""

    arrays: dict[str, np.ndarray]
    used: list[str]
    ignored: list[str]
    zero: list[str]
    resized: list[str]


def described(weights: dict[str, np.ndarray]) -> Source:
    """The tower that a state dict belongs to, read off names and shapes. ConversionError if it is another architecture."""
    if "stem.conv1.weight" not in weights or "stem.conv2.weight" not in weights:
        shown = ", ".join(list(weights)[:3])
        raise ConversionError(
            f"these are no weights of timm's CoAtNet: no stem.conv1.weight among {len(weights)} tensors ({shown}, ...)"
        )
    _refuse_other_architectures(weights)
    stages, head_dims, mirrored = [], set(), set()
    for number in range(
        1 + max((int(n) for n in re.findall(r"\bstages\.(\d+)\.", "\n".join(weights))), default=-1)
    ):
        blocks = {int(n) for n in re.findall(rf"\bstages\.{number}\.blocks\.(\d+)\.", "\n".join(weights))}
        first = f"stages.{number}.blocks.0"
        kind = "mbconv" if f"{first}.conv3_1x1.weight" in weights else "attention"
        output = f"{first}.conv3_1x1.weight" if kind == "mbconv" else f"{first}.attn.proj.weight"
        if output not in weights:
            raise ConversionError(f"{first} is neither an MBConv nor a Transformer block of timm's CoAtNet")
        width = weights[output].shape[0]
        stages.append(Stage(kind, len(blocks), width))
        if kind == "attention":
            table = _bias_table(weights, first)
            mirrored.add(table.ndim == 3)
            head_dims.add(width // table.shape[0 if table.ndim == 3 else 1])
    if len(head_dims) != 1 or len(mirrored) != 1:
        raise ConversionError(
            f"the attention stages have heads of {sorted(head_dims)} channels; expected one width"
        )
    table = CoAtNetTable((2, weights["stem.conv1.weight"].shape[0]), tuple(stages), head_dims.pop())
    name = next((known for known, other in TABLES.items() if other == table), None)
    classifier = weights.get("head.fc.weight")
    return Source(
        table,
        None if classifier is None else classifier.shape[0],
        name,
        mirrored.pop(),
        "head.pre_logits.fc.weight" in weights,
    )


def _refuse_other_architectures(weights: dict[str, np.ndarray]) -> None:
    """timm's coatnet_*_rw_*, maxvit_* and maxxvit_* share names with the paper-like models and compute other things."""
    names = "\n".join(weights)
    found = []
    if weights["stem.conv1.weight"].shape[0] != weights["stem.conv2.weight"].shape[0]:
        found.append("a stem of two widths")
    for pattern, words in (
        (r"\.se_early\.", "squeeze-and-excitation before the norm"),
        (r"\.ls[12]\.gamma", "layer scale"),
        (r"\.rel_pos\.mlp\.", "relative positions by an MLP"),
        (r"^norm\.weight$", "the last norm before pooling"),
        (r"\.attn_(block|grid)\.", "window attention (MaxViT)"),
        (r"\.conv_dw\.", "ConvNeXt blocks"),
    ):
        if re.search(pattern, names, re.MULTILINE):
            found.append(words)
    for name, array in weights.items():
        if re.fullmatch(r"stages\.\d+\.blocks\.0\.conv1_1x1\.weight", name):
            output = weights.get(name.replace("conv1_1x1", "conv3_1x1"))
            if output is not None and array.shape[0] != 4 * output.shape[0]:
                found.append("inner widths from the block's input")
                break
    if found:
        raise ConversionError(
            "these weights are of another architecture than the paper's CoAtNet (timm's coatnet_*_rw_* and maxvit_* are): "
            f"{', '.join(found)}; only timm's coatnet_0 to coatnet_5 can be converted"
        )


def _bias_table(weights, block: str) -> np.ndarray:
    for name in ("attn.rel_pos.relative_position_bias_table", "attn.relative_position_bias_table"):
        if f"{block}.{name}" in weights:
            return weights[f"{block}.{name}"]
    raise ConversionError(f"{block} has no relative_position_bias_table")


def converted(weights: dict[str, np.ndarray], tower: CoAtNet) -> Conversion:
    """A state dict in the paths and layouts of `tower`, whose weights need not exist. ConversionError if it does not fit."""
    todo = _Todo(weights, {spec.path: spec.shape for spec in tower.specs()})
    for i in range(tower.table.stem[0]):
        todo.kernel(f"stem.conv{i + 1}.weight", f"stem/conv{i}/kernel")
        todo.take(f"stem.conv{i + 1}.bias", f"stem/conv{i}/bias", optional=True)
        if i:
            todo.batch_norm(f"stem.norm{i}", f"stem/norm{i}")
    for block in tower.blocks:
        place = re.fullmatch(r"stage(\d+)/block(\d+)", block.block_path)
        if place:
            source = f"stages.{int(place[1]) - 1}.blocks.{place[2]}"
            (_mbconv if isinstance(block, MBConv) else _transformer)(todo, source, block)
    todo.layer_norm("head.norm", "features/norm")
    for source, target in (("head.pre_logits.fc", "head/pre_logits"), ("head.fc", "head/classifier")):
        if f"{target}/kernel" in todo.shapes:
            todo.dense(source, target)
    return todo.finished()


def _mbconv(todo: "_Todo", source: str, block: MBConv) -> None:
    path = block.block_path
    if block.shortcut is not None:
        todo.dense(f"{source}.shortcut.expand", f"{path}/shortcut")
    for ours, theirs in (("pre_norm", "pre_norm"), ("expand_norm", "norm1"), ("depthwise_norm", "norm2")):
        todo.batch_norm(f"{source}.{theirs}", f"{path}/{ours}")
    todo.kernel(f"{source}.conv1_1x1.weight", f"{path}/expand/kernel")
    todo.take(
        f"{source}.conv2_kxk.weight", f"{path}/depthwise/kernel", lambda array: array.transpose(2, 3, 0, 1)
    )
    if block.squeeze is not None:
        todo.dense(f"{source}.se.fc1", f"{path}/squeeze")
        todo.dense(f"{source}.se.fc2", f"{path}/excite")
    todo.dense(f"{source}.conv3_1x1", f"{path}/shrink")


def _transformer(todo: "_Todo", source: str, block: RelativeTransformer) -> None:
    path, heads = block.block_path, block.attention.heads
    if block.shortcut is not None:
        todo.dense(f"{source}.shortcut.expand", f"{path}/shortcut")
    # Where the block pools, timm's norm is the first of two modules.
    todo.layer_norm(
        f"{source}.norm1.norm" if block.stride == 2 else f"{source}.norm1", f"{path}/attention_norm"
    )
    todo.layer_norm(f"{source}.norm2", f"{path}/ffn_norm")
    for i, name in enumerate(("query", "key", "value")):
        # Rows of timm's joint projection: head, then q, k or v, then channel of the head.
        def part(array, i=i):
            return array.reshape(heads, 3, -1, *array.shape[1:])[:, i].reshape(-1, *array.shape[1:])

        todo.take(
            f"{source}.attn.qkv.weight",
            f"{path}/attention/{name}/kernel",
            lambda a, part=part: _matrix(part(a)),
        )
        todo.take(f"{source}.attn.qkv.bias", f"{path}/attention/{name}/bias", part)
    todo.dense(f"{source}.attn.proj", f"{path}/attention/output")
    todo.relative_bias(source, f"{path}/attention/relative_bias", block.size)
    todo.dense(f"{source}.mlp.fc1", f"{path}/ffn_in")
    todo.dense(f"{source}.mlp.fc2", f"{path}/ffn_out")


def _matrix(array: np.ndarray) -> np.ndarray:
    """A Linear [D, C] or 1 x 1 convolution [D, C, 1, 1] -> [C, D]; a 3 x 3 convolution [D, C, 3, 3] -> [3, 3, C, D]."""
    if array.ndim == 4 and array.shape[2:] != (1, 1):
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T


class _Todo:
    """What has been taken from a source and what has been filled in."""

    def __init__(self, weights: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]):
        self.weights, self.shapes = weights, shapes
        self.arrays: dict[str, np.ndarray] = {}
        self.used: dict[str, None] = {}
        self.zero: list[str] = []
        self.resized: list[str] = []

    def take(
        self, name: str, path: str, change: Callable = lambda array: array, optional: bool = False
    ) -> None:
        """Fills one weight from one tensor; without the tensor, zeros if that is `optional`."""
        if name not in self.weights:
            if not optional:
                raise ConversionError(f"the weights lack {name}, which {path} needs")
            self.zero.append(path)
            self.arrays[path] = np.zeros(self.shapes[path], np.float32)
            return
        try:
            array = np.asarray(change(self.weights[name]), np.float32)
        except ValueError as error:
            raise ConversionError(
                f"{name} has shape {self.weights[name].shape}, unfit for {path}: {error}"
            ) from error
        if array.shape != self.shapes[path]:
            raise ConversionError(
                f"{name} {self.weights[name].shape} becomes {array.shape}, but {path} has shape {self.shapes[path]}"
            )
        if not np.isfinite(array).all():
            raise ConversionError(f"{name} holds numbers that are not finite")
        self.arrays[path], self.used[name] = array, None

    def kernel(self, name: str, path: str) -> None:
        self.take(name, path, _matrix)

    def dense(self, name: str, path: str) -> None:
        self.kernel(f"{name}.weight", f"{path}/kernel")
        self.take(f"{name}.bias", f"{path}/bias")

    def layer_norm(self, name: str, path: str) -> None:
        self.take(f"{name}.weight", f"{path}/scale")
        self.take(f"{name}.bias", f"{path}/bias")

    def batch_norm(self, name: str, path: str) -> None:
        self.layer_norm(name, path)
        self.take(f"{name}.running_mean", f"{path}/moving_mean")
        self.take(f"{name}.running_var", f"{path}/moving_variance")

    def relative_bias(self, block: str, path: str, size: tuple[int, int]) -> None:
        """[heads, 2H-1, 2W-1] by query minus key, from a flat table by the same or from one by key minus query."""

        def change(table):
            if table.ndim == 3:
                table = table[:, ::-1, ::-1]
            else:
                height, width = 2 * size[0] - 1, 2 * size[1] - 1
                if len(table) != height * width:  # of another picture size: only squares say which
                    height = width = round(len(table) ** 0.5)
                table = table.T.reshape(-1, height, width)
            table = np.ascontiguousarray(table, np.float32)
            if table.shape != self.shapes[path] and table.shape[0] == self.shapes[path][0]:
                self.resized.append(path)
                table = resized_relative_bias(table, size)
            return table

        for name in ("attn.rel_pos.relative_position_bias_table", "attn.relative_position_bias_table"):
            if f"{block}.{name}" in self.weights:
                return self.take(f"{block}.{name}", path, change)
        raise ConversionError(f"the weights lack {block}.{name}, which {path} needs")

    def finished(self) -> Conversion:
        """The account, if nothing is left over on either side."""
        patterns = IGNORED if "head.fc.weight" in self.weights else (*IGNORED, BEFORE_NO_CLASSIFIER)
        ignored = [name for name in self.weights if any(re.fullmatch(pattern, name) for pattern in patterns)]
        left = [name for name in self.weights if name not in self.used and name not in ignored]
        missing = [path for path in self.shapes if path not in self.arrays]
        if left or missing:
            raise ConversionError(
                f"{len(left)} tensors have no place in the tower ({', '.join(left[:3]) or '-'}) and {len(missing)} of its "
                f"weights come from nowhere ({', '.join(missing[:3]) or '-'})"
            )
        arrays = {path: self.arrays[path] for path in self.shapes}
        return Conversion(arrays, list(self.used), ignored, self.zero, self.resized)

"""How many parameters a model has, from its specs alone, beside the counts that are known of it."""

import dataclasses

from basic_tf.optimization.rules import default_layout
from basic_tf.towers.coatnet_blocks import Classifier
from basic_tf.towers.coatnet_table import TABLES
from basic_tf.towers.text_transformer import VARIANTS

PARTS = ("image_tower", "text_tower", "projections", "temperature")
# CoAtNet, arXiv 2106.04803, tables 3, 11 and 12: with a classifier of 1,000 classes.
PUBLISHED_IMAGE = {
    "coatnet_0": 25e6, "coatnet_1": 42e6, "coatnet_2": 75e6, "coatnet_3": 168e6, "coatnet_4": 275e6, "coatnet_5": 688e6,
    "coatnet_6": 1.47e9, "coatnet_7": 2.44e9,
}  # fmt: skip
# BASIC's text towers from memory (32,000 tokens, 64 positions): no text at hand states them. Layers and width fit them.
RECALLED_TEXT = {"basic_s": 108e6, "basic_m": 184e6, "basic_l": 670e6}
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Reference:
    """A count to compare with. name: whose it is. source: "published", or "recalled": from memory, so that agreement with it
    confirms nothing. counted: ours, counted as they did."""

    name: str
    source: str
    count: float
    counted: int

    @property
    def difference(self) -> float:
        """Relative: ours against theirs."""
        return self.counted / self.count - 1.0


def part_of(path: str) -> str:
    """Which part of a dual encoder a parameter path belongs to."""
    first = path.split("/")[0]
    if first in ("image_projection", "text_projection"):
        return "projections"
    return "temperature" if first == "log_inverse_temperature" else first


def by_part(specs) -> dict[str, int]:
    """Parameters (moving statistics included) of each part, and `total`: the towers, the projections, the temperature."""
    counts = dict.fromkeys(PARTS, 0)
    for spec in specs:
        counts[part_of(spec.path)] += spec.size
    return counts | {"total": sum(counts.values())}


def image_reference(tower) -> Reference | None:
    """The published count of a CoAtNet by its table; a classifier is counted in theirs, so it is in ours."""
    for name, table in TABLES.items():
        if table == tower.table and name in PUBLISHED_IMAGE:
            head = Classifier("head", tower.output_width, CLASSES).specs()
            trunk = sum(spec.size for spec in tower.specs() if not spec.path.startswith("head/"))
            counted = trunk + sum(spec.size for spec in head)
            return Reference(name, "published", PUBLISHED_IMAGE[name], counted)
    return None


def text_reference(tower) -> Reference | None:
    """The recalled count of BASIC's text tower of this width and depth."""
    layers = len(tower.blocks) - 2  # without the embedding and the mean
    for name, variant in VARIANTS.items():
        if (variant["layers"], variant["width"]) == (layers, tower.output_width) and (
            tower.vocabulary_size,
            tower.length,
        ) == (32000, 64):
            return Reference(name, "recalled", RECALLED_TEXT[name], sum(spec.size for spec in tower.specs()))
    return None


def sharded_paths(specs, model_axis: int) -> frozenset[str]:
    """Paths of the parameters that a model axis of this size cuts (the default layout)."""
    return frozenset(s.path for s in specs if any(default_layout(s.path, s.shape, model_axis)))


def weight_bytes(specs, element: int, model_axis: int = 1) -> int:
    """Bytes on each device: what is cut counts with its share."""
    cut = sharded_paths(specs, model_axis)
    return sum(spec.size * element // (model_axis if spec.path in cut else 1) for spec in specs)

"""The CoAtNet family as tables (CoAtNet, arXiv 2106.04803, tables 3, 11 and 12)."""

from dataclasses import dataclass
from typing import NamedTuple


class Stage(NamedTuple):
    """`blocks` blocks of one kind ('mbconv' or 'attention') and one width; the first block has the stride."""

    kind: str
    blocks: int
    width: int
    stride: int = 2


@dataclass(frozen=True)
class CoAtNetTable:
    """One image tower.

    stem: (convolutions, width); the first has stride 2. stages: S1 and on. head_dim: width of an attention
    head. A group of blocks with stride 1 belongs to the stage before it (CoAtNet-6 and 7: S3 starts with
    MBConv).
    """

    stem: tuple[int, int]
    stages: tuple[Stage, ...]
    head_dim: int = 32

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(Stage(*stage) for stage in self.stages))
        if self.stem[0] < 1:
            raise ValueError(f"the stem has {self.stem[0]} convolutions; expected at least 1")
        for stage in self.stages:
            if stage.kind not in ("mbconv", "attention"):
                raise ValueError(f"stage kind {stage.kind!r}; expected 'mbconv' or 'attention'")
            if stage.blocks < 1 or stage.stride not in (1, 2):
                raise ValueError(f"{stage}: expected at least one block and a stride of 1 or 2")
            if stage.kind == "attention" and stage.width % self.head_dim:
                raise ValueError(
                    f"attention width {stage.width} is no multiple of the head width {self.head_dim}"
                )


def _table(stem, s1, s2, s3, s4, head_dim=32, s3_mbconv=None) -> CoAtNetTable:
    stages = [Stage("mbconv", *s1), Stage("mbconv", *s2)]
    if s3_mbconv:
        stages.append(Stage("mbconv", *s3_mbconv))
    stages += [Stage("attention", *s3, stride=1 if s3_mbconv else 2), Stage("attention", *s4)]
    return CoAtNetTable(stem, tuple(stages), head_dim)


TABLES = {
    "coatnet_0": _table((2, 64), (2, 96), (3, 192), (5, 384), (2, 768)),
    "coatnet_1": _table((2, 64), (2, 96), (6, 192), (14, 384), (2, 768)),
    "coatnet_2": _table((2, 128), (2, 128), (6, 256), (14, 512), (2, 1024)),
    "coatnet_3": _table((2, 192), (2, 192), (6, 384), (14, 768), (2, 1536)),
    "coatnet_4": _table((2, 192), (2, 192), (12, 384), (28, 768), (2, 1536)),
    "coatnet_5": _table((2, 192), (2, 256), (12, 512), (28, 1280), (2, 2048), head_dim=64),
    # The published S4 width of CoAtNet-6, 2048, cannot give its published 1.47B parameters; 3072 does
    # (basic_paper 8.1).
    "coatnet_6": _table(
        (2, 192), (2, 192), (4, 384), (42, 1536), (2, 3072), head_dim=128, s3_mbconv=(8, 768)
    ),
    "coatnet_6_as_printed": _table(
        (2, 192), (2, 192), (4, 384), (42, 1536), (2, 2048), 128, s3_mbconv=(8, 768)
    ),
    "coatnet_7": _table(
        (2, 192), (2, 256), (4, 512), (42, 2048), (2, 3072), head_dim=128, s3_mbconv=(8, 1024)
    ),
}


def table_of(variant: "str | CoAtNetTable") -> CoAtNetTable:
    """The table of a named variant, or the table given."""
    if isinstance(variant, CoAtNetTable):
        return variant
    if variant not in TABLES:
        raise ValueError(
            f"CoAtNet variant {variant!r} is unknown; expected a CoAtNetTable or one of {', '.join(TABLES)}"
        )
    return TABLES[variant]

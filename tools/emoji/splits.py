"""Who is trained on and who is tested on, made once by a fixed seed."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from tools.emoji.captions import fixed_texts
from tools.emoji.concepts import Concept
from tools.emoji.packages import HELD_OUT_STYLES, TRAINING_STYLES
from tools.sources import choices
from tools.sources.phrases import Phrases

SEED = 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many concepts are test classes, how many are held out, how many pictures are for retrieval."""

    test: int = 200
    held_out: int = 100
    retrieval: int = 400


DEFAULT_SIZES = Sizes()


@dataclasses.dataclass(frozen=True)
class Splits:
    """All by concept code.

    test: classes of the zero-shot tests; concepts that are trained on. held_out: concepts that no training
    picture shows and no training text names. hidden: test concept -> the training style whose picture of it
    is the in-distribution test and is not trained on. retrieval: training concept (none of `test`) -> the
    held-out style whose picture of it is in the retrieval test; one picture a concept, so that a caption fits
    one picture only.
    """

    seed: int
    concrete: tuple[str, ...]
    test: tuple[str, ...]
    held_out: tuple[str, ...]
    hidden: Mapping[str, str]
    retrieval: Mapping[str, str]

    def is_trained(self, code: str, style: str) -> bool:
        """Whether the picture of a concept in a style belongs to the training set."""
        return style in TRAINING_STYLES and code not in self.held_out and self.hidden.get(code) != style

    def as_json(self) -> dict:
        """For splits.json."""
        return dataclasses.asdict(self) | {
            "training_styles": TRAINING_STYLES,
            "held_out_styles": HELD_OUT_STYLES,
        }


def make_splits(
    concepts: Sequence[Concept],
    available: Mapping[str, Iterable[str]],
    *,
    sizes: Sizes = DEFAULT_SIZES,
    seed: int = SEED,
) -> Splits:
    """Draws the splits. available: style -> the codes of the concepts it has.

    Test concepts are drawn by hash among the concrete ones. Held-out concepts are drawn by hash among the
    other concrete ones none of whose names occurs inside the name of another concept, inside a group's or a
    caption's fixed words: if "fish" were held out, "tropical fish" could not be named in any caption.
    ValueError if there are too few concepts.
    """
    concrete = [concept for concept in concepts if concept.concrete]
    tested = choices.ordered(concrete, seed, "test", key=_code)[: sizes.test]
    others = [concept for concept in concrete if concept not in set(tested)]
    eligible = [concept for concept in others if not _occurs_elsewhere(concept, concepts)]
    if len(tested) < sizes.test or len(eligible) < sizes.held_out:
        raise ValueError(
            f"{len(concrete)} concrete concepts, {len(eligible)} of the rest fit to be held out: too few for "
            f"{sizes.test} test and {sizes.held_out} held-out concepts"
        )
    unseen = choices.ordered(eligible, seed, "held out", key=_code)[: sizes.held_out]
    styles = {style: set(codes) for style, codes in available.items()}
    hidden = {}
    for concept in tested:
        having = [style for style in TRAINING_STYLES if concept.code in styles.get(style, ())]
        if len(having) >= 2:
            hidden[concept.code] = choices.pick(having, seed, "hidden", concept.code)
    shown = {}
    for concept in choices.ordered(others, seed, "retrieval", key=_code):
        having = [style for style in HELD_OUT_STYLES if concept.code in styles.get(style, ())]
        if having and concept not in unseen and len(shown) < sizes.retrieval:
            shown[concept.code] = choices.pick(having, seed, "retrieval", concept.code)
    return Splits(
        seed,
        tuple(map(_code, concrete)),
        tuple(map(_code, tested)),
        tuple(map(_code, unseen)),
        hidden,
        shown,
    )


def _code(concept: Concept) -> str:
    return concept.code


def _occurs_elsewhere(concept: Concept, concepts: Sequence[Concept]) -> bool:
    own = Phrases(concept.names)
    return any(other.code != concept.code and other.name in own for other in concepts) or any(
        text in own for text in fixed_texts(concepts)
    )

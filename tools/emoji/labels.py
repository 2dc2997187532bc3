"""Labels of stage 1, many for each picture: the concept, its keywords, its subgroup, its group."""

import collections
import dataclasses
from collections.abc import Sequence

from tools.emoji.captions import keywords, kind
from tools.emoji.concepts import Concept
from tools.sources.phrases import Phrases

LEAST_CONCEPTS = 4  # a keyword of fewer concepts says no more than the concept label does


@dataclasses.dataclass(frozen=True)
class Labels:
    """names and kinds ("concept", "keyword", "subgroup", "group") of the labels; of: numbers by code."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    of: dict[str, tuple[int, ...]]


def make_labels(concepts: Sequence[Concept], forbidden: Phrases, least: int = LEAST_CONCEPTS) -> Labels:
    """Labels of training concepts. forbidden: no label names a held-out concept either."""
    counts = collections.Counter(word for concept in concepts for word in keywords(concept, forbidden))
    table = dict.fromkeys(("concept", concept.name) for concept in concepts)
    table |= dict.fromkeys(("keyword", word) for word in sorted(counts) if counts[word] >= least)
    table |= dict.fromkeys(("subgroup", kind(concept)) for concept in concepts)
    table |= dict.fromkeys(("group", concept.group) for concept in concepts)
    numbers = {key: number for number, key in enumerate(table)}
    of = {}
    for concept in concepts:
        own = [("concept", concept.name)]
        own += [("keyword", word) for word in keywords(concept, forbidden)]
        own += [("subgroup", kind(concept)), ("group", concept.group)]
        of[concept.code] = tuple(sorted({numbers[key] for key in own if key in numbers}))
    return Labels(tuple(name for _, name in table), tuple(kind_ for kind_, _ in table), of)

"""Which record goes into which dataset, with which captions and labels."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tools.emoji import captions
from tools.emoji.concepts import Concept
from tools.emoji.labels import Labels, make_labels
from tools.emoji.packages import FONT_STYLE, HELD_OUT_STYLES, TRAINING_STYLES
from tools.emoji.splits import Splits
from tools.sources import choices
from tools.sources.duplicates import near_identical
from tools.sources.phrases import Phrases
from tools.sources.render import pixels


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record before it is written."""

    style: str
    code: str
    captions: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def id(self) -> str:
        """The record's name: "noto/1f431"."""
        return f"{self.style}/{self.code}"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The entries of a dataset and what its json says beside the sources."""

    entries: tuple[Entry, ...]
    facts: Mapping


class Datasets:
    """All datasets of the emoji data.

    pngs: style -> concept code -> picture. `train` leaves out the pictures that are near-identical to a test
    picture; `removed` has their ids.
    """

    def __init__(self, concepts: Sequence[Concept], splits: Splits, pngs: Mapping[str, Mapping[str, bytes]]):
        self._concepts = {concept.code: concept for concept in concepts}
        self.splits, self._pngs = splits, pngs
        self.forbidden = Phrases(name for code in splits.held_out for name in self._concepts[code].names)
        unseen = set(splits.held_out)
        self.trained = [concept for concept in concepts if concept.code not in unseen]
        self.labels: Labels = make_labels(self.trained, self.forbidden)
        self.tests = dict(self._tests())
        self.removed: tuple[str, ...] = ()
        self.train = self._train()

    def all(self) -> Iterator[tuple[str, Dataset]]:
        """Name and dataset, the training set last."""
        yield from self.tests.items()
        yield "train", self.train

    def _tests(self) -> Iterator[tuple[str, Dataset]]:
        splits = self.splits
        yield "test_in_distribution", self._zero_shot(splits.test, [(s, c) for c, s in splits.hidden.items()])
        for style in (*HELD_OUT_STYLES, FONT_STYLE):
            if style in self._pngs:
                shown = [(style, code) for code in splits.test if code in self._pngs[style]]
                if shown:
                    yield f"test_{style}", self._zero_shot(splits.test, shown)
        # Not the font's: the test must not depend on what is installed.
        shown = [
            (style, code)
            for style in (*TRAINING_STYLES, *HELD_OUT_STYLES)
            for code in splits.held_out
            if code in self._pngs[style]
        ]
        yield "test_held_out_concepts", self._zero_shot(splits.held_out, shown)
        yield "retrieval", self._retrieval()

    def _zero_shot(self, classes: Sequence[str], shown: Sequence[tuple[str, str]]) -> Dataset:
        number = {code: i for i, code in enumerate(classes)}
        entries = [Entry(style, code, (self._concepts[code].name,), (number[code],)) for style, code in shown]
        described = [
            {
                "name": self._concepts[code].name,
                "described": captions.described(self._concepts[code]),
                "keywords": list(self._concepts[code].keywords),
                "code": code,
            }
            for code in classes
        ]
        return Dataset(tuple(sorted(entries, key=lambda e: (e.labels, e.style))), {"classes": described})

    def _retrieval(self) -> Dataset:
        entries, said = [], set()
        for code, style in self.splits.retrieval.items():
            texts = captions.retrieval_captions(self._concepts[code], style, self.splits.seed)
            own = tuple(text for text in texts if text.lower() not in said)
            said.update(text.lower() for text in own)
            entries.append(Entry(style, code, own, ()))
        return Dataset(tuple(entries), {"captions": sum(len(entry.captions) for entry in entries)})

    def _train(self) -> Dataset:
        entries = [
            Entry(
                style,
                concept.code,
                tuple(captions.captions(concept, style, self.forbidden, self.splits.seed)),
                self.labels.of[concept.code],
            )
            for concept in self.trained
            for style in TRAINING_STYLES
            if concept.code in self._pngs[style] and self.splits.is_trained(concept.code, style)
        ]
        shown = [entry for test in self.tests.values() for entry in test.entries]
        same = near_identical(self._pixels(entries), self._pixels(shown))
        self.removed = tuple(entry.id for entry, gone in zip(entries, same) if gone)
        kept = [entry for entry, gone in zip(entries, same) if not gone]
        kept = choices.ordered(kept, self.splits.seed, "order", key=lambda entry: entry.id)
        return Dataset(
            tuple(kept),
            {
                "label_names": list(self.labels.names),
                "label_kinds": list(self.labels.kinds),
                "styles": list(TRAINING_STYLES),
                "captions": sum(len(entry.captions) for entry in kept),
                "removed_as_near_identical_to_test_pictures": list(self.removed),
            },
        )

    def _pixels(self, entries: Sequence[Entry]) -> np.ndarray:
        return np.stack([pixels(self._pngs[entry.style][entry.code]) for entry in entries])

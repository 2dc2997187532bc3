"""Which text goes with a picture at a step: one of its captions, or a sentence made of its labels.

The choice depends on (seed, step, index in the global batch) alone, through the project's hash, so a resumed
run, another number of hosts or of reading threads gives the same texts.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from basic_tf.randomness import bits_numpy

# A few general templates in the manner of CLIP's list; runs may give their own.
PHOTO_TEMPLATES = (
    "a photo of the {}.",
    "a photo of a {}.",
    "a picture of the {}.",
    "an image of {}.",
    "{}",
    "a bright photo of the {}.",
    "a close-up photo of the {}.",
    "a drawing of the {}.",
)


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """How a text is made from a record.

    templates: sentences with one `{}` for labels turned into text (basic_paper section 3: the names of all
    labels in
      random order, joined by `joiner`, in a template drawn at random).
    label_text: share of the examples that have both captions and labels whose text is made from their labels.
    keyword_dropout: each keyword after the first of a comma-separated caption ("apple, red, fruit") is left
    out with this
      probability.
    joiner: what stands between label names.
    """

    templates: Sequence[str] = PHOTO_TEMPLATES
    label_text: float = 0.0
    keyword_dropout: float = 0.0
    joiner: str = ", "

    def __post_init__(self):
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"a template must hold {{}} exactly once, got {template!r}")
        if not self.templates:
            raise ValueError("templates must not be empty; use ('{}',) to leave the label names as they are")
        for name in ("label_text", "keyword_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")

    def choose(
        self,
        key: np.ndarray,
        examples: np.ndarray,
        captions: Sequence[Sequence[str]],
        labels: Sequence[Sequence[int]] | None = None,
        label_names: Sequence[str] = (),
    ) -> list[str]:
        """One text per example.

        key: uint32 [2], `randomness.step_key_numpy(seed, step)`. examples: int [B], indices in the global
        batch.
        captions, labels: the captions and label numbers of each example. An example with neither is a
        ValueError.
        """
        draws = bits_numpy(key, examples, "captions/choice", 3)
        if labels is None:
            labels = [()] * len(captions)
        texts = []
        for row, (own, numbers) in enumerate(zip(captions, labels, strict=True)):
            numbers = numbers if len(label_names) else ()
            if not len(own) and not len(numbers):
                raise ValueError(f"example {int(examples[row])} has neither captions nor labels with names")
            from_labels = not len(own) or (len(numbers) and _share(draws[row, 0]) < self.label_text)
            if from_labels:
                names = [label_names[number] for number in numbers]
                texts.append(self._sentence(key, examples[row], names, int(draws[row, 1])))
            else:
                # Multiply-shift maps the word to [0, n) evenly; `%` would do as well, at these sizes.
                text = own[(int(draws[row, 2]) * len(own)) >> 32]
                texts.append(self._thinned(key, examples[row], text) if self.keyword_dropout else text)
        return texts

    def _sentence(self, key: np.ndarray, example: int, names: list[str], word: int) -> str:
        order = np.argsort(_words(key, example, "captions/label_order", len(names)), kind="stable")
        template = self.templates[(word * len(self.templates)) >> 32]
        return template.format(self.joiner.join(names[i] for i in order))

    def _thinned(self, key: np.ndarray, example: int, text: str) -> str:
        keywords = [keyword.strip() for keyword in text.split(",")]
        if len(keywords) < 2:
            return text
        words = _words(key, example, "captions/keyword_dropout", len(keywords))
        kept = [
            keyword
            for i, keyword in enumerate(keywords)
            if i == 0 or _share(words[i]) >= self.keyword_dropout
        ]
        return ", ".join(kept)


def _words(key: np.ndarray, example: int, stream: str, count: int) -> np.ndarray:
    return bits_numpy(key, np.array([example]), stream, count)[0]


def _share(word) -> float:
    """A uniform number in [0, 1) from a 32-bit word, as `randomness.uniform` makes it."""
    return (int(word) >> 8) / (1 << 24)

"""Every test of a data folder on one encoder."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from basic_tf.evaluation import (
    average_precision,
    datasets,
    prompts,
    public_tests,
    retrieval,
    stream,
    zero_shot,
)
from basic_tf.evaluation.encoder import Encoder
from basic_tf.evaluation.weight_cache import WeightCache

# The styles whose mean top-1 sums up the robustness of the emoji demo; all show the same 200 concepts.
HELD_OUT_STYLES = ("openmoji", "emojione-v1", "fxemoji")
DESCRIBED = "_described"


@dataclasses.dataclass
class SuiteResult:
    """zero_shot: results by test, in the order of the report. classes: the class names by test. seconds: all
    of it. tests: what was opened, by test. multi_label: results of the tests with several labels to a picture. missing:
    tests that are not on disk, each with the line that says how to get it. embeddings: where they were asked for,
    (unit rows [N, E], labels [N]) by test.
    """

    zero_shot: dict[str, zero_shot.ZeroShotResult]
    classes: dict[str, tuple[str, ...]]
    retrieval: dict[str, dict] | None
    templates: tuple[str, ...]
    described_templates: tuple[str, ...]
    canonicalisation: str
    seconds: float
    tests: dict[str, datasets.TestSet] = dataclasses.field(default_factory=dict)
    multi_label: dict[str, average_precision.MultiLabelResult] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    embeddings: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict:
        """The mean over the held-out styles, where all of them were evaluated."""
        if not all(style in self.zero_shot for style in HELD_OUT_STYLES):
            return {}
        mean, error = zero_shot.mean_over_sets([self.zero_shot[style] for style in HELD_OUT_STYLES])
        return {
            "held_out_styles_mean_top1": mean,
            "held_out_styles_mean_top1_standard_error": error,
            "held_out_styles": list(HELD_OUT_STYLES),
        }


def report_order(names: Sequence[str]) -> list[str]:
    """In distribution first, then the held-out styles, other tests by name, unseen concepts last."""
    first = ["in_distribution", *HELD_OUT_STYLES, "symbola"]
    last = ["held_out_concepts"]
    middle = sorted(set(names) - set(first) - set(last))
    return [name for name in [*first, *middle, *last] if name in set(names)]


def run(
    encoder: Encoder,
    data_dir: str | None,
    templates: Sequence[str],
    tests: Sequence[str] | None = None,
    described_templates: Sequence[str] = prompts.BARE_TEMPLATES,
    canonicalisation: str = "as_is",
    subsets: dict[str, np.ndarray] | None = None,
    with_retrieval: bool = True,
    keep: int = 1000,
    say: Callable[[str], None] = lambda line: None,
    open_test: Callable[[str], datasets.TestSet] | None = None,
    cache: WeightCache | None = None,
    keep_embeddings: bool = False,
) -> SuiteResult:
    """Evaluates the tests of a data folder (all of them if `tests` is None).

    open_test: opens a test by name, where not all are in the data folder; a test for which it raises MissingTestError is
    said and left out, the others run. cache: classifiers on disk. keep_embeddings: of all pictures, for `analysis`.

    A test whose classes all have a `described` text and whose name begins with "held_out_concepts" is
    evaluated a second time with those texts, as `<name>_described`, in `described_templates`. subsets: class
    masks by test. say: takes one line of progress at a time. FileNotFoundError if there is no test, or none
    of them on disk.
    """
    begin = time.monotonic()
    names = report_order(datasets.test_names(data_dir)) if tests is None else list(tests)
    if not names and not with_retrieval:
        raise FileNotFoundError(f"{data_dir} holds retrieval alone, and that is switched off")
    weights_of: dict[tuple, np.ndarray] = {}  # tests of several styles share their classes

    def weights_for(texts, in_templates):
        class_prompts = tuple(prompts.class_prompts(texts, in_templates, canonicalisation))
        if class_prompts not in weights_of:

            def made():
                return zero_shot.class_weights(encoder, class_prompts)

            weights_of[class_prompts] = made() if cache is None else cache.weights(class_prompts, made)
        return weights_of[class_prompts]

    results, classes, opened, multi_label, missing, kept = {}, {}, {}, {}, {}, {}
    for name in names:
        try:
            test = datasets.open_test(data_dir, name) if open_test is None else open_test(name)
        except public_tests.MissingTestError as error:
            missing[name] = str(error)
            say(f"left out: {error}")
            continue
        opened[name] = test
        if test.multi_label:
            multi_label[name] = _evaluate_multi_label(
                encoder, test, weights_for(test.classes, test.templates or templates)
            )
            say(f"{name}: mean average precision {100 * multi_label[name].mean_average_precision:.1f} %")
            continue
        variants = [(name, test.classes, test.templates or templates)]
        if test.described is not None and name.startswith("held_out_concepts"):
            variants.append((name + DESCRIBED, test.described, described_templates))
        weights = [weights_for(texts, in_templates) for _, texts, in_templates in variants]
        subset = (subsets or {}).get(name, test.subset)
        classifiers = [zero_shot.ZeroShotClassifier(rows, subset=subset, keep=keep) for rows in weights]
        for embeddings, labels, records in _embedded(encoder, test):  # once for all variants
            for classifier in classifiers:
                classifier.update(embeddings, labels, records)
            if keep_embeddings:
                kept.setdefault(name, []).append((embeddings, labels))
        for (variant, _, _), classifier in zip(variants, classifiers):
            results[variant] = classifier.result()
            classes[variant] = test.classes
            entry = results[variant]
            say(
                f"{variant}: top-1 {100 * entry.top1:.1f} %, top-5 {100 * entry.top5:.1f} % "
                f"({entry.examples} pictures, {entry.candidates} classes)"
            )

    if missing and not opened:
        raise FileNotFoundError("; ".join(missing.values()))
    recalls = None
    retrieval_set = datasets.open_retrieval(data_dir) if with_retrieval and data_dir else None
    if retrieval_set is not None:
        recalls = evaluate_retrieval(encoder, retrieval_set)
        say(
            f"retrieval: image to text R@1 {100 * recalls['image_to_text']['R@1']:.1f} %, "
            f"text to image R@1 {100 * recalls['text_to_image']['R@1']:.1f} %"
        )
    return SuiteResult(
        results,
        classes,
        recalls,
        tuple(templates),
        tuple(described_templates),
        canonicalisation,
        time.monotonic() - begin,
        opened,
        multi_label,
        missing,
        {name: tuple(np.concatenate(part) for part in zip(*parts)) for name, parts in kept.items()},
    )


def _embedded(encoder: Encoder, test):
    return stream.embedded(encoder, test.batches(), origin=getattr(test, "path", test.name))


def _evaluate_multi_label(encoder: Encoder, test, weights: np.ndarray) -> average_precision.MultiLabelResult:
    classifier = average_precision.MultiLabelClassifier(weights)
    for embeddings, labels, _ in _embedded(encoder, test):
        classifier.update(embeddings, labels)
    return classifier.result()


def evaluate_retrieval(encoder: Encoder, retrieval_set: datasets.RetrievalSet) -> dict[str, dict]:
    """R@1, 5, 10 in both directions. Holds the embeddings of all pictures and captions, never their
    products.
    """
    text_rows, captions_of = [], []

    def batches():
        for images, captions, records in retrieval_set.batches():
            text_rows.append(encoder.encode_text([caption for group in captions for caption in group]))
            captions_of.extend(len(group) for group in captions)
            yield images, records, records

    image_rows = [rows for rows, _, _ in stream.embedded(encoder, batches(), origin=retrieval_set.path)]
    if not image_rows:
        raise ValueError(f"{retrieval_set.path} holds no readable record")
    image_of_text = np.repeat(np.arange(len(captions_of)), captions_of)
    return retrieval.recalls(np.concatenate(image_rows), np.concatenate(text_rows), image_of_text)

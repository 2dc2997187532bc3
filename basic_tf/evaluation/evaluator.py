"""Evaluation while training, as orbit runs it: the suite's figures as scalars, and two pictures for TensorBoard."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import orbit
import tensorflow as tf

from basic_tf.data.decoding import decode, framed
from basic_tf.evaluation import datasets, suite
from basic_tf.evaluation.encoder import Encoder
from basic_tf.monitoring import panels

_GALLERY = 12
_MATRIX = 20
_CAPTIONS_SHOWN = 3


class SuiteEvaluator(orbit.AbstractEvaluator):
    """Runs the suite of a data folder on the model that is being trained.

    encoder: of that model. data_dir: the folder with test_*.json and, if it has one, retrieval.json.
    weights: a context manager under which the model holds the weights to be evaluated (their average, if the stage keeps
    one). report: takes the results as a flat dict of numbers, for the metrics' log. step: the step of the summaries.
    """

    def __init__(
        self,
        encoder: Encoder,
        data_dir: str,
        templates: Sequence[str],
        step: tf.Variable,
        weights: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        tests: Sequence[str] | None = None,
        report: Callable[[dict[str, float]], None] = lambda figures: None,
    ):
        self._encoder, self._data_dir, self._templates, self._tests = encoder, data_dir, templates, tests
        self._step, self._weights, self._report = step, weights, report
        self._retrieval = datasets.open_retrieval(data_dir)

    def evaluate(self, num_steps) -> dict[str, float]:
        """One pass over every test. num_steps has no meaning here: a test is always whole."""
        del num_steps
        with self._weights():
            results = suite.run(self._encoder, self._data_dir, self._templates, tests=self._tests)
            if self._retrieval is not None:
                self._write_panels()
        figures = {}
        for name, result in results.zero_shot.items():
            figures[f"zero_shot/{name}/top1"] = float(result.top1)
            figures[f"zero_shot/{name}/top5"] = float(result.top5)
        for direction, recalls in (results.retrieval or {}).items():
            for name, value in recalls.items():
                if name.startswith("R@"):
                    figures[f"retrieval/{direction}/{name.replace('@', '_at_')}"] = float(value)
        summary = results.summary()
        if summary:
            figures["zero_shot/held_out_styles_mean_top1"] = summary["held_out_styles_mean_top1"]
        self._report(figures)
        return figures

    def _write_panels(self) -> None:
        """The gallery of pictures with the captions found for them, and the similarity matrix of one batch."""
        images, captions, _ = next(self._retrieval.batches())
        first = [own[0] for own in captions]
        rows = self._encoder.encode_image_bytes(images)  # [N, E]
        columns = self._encoder.encode_text(first)  # [N, E]
        pictures = np.stack(
            [framed(decode(image), 64, "stretch") for image in images[: max(_GALLERY, _MATRIX)]]
        )
        scores = rows[:_GALLERY] @ columns.T
        found = [
            [
                panels.Retrieved(first[column], float(scores[row, column]), first[column] == first[row])
                for column in np.argsort(-scores[row], kind="stable")[:_CAPTIONS_SHOWN]
            ]
            for row in range(len(scores))
        ]
        step = int(self._step)
        panels.write_figure(
            step,
            "retrieved_captions",
            panels.gallery(
                pictures[:_GALLERY], found, first[:_GALLERY], title="Captions found for test pictures"
            ),
        )
        panels.write_figure(
            step,
            "similarity_matrix",
            panels.similarity_matrix(rows[:_MATRIX], columns[:_MATRIX], first[:_MATRIX], pictures[:_MATRIX]),
        )

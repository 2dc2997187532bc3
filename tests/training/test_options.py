"""Options of the contrastive task that cannot work are said before training; those that can, work."""

import pytest

from basic_tf.training.tasks import Contrastive
from tests.contrastive.tiny_dual_encoder import tiny_model


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"tile": (8,)}, "two of them"),
        ({"tile": 0}, "positive integer"),
        ({"max_inverse_temperature": 0.0}, "max_inverse_temperature"),
    ],
)
def test_options_are_checked_before_the_model_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(None, lambda: pytest.fail("made"), **options)


def test_the_temperature_may_be_unbounded():
    model = tiny_model()
    for bound, expected in ((None, 7.0), (100.0, 4.605170186)):
        model.log_inverse_temperature.assign(7.0)
        Contrastive(None, lambda: model, max_inverse_temperature=bound).constrain()
        assert float(model.log_inverse_temperature) == pytest.approx(expected)


def test_a_classifier_that_the_loss_never_reads_is_refused():
    model = tiny_model()
    model.image_tower.head_blocks = ["a classifier"]
    with pytest.raises(ValueError, match=r"CoAtNet\.num_classes"):
        Contrastive(None, lambda: model)

"""What a run folder keeps of its first start, and what a later start may change."""

import pytest

from basic_tf import configurables, runs
from basic_tf.training import checkpoints, stage_run
from basic_tf.training.stages import ConfigurationError


@pytest.fixture
def tokenizers(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.model").write_text(name)
    return tmp_path


def start(folder, tokenizer, *bindings):
    configurables.parse(["tests/training/tiny.gin"], [f"MODEL = '{tokenizer}'", *bindings])
    runs.describe(str(folder), configurables.config_text(), stage_run.Options())


def checkpoint(folder, stage="pretrain"):
    checkpoints.save(stage_run.checkpoint_folder(str(folder / stage)), 1, {}, {})


def test_the_tokenizer_of_trained_weights_is_never_replaced(tokenizers):
    folder, source = tokenizers / "run", tokenizers / "source.model"
    source.write_text("one")
    start(folder, source)
    source.write_text("two")
    start(folder, source)
    assert (folder / "tokenizer.model").read_text() == "two"  # nothing is trained yet
    checkpoint(folder)
    start(folder, source)
    source.write_text("three")
    with pytest.raises(ConfigurationError, match="is not the tokenizer that"):
        start(folder, source)
    assert (folder / "tokenizer.model").read_text() == "two"
    assert not list(folder.glob("*.partial"))

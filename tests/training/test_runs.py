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


@pytest.mark.parametrize(
    "trained,first,then",
    [
        (
            ["pretrain", "contrastive"],
            "finetune/Contrastive.microbatch = 7",
            "finetune/Contrastive.microbatch = 8",
        ),
        (["pretrain"], "locked/Rule.pattern = 'image_towr/.*'", "locked/Rule.pattern = 'image_tower/.*'"),
        (["pretrain", "contrastive", "finetune"], "Evaluation.tests = ['x']", "Evaluation.tests = ['y']"),
        (["pretrain"], "EVAL = 'nowhere'", "EVAL = 'data'"),
        ([], "CoAtNet.image_size = 24", "CoAtNet.image_size = 32"),
    ],
)
def test_what_no_trained_stage_has_read_may_be_corrected(tokenizers, trained, first, then):
    folder, tokenizer = tokenizers / "run", tokenizers / "one.model"
    start(folder, tokenizer, first)
    for stage in trained:
        checkpoint(folder, stage)
    start(folder, tokenizer, then)
    assert runs.changes((folder / "config.gin").read_text(), configurables.config_text(), trained) == []


@pytest.mark.parametrize(
    "trained,first,then,message",
    [
        (["finetune"], "finetune/Contrastive.microbatch = 4", "finetune/Contrastive.microbatch = 8", "was 4, is 8"),
        (["contrastive"], "locked/Rule.frozen = True", "locked/Rule.frozen = False", "locked/Rule.frozen was True"),
        (["pretrain"], "Schedule.peak = 1e-3", "Schedule.peak = 2e-3", r"Schedule\.peak was 0\.001, is 0\.002"),
        (["pretrain"], "TRAIN = 'a'", "TRAIN = 'b'", "TRAIN was 'a', is 'b'"),
        (
            ["finetune"],
            "finetune/RuleTable.rules = [@locked/Rule(), @finetune/Rule()]",
            "finetune/RuleTable.rules = [@finetune/Rule(), @locked/Rule()]",
            "1 settings differ: finetune/RuleTable.rules was",
        ),
    ],
)  # fmt: skip
def test_what_a_trained_stage_has_read_may_not_change(tokenizers, trained, first, then, message):
    folder, tokenizer = tokenizers / "run", tokenizers / "one.model"
    start(folder, tokenizer, first)
    for stage in trained:
        checkpoint(folder, stage)
    before = (folder / "config.gin").read_text()
    with pytest.raises(ConfigurationError, match=message) as raised:
        start(folder, tokenizer, then)
    assert "\n" not in str(raised.value) and (folder / "config.gin").read_text() == before

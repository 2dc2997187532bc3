"""What a run folder keeps of its first start, and what a later start may change."""

import pytest

import gin
from basic_tf import configurables, runs
from basic_tf.parallel import strategies
from basic_tf.training import checkpoints, finished, stage_run
from basic_tf.training.stages import ConfigurationError
from tests import tiny_data


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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data.make(str(tmp_path_factory.mktemp("data")))


def check(data, folder, *bindings, stages=None, collectives=None):
    configurables.parse(
        ["tests/training/tiny.gin"],
        [f"TRAIN = '{data}/train.json'", f"MODEL = '{data}/tokenizer.model'", *bindings],
    )
    recipe = configurables.recipe()
    runtime = strategies.create("one_device")
    runtime.collectives = collectives
    chosen = [recipe.stage(name) for name in stages] if stages else recipe.stages
    runs.check(chosen, str(folder), runtime, stage_run.Options())


@pytest.mark.parametrize(
    "binding,message",
    [
        ("finetune/Contrastive.microbatch = 7", "stage finetune: .*microbatch = 7 does not divide the 16 rows"),
        ("finetune/Stage.batch_size = 4096", "stage finetune: batch_size=4096 is larger than the dataset"),
        ("finetune/Records.path = 'nowhere.json'", "stage finetune: .*nowhere.json"),
        ("finetune/Tokenizer.model_file = 'nowhere.model'", "no tokenizer model at nowhere.model"),
        ("finetune/Rule.pattern = 'image_towr/.*'", "stage finetune: .*image_towr"),
        ("finetune/WarmStart.stage = './nowhere'", "stage finetune warm-starts from ./nowhere, which holds no checkpoint"),
        ("finetune/Schedule.shape = 'round'", "stage finetune: .*round"),
        ("finetune/ImageAugmentation.output_size = 16",
         "stage finetune: CoAtNet.image_size is 24 x 24 pixels, and ImageAugmentation.output_size is 16; make them equal"),
        ("finetune/CoAtNetTable.head_dim = 8", "stage finetune: warm start from stage contrastive .* has shape"),
        ("finetune/WarmStart.fresh = ('nothing/.*',)", "stage finetune: .* the fresh pattern 'nothing/.*' matches nothing"),
        ("finetune/AdaFactorW.beta1 = None", "stage finetune: beta1 is None; it must be a number"),
        ("finetune/CoAtNet.stochastic_depth = 'much'", r"stage finetune: .*not supported between .* \(of CoAtNet\)"),
    ],
)  # fmt: skip
def test_a_fault_of_the_last_stage_is_found_before_the_first_step(data, tmp_path, binding, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        check(data, tmp_path, binding)
    assert "\n" not in str(raised.value)


def test_accumulation_in_slots_is_asked_about_before_the_first_step(data, tmp_path):
    bindings = ("finetune/Contrastive.accumulate_in_slots = 'sketch'", "finetune/Contrastive.microbatch = 8")
    check(data, tmp_path, *bindings)
    with pytest.raises(ConfigurationError, match="stage finetune: big_vision averages normalised updates"):
        check(data, tmp_path, *bindings, "finetune/AdaFactorW.big_vision = True")


def test_a_recipe_that_works_passes_and_finished_stages_are_not_asked(data, tmp_path):
    check(data, tmp_path)
    with pytest.raises(ConfigurationError, match="contrastive, which holds no checkpoint"):
        check(data, tmp_path, stages=["finetune"])
    (tmp_path / "finetune").mkdir()
    finished.write(str(tmp_path / "finetune"), finished.Finished(6, 6, 6, 0))
    check(data, tmp_path, "finetune/Contrastive.microbatch = 7")


@pytest.mark.parametrize(
    "binding,message",
    [
        ("finetune/Contrastive.microbatch = 2",
         "stage finetune: Contrastive.microbatch = 2 cannot .* groups of 4; use Contrastive.microbatch = 4 or 8 or 16"),
        ("finetune/Stage.batch_size = 6", "stage finetune: a batch of 6 rows .* groups of 4; use another Stage.batch_size"),
        ("pretrain/Classification.microbatch = 1", "groups of 4; use Classification.microbatch = 4 or 8"),
    ],
)  # fmt: skip
def test_microbatches_hold_whole_groups_of_ghost_batch_norm(data, tmp_path, binding, message):
    ghost = [f"{stage}/CoAtNet.batch_norm = 'ghost'" for stage in ("pretrain", "finetune")]
    with pytest.raises(ConfigurationError, match=message):
        check(data, tmp_path, *ghost, binding)
    check(data, tmp_path, *ghost)


def test_a_frozen_image_tower_has_no_groups(data, tmp_path):
    """Stage 2 runs it in inference mode, whatever its BatchNorm would do in training."""
    check(
        data, tmp_path, "contrastive/CoAtNet.batch_norm = 'ghost'", "contrastive/Contrastive.microbatch = 2"
    )


def test_separate_losses_on_several_devices_are_refused_before_the_step(data, tmp_path):
    separate = ("finetune/Contrastive.negatives = 'microbatch'", "finetune/Contrastive.microbatch = 8")
    check(data, tmp_path, *separate)
    with pytest.raises(ConfigurationError, match="works on one device; this run has the runtime one_device"):
        check(data, tmp_path, *separate, collectives=object())


def test_a_schedule_without_its_peak_is_one_line():
    configurables.parse([], [])
    stage = type("Named", (), {"name": "x"})
    with pytest.raises(ConfigurationError, match=r"stage x: .*peak"), stage_run.in_words(stage):
        gin.get_configurable("basic_tf.Schedule")(total_steps=1)


def test_a_folder_that_cannot_be_made_is_one_line(tokenizers):
    with pytest.raises(ConfigurationError, match=r"cannot be written .*use another --model_dir"):
        start(tokenizers / "one.model" / "run", tokenizers / "one.model")

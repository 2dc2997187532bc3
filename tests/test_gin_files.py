"""Every run file that ships describes a recipe whose models can be built."""

import re
from pathlib import Path

import pytest

import gin
from basic_tf import configurables
from tests import tiny_data

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / "gin" / "runs").glob("*.gin"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # includes are written from the project's root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data.make(str(tmp_path_factory.mktemp("data")))


def bound() -> dict[tuple[str, str, str], object]:
    """(scope, selector, parameter) -> value of everything that is bound."""
    return {
        (scope, selector, name): value
        for (scope, selector), values in gin.config._CONFIG.items()
        for name, value in values.items()
    }


def point_at(data) -> None:
    """Files of the tiny data in place of those that a run names, and batches that it can fill."""
    with gin.unlock_config():
        for scope, selector, name in bound():
            binding = f"{scope}/{selector}.{name}" if scope else f"{selector}.{name}"
            if selector == "gin.macro" and scope in ("PAIRS", "LABELLED", "TOKENIZER"):
                file = "tokenizer.model" if scope == "TOKENIZER" else "train.json"
                gin.bind_parameter(f"{scope}/gin.macro.value", f"{data}/{file}")
            elif selector.endswith(".Records") and name == "path" and "PAIRS" not in macros():
                gin.bind_parameter(binding, f"{data}/train.json")
            elif selector.endswith(".Tokenizer") and name == "model_file" and "PAIRS" not in macros():
                gin.bind_parameter(binding, f"{data}/tokenizer.model")
            elif selector.endswith(".Stage") and name == "batch_size":
                gin.bind_parameter(binding, 8)


def macros() -> set[str]:
    return {scope for scope, selector, _ in bound() if selector == "gin.macro"}


def unused() -> set[tuple[str, str, str]]:
    """Bindings that no call has read. A call in scope a/b reads those of a/b, a and the outermost, the nearest first."""

    def reads(called: str, scope: str) -> bool:
        return not scope or called == scope or called.startswith(scope + "/")

    bindings, left = bound(), set()
    for scope, selector, name in bindings:
        calls = [
            called
            for (called, other), values in gin.config._OPERATIVE_CONFIG.items()
            if other == selector and name in values and reads(called, scope)
        ]
        nearer = [
            other
            for other, s, n in bindings
            if (s, n) == (selector, name) and other != scope and reads(other, scope)
        ]
        if not any(not any(reads(called, other) for other in nearer) for called in calls):
            left.add((scope, selector, name))
    return left


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_builds_and_all_of_it_is_used(path, data):
    configurables.parse([str(path)], [])
    inherited = {}
    for parent in re.findall(r"^include '(gin/runs/.*)'", path.read_text(), re.MULTILINE):
        configurables.parse([parent], [])
        inherited = bound()
    configurables.parse([str(path)], [])
    own = {key: value for key, value in bound().items() if inherited.get(key, key) != value}
    text = configurables.config_text()
    point_at(data)
    recipe = configurables.recipe()
    configurables.Evaluation()
    for stage in recipe.stages:
        task = stage.task(metadata={"label_names": ["a", "b", "c"]})
        model = task.model if configurables.is_contrastive(stage) else task.model.image_tower
        specs = model.specs()  # nothing is allocated
        assert specs and len({spec.path for spec in specs}) == len(specs)
        assert not model.weights
        prefix = "" if configurables.is_contrastive(stage) else "image_tower/"
        resolved = stage.rules.resolve([prefix + spec.path for spec in specs if spec.trainable])
        stage.optimizer(stage.schedule(total_steps=10**6), rules=resolved)
        for optional in (stage.weight_average, stage.update_guard):
            if optional is not None:
                optional()
        batches = stage.batches(seed=0, batch_size=stage.batch_size)
        assert batches.augmentation.output_size == getattr(model, "image_tower", model).image_size[0]
        stage.train.to_steps(stage.batch_size, batches.source.count)
    left = {key for key in unused() if key in own}
    assert not left, f"bound and never read: {sorted(left)}"
    configurables.parse_text(text)
    configurables.recipe()
    assert configurables.config_text() == text


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_suits_a_million_pictures(path):
    configurables.parse([str(path)], [])
    for stage in configurables.recipe().stages:
        steps = stage.train.to_steps(stage.batch_size, 1_281_167)  # ImageNet-1k
        assert 0.0 < float(stage.schedule(total_steps=steps)(steps // 2)) < 1.0


@pytest.mark.parametrize("size", "sml")
def test_a_card_names_the_most_devices_that_the_microbatch_allows(size):
    path = ROOT / "gin" / "runs" / f"basic_{size}.gin"
    devices = int(re.search(r"^# Hardware: at most (\d+) devices", path.read_text(), re.MULTILINE)[1])
    configurables.parse([str(path)], [])
    stages = configurables.recipe().stages
    rows = [
        stage.batch_size // stage.task(metadata={"label_names": ["a", "b"]}).microbatch for stage in stages
    ]
    assert devices == min(rows)


@pytest.mark.parametrize("size,billions", [("s", 4.14), ("m", 36.45), ("l", 457.8)])
def test_image_towers_halve_their_maps_where_the_published_ones_do(size, billions):
    """CoAtNet-3 on JFT has a strided depthwise convolution; with the stride in the expansion it has 34.4 billion."""
    configurables.parse([f"gin/models/basic_{size}.gin"], [])
    tower = gin.get_configurable("basic_tf.CoAtNet")()
    assert sum(tower.multiply_adds().values()) / 1e9 == pytest.approx(billions, abs=0.05)


def test_what_is_never_read_is_found(data):
    path = "gin/runs/demo.gin"
    configurables.parse([path], ["pretrain/WarmStart.stage = 'x'"])
    with gin.unlock_config():
        gin.bind_parameter("basic_l/CoAtNet.dtype", "float32")
    gin.get_configurable("basic_tf.Tokenizer")(model_file=f"{data}/tokenizer.model")
    left = unused()
    assert {("basic_l", "basic_tf.CoAtNet", "dtype"), ("pretrain", "basic_tf.WarmStart", "stage")} <= left
    assert ("", "basic_tf.Tokenizer", "length") not in left


def test_label_sentences_of_the_labelled_stage(data):
    configurables.parse(
        ["tests/training/tiny.gin", "gin/stages/finetune_on_labels.gin"],
        [f"TRAIN = '{data}/train.json'", f"MODEL = '{data}/tokenizer.model'", "Recipe.stages = [@labels/Stage()]",
         "labels/WarmStart.stage = 'runs/x/finetune'"],
    )  # fmt: skip
    (stage,) = configurables.recipe().stages
    texts = stage.batches(seed=3, batch_size=48).texts(0)
    pairs = {f"{a}, {b}" for x in tiny_data.SHAPES for y in tiny_data.COLOURS for a, b in ((x, y), (y, x))}
    assert len(set(texts)) > 20 and all(any(pair in text for pair in pairs) for text in texts)


def test_learning_rates_of_towers_and_layers_come_from_gin():
    configurables.parse(
        ["tests/training/tiny.gin"],
        ["finetune/RuleTable.rules = [@early/Rule(), @image/Rule(), @finetune/Rule()]",
         "early/Rule.pattern = 'image_tower/(stem|stage1)/.*'", "early/Rule.learning_rate_factor = 0.01",
         "image/Rule.pattern = 'image_tower/.*'", "image/Rule.learning_rate_factor = 0.1"],
    )  # fmt: skip
    stage = configurables.recipe().stage("finetune")
    paths = [spec.path for spec in stage.task(metadata=None).model.specs() if spec.trainable]
    resolved = stage.rules.resolve(paths)
    for path, rule in resolved.items():
        early, image = (
            path.startswith(("image_tower/stem/", "image_tower/stage1/")),
            path.startswith("image_tower/"),
        )
        assert rule.learning_rate_factor == (0.01 if early else 0.1 if image else 1.0)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_is_an_experiment_card(path):
    head = "".join(
        line for line in path.read_text().splitlines(keepends=True) if line.startswith("#")
    ).lower()
    for word in ("command", "hardware", "time", "result"):
        assert word in head, f"{path.name} does not say its {word}"


def test_no_recipe_is_said():
    configurables.parse([], ["Stage.batch_size = 8"])
    with pytest.raises(configurables.GinError, match=r"bind no Recipe\.stages"):
        configurables.recipe()


@pytest.mark.parametrize(
    "bindings,message",
    [
        (["prtrain/Schedule.peak = 1.0"], r"prtrain/\.\.\., which nothing .* is pretrain meant\?"),
        (["TRIAN = 'x'"], "the macro TRIAN, .* is TRAIN meant"),
        (["Recipe.stages = @pretrain/Stage()"], r"must be a list of stages .*\[@pretrain/Stage\(\)\]"),
        (["Recipe.stages = [@pretrain/Stage]"], "must be a list of stages"),
        (["Stage.summary_steps = '5'"], r"pretrain/Stage\.summary_steps is '5'; it must be of the kind int"),
        (["contrastive/WarmStart.ignored = ('image_tower/head/.*')"], "not a tuple; .* needs a comma"),
        (["contrastive/WarmStart.fresh = ('text_tower/(',)"], "'text_tower/\\(',.* no regular expression"),
        (["finetune/Stage.nme = 'x'"], "nme"),
    ],
)
def test_what_gin_would_let_pass_is_refused_in_one_line(bindings, message):
    with pytest.raises(configurables.GinError, match=message) as raised:
        configurables.parse(["tests/training/tiny.gin"], bindings)
        configurables.recipe()
    assert "\n" not in str(raised.value)


def test_bindings_may_bring_scopes_and_macros_that_they_use():
    bindings = ["finetune/RuleTable.rules = [@own/Rule(), @finetune/Rule()]", "own/Rule.pattern = %WHICH"]
    configurables.parse(["tests/training/tiny.gin"], [*bindings, "WHICH = 'text_tower/.*'"])
    assert configurables.recipe().stage("finetune").rules


@pytest.mark.parametrize(
    "bindings,message",
    [
        (
            ["Evaluation.tests = ['in_distrbution']"],
            "no test 'in_distrbution' in .*; there are: in_distribution",
        ),
        (["Evaluation.data_dir = 'gin'"], "gin holds no test"),
        (["Evaluation.templates = 'nope'"], "templates 'nope'"),
    ],
)
def test_what_the_evaluation_lacks_is_said_without_a_model(data, bindings, message):
    configurables.parse(["tests/training/tiny.gin"], [f"EVAL = '{data}'", *bindings])
    with pytest.raises(configurables.GinError, match=message):
        configurables.Evaluation().check()
    configurables.parse(["tests/training/tiny.gin"], [f"EVAL = '{data}'"])
    configurables.Evaluation().check()

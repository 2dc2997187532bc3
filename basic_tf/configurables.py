"""The edge to gin: what a gin file may bind, and the objects it describes. The numeric core knows nothing of this module.

A run file under gin/runs/ describes a `Recipe`: a list of `Stage`s, each built in a gin scope of its own name, so that
`CoAtNet.variant = ...` holds for all stages and `pretrain/CoAtNet.batch_norm = ...` for one.
"""

import dataclasses
import difflib
import functools
import re

import tensorflow as tf

import gin
from basic_tf.data import (
    batches,
    block_cache,
    captions,
    examples,
    features,
    groups,
    images,
    mixture,
    rand_augment,
    records,
    subset,
)
from basic_tf.data import tokenizer as tokenizer_module
from basic_tf.evaluation import datasets, encoder, evaluator, prompts
from basic_tf.monitoring import panels
from basic_tf.optimization import adafactorw, rules, schedules, weight_average
from basic_tf.parallel import mesh
from basic_tf.towers import coatnet, coatnet_table, dual_encoder, resolution, text_transformer
from basic_tf.training import stages, tasks, update_guard, warm_start


class GinError(ValueError):
    """A gin file or binding that cannot be used; one line that says which and why."""


def _register(thing, name: str | None = None, **options) -> None:
    gin.external_configurable(thing, name or thing.__name__, module="basic_tf", **options)


for _thing in (
    captions.CaptionChoice,
    coatnet.CoAtNet,
    coatnet_table.CoAtNetTable,
    dual_encoder.DualEncoder,
    examples.FeatureKeys,
    images.ImageAugmentation,
    rand_augment.RandAugment,
    rules.Rule,
    rules.RuleTable,
    schedules.Duration,
    stages.Recipe,
    stages.Stage,
    tasks.Classification,
    tasks.Contrastive,
    text_transformer.TextTransformer,
    update_guard.UpdateGuard,
    tokenizer_module.Tokenizer,
    warm_start.WarmStart,
    weight_average.WeightAverage,
    subset.Subset,
):
    _register(_thing)
# What a stage gives itself cannot be bound: gin would let the binding lose without a word.
_register(adafactorw.AdaFactorW, denylist=["learning_rate", "rules", "seed"])
_register(schedules.Schedule, denylist=["total_steps"])
for _thing in (batches.ContrastiveBatches, batches.LabelledBatches, features.FeatureBatches):
    _register(_thing, denylist=["seed", "batch_size"])
_register(coatnet_table.Stage, "TowerStage")
_register(block_cache.block_order, "BlockOrder")
_register(groups.distinct_labels, "DistinctLabels")
_register(groups.distinct_where_labelled, "DistinctWhereLabelled")
_register(resolution.resized_for_tower, "ResizedForTower")
_register(records.RecordSource.open, "Records")
_register(mixture.MixedSource, "Mixture")
_register(mixture.MixtureOrder)
_register(prompts.load_templates, "Templates")
_register(mesh.MeshShape, "Mesh")


@gin.configurable(module="basic_tf")
def Encoders(image_tower, text_tower, model=dual_encoder.DualEncoder, **options):
    """A dual encoder from two tower classes: both are made in the scope in which this is called."""
    return model(image_tower(), text_tower(), **options)


@gin.configurable(module="basic_tf")
def RecordParser(keys=examples.FeatureKeys()):  # noqa: B008 (a frozen default; a gin name)
    """Reads records that others wrote under other feature keys: `ContrastiveBatches.parse = @RecordParser()`."""
    return functools.partial(examples.parse_example, keys=keys)


def parse(files: list[str], bindings: list[str]) -> None:
    """Reads gin files, then bindings. Raises GinError with one line for anything missing, unknown or malformed."""
    gin.clear_config()
    gin.config.register_file_reader(tf.io.gfile.GFile, tf.io.gfile.exists)
    for path in files:
        if not tf.io.gfile.exists(path):
            raise GinError(f"there is no gin file {path}; gin/runs/ holds the whole recipes")
    try:
        gin.parse_config_files_and_bindings(files, [], skip_unknown=False, finalize_config=False)
        in_files = {scope for scope, _ in gin.config._CONFIG}
        gin.parse_config(bindings, skip_unknown=False)
        gin.finalize()
    except (ValueError, SyntaxError, OSError) as error:
        raise GinError(_one_line(error)) from error
    _refuse_unread(in_files)


def _refuse_unread(in_files: set[str]) -> None:
    """Refuses bindings of the command line in a scope, or of a macro (gin keeps its name as a scope), that nobody refers to.

    gin takes them without a word. What files bind stays: one file describes stages of which a run takes a part.
    """
    referred = {"/".join(reference.scopes) for reference in gin.config.iterate_references(gin.config._CONFIG)}
    for scope, selector in gin.config._CONFIG:
        if not scope or scope in in_files or any(f"{name}/".startswith(f"{scope}/") for name in referred):
            continue
        macro = selector == "gin.macro"
        near = difflib.get_close_matches(scope, sorted((in_files | referred) - {""}), 1)
        raise GinError(
            f"--gin_param binds {f'the macro {scope}' if macro else f'{scope}/...'}, which nothing in the gin files or "
            f"bindings refers to (as {f'%{scope}' if macro else f'@{scope}/...'})"
            f"{f'; is {near[0]} meant?' if near else '; correct it or leave it out'}"
        )


def parse_text(text: str) -> None:
    """Reads a configuration that an earlier run wrote into its folder."""
    gin.clear_config()
    try:
        gin.parse_config(text, skip_unknown=False)
        gin.finalize()
    except (ValueError, SyntaxError) as error:
        raise GinError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    # gin appends where it was ("In file ..., line ..."), on lines of its own.
    return re.sub(r"\s+", " ", str(error)).strip()


def recipe() -> stages.Recipe:
    """The configured recipe, checked."""
    try:
        gin.query_parameter("Recipe.stages")
    except ValueError as error:
        raise GinError(
            "the gin files bind no Recipe.stages; gin/runs/ holds files that describe a whole recipe"
        ) from error
    try:
        made = gin.get_configurable(stages.Recipe)()
    except (ValueError, TypeError, RuntimeError) as error:
        raise GinError(_one_line(error)) from error
    _check_kinds(made)
    made.check()
    return made


def _check_kinds(made: stages.Recipe) -> None:
    """What gin lets pass and dataclasses too: values of another kind than the fields'."""
    if not isinstance(made.stages, (list, tuple)) or not all(
        isinstance(s, stages.Stage) for s in made.stages
    ):
        raise GinError(
            f"Recipe.stages must be a list of stages that are made, such as [@pretrain/Stage()]: with brackets around it, "
            f"and with () after each; received {made.stages!r:.200}"
        )
    for stage in made.stages:
        for field in dataclasses.fields(stages.Stage):
            value, kinds = (
                getattr(stage, field.name),
                {int: int, float: (int, float), str: str}.get(field.type),
            )
            if kinds and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise GinError(
                    f"{stage.name}/Stage.{field.name} is {value!r}; it must be of the kind {field.type.__name__}"
                )
        for name in ("fresh", "ignored"):
            patterns = getattr(stage.warm_start, name, ())
            if not isinstance(patterns, (list, tuple)):
                raise GinError(
                    f"{stage.name}: WarmStart.{name} is {patterns!r}, not a tuple; with one pattern it needs a comma: "
                    f"({patterns!r},)"
                )
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise GinError(
                        f"{stage.name}: WarmStart.{name} holds {pattern!r}, which is no regular expression: {error}"
                    ) from error


def describes_recipe() -> bool:
    """Whether the gin files bind a recipe, or a model alone (gin/models/)."""
    return bool(gin.get_bindings("Recipe").get("stages"))


def model_alone() -> stages.Stage:
    """A stage that trains all of the configured Encoders, with every default: for planning a model before its recipe."""
    if not gin.get_bindings("Encoders"):
        raise GinError(
            "the gin files describe neither Recipe.stages nor Encoders; see gin/runs/ and gin/models/"
        )
    contrastive = gin.get_configurable(tasks.Contrastive)
    return stages.Stage(
        name="contrastive",
        task=functools.partial(contrastive, model=gin.get_configurable(Encoders)),
        batches=None,
        batch_size=gin.get_bindings("Stage").get("batch_size", 1024),
        train=None,
        optimizer=gin.get_configurable(adafactorw.AdaFactorW),
        schedule=None,
        rules=rules.everything(),
    )


def mesh_shape(shape: str | None, shard_over: str | None) -> mesh.MeshShape:
    """The mesh of the flags, where given, or of `Mesh` in gin."""
    given = {"shape": shape, "shard_over": shard_over}
    try:
        return gin.get_configurable(mesh.MeshShape)(**{k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        raise GinError(str(error).split("\n  In call to configurable")[0]) from error


def config_text() -> str:
    """Everything that is bound, as gin text that `parse_text` reads back."""
    return gin.config_str(max_line_length=110)


@gin.configurable(module="basic_tf")
class Evaluation:
    """Evaluation during training. data_dir: a folder with test_*.json, or several ("a,b"); None switches it off.

    templates: a set of `evaluation.prompts` or a JSON file; evaluate and export take it too, where they are given no other.
    """

    def __init__(self, data_dir: str | None = None, templates: str = "bare", tests: list[str] | None = None):
        self._data_dir, self.templates, self._tests = data_dir, templates, tests

    def check(self) -> None:
        """Opens the templates and every test, without a model. Raises GinError with what is missing."""
        if self._data_dir is None:
            return
        try:
            prompts.load_templates(self.templates)
            if isinstance(self._tests, str):
                raise ValueError(f"Evaluation.tests is {self._tests!r}; it must be a list of names")
            names = datasets.test_names(self._data_dir) if self._tests is None else self._tests
            for name in names:
                datasets.open_test(self._data_dir, name)
            datasets.open_retrieval(self._data_dir)
        except (ValueError, TypeError, OSError, tf.errors.OpError) as error:
            raise GinError(f"Evaluation cannot work: {_one_line(error)}") from error

    def of(self, run, report) -> evaluator.SuiteEvaluator | None:
        """The evaluator of a stage run (training.stage_run.StageRun); None for a stage that trains no dual encoder."""
        if self._data_dir is None or not is_contrastive(run.stage):
            return None
        return evaluator.SuiteEvaluator(
            encoder.ModelEncoder(run.task.model, run.batches.tokenizer, run.batches.augmentation),
            self._data_dir,
            prompts.load_templates(self.templates),
            run.global_step,
            run.averaged_weights,
            self._tests,
            report,
        )


def show_configuration(run) -> None:
    """The configuration into TensorBoard's text tab, at a stage's start."""
    panels.write_config(int(run.global_step), config_text())


def is_contrastive(stage: stages.Stage) -> bool:
    """Whether a stage trains a dual encoder, which can be evaluated and exported."""
    return getattr(stage.task, "__name__", "") == tasks.Contrastive.__name__


def tokenizer_file() -> str | None:
    """The configured SentencePiece model."""
    # get_bindings resolves macros, which query_parameter does not.
    return gin.get_bindings("Tokenizer").get("model_file")


def tokenizer(model_file: str) -> tokenizer_module.Tokenizer:
    """A tokenizer with the configured length and the given model (a run folder keeps a copy of its own)."""
    return gin.get_configurable(tokenizer_module.Tokenizer)(model_file=model_file)


def augmentation(scope: str) -> images.ImageAugmentation:
    """The augmentation that batches of a stage use, where it is bound without a scope of its own or in the stage's."""
    with gin.config_scope(scope):
        return gin.get_configurable(images.ImageAugmentation)()

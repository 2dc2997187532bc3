"""The run folder: what it says about itself, and a trained model read back from it."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence

import tensorflow as tf

from basic_tf import configurables
from basic_tf.data.images import ImageAugmentation
from basic_tf.training import checkpoints, preflight, stage_run, warm_start
from basic_tf.training.stages import ConfigurationError, Stage

CONFIG = "config.gin"
VERSIONS = "versions.json"
TOKENIZER = "tokenizer.model"
_EVALUATION = "Evaluation"
_PACKAGES = (
    "tensorflow",
    "tensorflow-text",
    "tf-models-official",
    "keras",
    "keras-cv",
    "gin-config",
    "numpy",
)


@dataclasses.dataclass
class LoadedRun:
    """A trained model and what is needed to use it.

    model: a DualEncoder. view: its stage's augmentation without chance, at the size of the image tower. source: the
    checkpoint's path. templates: the prompts that the run evaluates itself with, as `Evaluation.templates`.
    """

    model: object
    tokenizer: object
    view: ImageAugmentation
    config_text: str
    source: str
    step: int
    stage: str
    templates: str

    @property
    def image_size(self) -> int:
        """Side of the model's pictures in pixels."""
        return self.view.output_size


def _revision() -> str | None:
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe(run_folder: str, config_text: str, options: stage_run.Options) -> None:
    """Writes config.gin, versions.json and a copy of the tokenizer, so that the folder can be used on its own.

    Raises ConfigurationError if the folder holds checkpoints of a run with another configuration; what concerns only
    Evaluation and stages without a checkpoint may change.
    """
    with _writing(run_folder):
        tf.io.gfile.makedirs(run_folder)
    path = os.path.join(run_folder, CONFIG)
    if tf.io.gfile.exists(path):
        changed = changes(_read(path), config_text, _trained_stages(run_folder))
        if changed:
            raise ConfigurationError(
                f"{run_folder} holds a run with another configuration ({len(changed)} settings differ: "
                f"{'; '.join(changed[:4])}{'; ...' if changed[4:] else ''}); use another --model_dir, or delete it to start "
                "anew. Only Evaluation and stages without a checkpoint may change"
            )
    _keep_tokenizer(run_folder)
    _write(path, config_text)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions |= {
        "python": platform.python_version(),
        "revision": _revision(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "options": dataclasses.asdict(options),
    }
    _write(os.path.join(run_folder, VERSIONS), json.dumps(versions, indent=1))


def check(stages: Sequence[Stage], run_folder: str, runtime, options: stage_run.Options) -> list[Stage]:
    """Tries what can be tried cheaply of all stages that are not finished, before the first of them trains; gives those.

    Data, tokenizer, models and rules without weights, batches and microbatches, options that exclude each other, sources of
    warm starts and what they hold. Raises ConfigurationError with one line.
    """
    shapes: dict[str, dict] = {}  # of the parameters of the stages that are still to be trained
    earlier, left = [], []
    for stage in stages:
        folder = os.path.join(run_folder, stage.name)
        if not stage_run.is_finished(folder):
            left.append(stage)
            with stage_run.in_words(stage):
                shapes[stage.name] = _check_stage(stage, runtime, options)
            if not checkpoints.steps(stage_run.checkpoint_folder(folder)):
                _check_warm_start(stage, run_folder, earlier, shapes)
        earlier.append(stage.name)
    return left


def _check_warm_start(stage: Stage, run_folder: str, earlier: list[str], shapes: dict[str, dict]) -> None:
    source = stage.warm_start.stage if stage.warm_start else None
    if source in shapes:
        try:
            warm_start.check(stage.warm_start, shapes[stage.name], shapes[source])
        except checkpoints.CheckpointError as error:
            raise ConfigurationError(f"stage {stage.name}: {' '.join(str(error).split())}") from error
    elif source and source not in earlier:
        source = source if "/" in source else os.path.join(run_folder, source)
        if not checkpoints.steps(stage_run.checkpoint_folder(source)):
            raise ConfigurationError(
                f"stage {stage.name} warm-starts from {source}, which holds no checkpoint; train that stage first"
            )


def _check_stage(stage: Stage, runtime, options: stage_run.Options) -> dict[str, tuple[int, ...]]:
    """The shapes of its parameters by path."""
    # Neither pictures that wait decoded nor an order by labels: both read all records.
    batches = stage.batches(seed=0, batch_size=stage.batch_size, cache_decoded=False, order=None)
    steps = options.train_steps or stage.train.to_steps(stage.batch_size, batches.source.count)
    task = stage.task_on(batches)
    contrastive = configurables.is_contrastive(stage)
    specs = (task.model if contrastive else task.model.image_tower).specs()
    prefix = "" if contrastive else "image_tower/"
    resolved = stage.rules.resolve([prefix + spec.path for spec in specs if spec.trainable])
    optimizer = stage.optimizer(stage.schedule(total_steps=max(1, steps)), rules=resolved, seed=0)
    trained = [path for path, rule in resolved.items() if not rule.frozen]
    preflight.check(stage, runtime, batches, task, optimizer, trained)
    return {prefix + spec.path: tuple(spec.shape) for spec in specs}


def _keep_tokenizer(run_folder: str) -> None:
    """Copies the configured tokenizer; one that weights were trained with is never replaced by another."""
    copy, source = os.path.join(run_folder, TOKENIZER), configurables.tokenizer_file()
    if not source or source == copy:
        return
    if not tf.io.gfile.exists(source):
        raise ConfigurationError(f"no tokenizer model at {source}; train one with tools/train_tokenizer.py")
    model = _read(source, "rb")
    if tf.io.gfile.exists(copy):
        if _read(copy, "rb") == model:
            return
        if _trained_stages(run_folder):
            raise ConfigurationError(
                f"{source} is not the tokenizer that {run_folder} was trained with, of which {copy} is a copy; bind "
                "Tokenizer.model_file to one with the same content, or use another --model_dir"
            )
    _write(copy, model, "wb")


def _trained_stages(run_folder: str) -> list[str]:
    """The folders that hold checkpoints."""
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(run_folder)]
    return [
        name
        for name in names
        if checkpoints.steps(stage_run.checkpoint_folder(os.path.join(run_folder, name)))
    ]


def _settings(config_text: str) -> dict[str, str]:
    """`scope/Name.parameter` (or a macro's name) -> its value, as `configurables.config_text` writes them."""
    found, key = {}, ""
    for line in config_text.splitlines():
        if line[:1].isspace():  # a long value goes on
            found[key] += " " + line.strip()
        elif line and not line.startswith("#"):
            key, _, value = line.partition(" = ")
            found[key] = value.removesuffix("\\").strip()
    return {key: " ".join(value.split()) for key, value in found.items()}


def _owner(key: str) -> str:
    """Whose a setting is: a scope's, a macro's (with a %), Evaluation's, or nobody's ("": all stages read it)."""
    if "." not in key:
        return f"%{key}"
    if "/" in key:
        return key.split("/")[0]
    return _EVALUATION if key.startswith(f"{_EVALUATION}.") else ""


def changes(old: str, new: str, trained: Sequence[str]) -> list[str]:
    """What differs between two configurations and can have had a part in stages that have been trained: a phrase each.

    A scope or a macro has had none if nobody but Evaluation, stages without a checkpoint and their likes refers to it.
    """
    if not trained:
        return []
    texts = [_settings(old), _settings(new)]
    referred = set()  # (by whom, to whom)
    stages_trained = set()
    for key, value in [item for settings in texts for item in settings.items()]:
        if key != "Recipe.stages":
            referred |= {(_owner(key), scope) for scope in re.findall(r"@([\w.]+)/", value)}
            referred |= {(_owner(key), f"%{macro}") for macro in re.findall(r"%([\w./]+)", value)}
        if key.endswith("Stage.name") and value.strip("'\"") in trained:
            stages_trained.add(_owner(key))
    free = {_owner(key) for settings in texts for key in settings} - stages_trained - {""}
    while True:
        used = {to for by, to in referred if by not in free} & free
        if not used:
            break
        free -= used
    return [
        f"{key} was {texts[0].get(key, 'not bound')}, is {texts[1].get(key, 'not bound')}"
        for key in sorted(texts[0].keys() | texts[1].keys())
        if texts[0].get(key) != texts[1].get(key) and _owner(key) not in free
    ]


def _read(path: str, mode: str = "r"):
    with tf.io.gfile.GFile(path, mode) as file:
        return file.read()


def _write(path: str, content, mode: str = "w") -> None:
    """Whole or not at all: under a temporary name first."""
    partial = f"{path}.partial"
    with _writing(path):
        with tf.io.gfile.GFile(partial, mode) as file:
            file.write(content)
        tf.io.gfile.rename(partial, path, overwrite=True)


@contextlib.contextmanager
def _writing(path: str):
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        words = " ".join(str(error).split())
        raise ConfigurationError(f"{path} cannot be written ({words}); use another --model_dir") from error


def load(
    run_folder: str, stage: str | None = None, step: int | None = None, averaged: bool = True
) -> LoadedRun:
    """Reads the model of a run. stage: default the last contrastive stage that has a checkpoint; step: default newest.

    Raises checkpoints.CheckpointError or stages.ConfigurationError with what is missing.
    """
    path = os.path.join(run_folder, CONFIG)
    if not tf.io.gfile.exists(path):
        raise checkpoints.CheckpointError(
            f"{run_folder} is no run folder: it has no {CONFIG}; pass the --model_dir of train"
        )
    config_text = _read(path)
    configurables.parse_text(config_text)
    recipe = configurables.recipe()
    contrastive = [s.name for s in reversed(recipe.stages) if configurables.is_contrastive(s)]
    if stage and recipe.stage(stage).name not in contrastive:
        raise ConfigurationError(
            f"stage {stage} of {run_folder} trains no text tower: it can be neither evaluated nor exported; contrastive "
            f"stages are {', '.join(reversed(contrastive)) or 'none'}"
        )
    names = [stage] if stage else contrastive
    for name in names:
        chosen = recipe.stage(name)
        folder = stage_run.checkpoint_folder(os.path.join(run_folder, name))
        if not checkpoints.steps(folder):
            continue
        checkpoint = checkpoints.load(folder, step) if step is not None else checkpoints.load_latest(folder)
        if checkpoint is None:
            continue
        model = chosen.task(metadata=None).model
        model.build()
        checkpoints.assign(
            stage_run.trained_arrays(checkpoint, averaged), model.parameters(), checkpoint.path
        )
        view = configurables.augmentation(name).evaluation()
        return LoadedRun(
            model,
            configurables.tokenizer(os.path.join(run_folder, TOKENIZER)),
            dataclasses.replace(view, output_size=model.image_tower.image_size[0]),
            config_text,
            checkpoint.path,
            checkpoint.step,
            name,
            configurables.Evaluation().templates,
        )
    raise checkpoints.CheckpointError(
        f"{run_folder} has no checkpoint of {' or '.join(names) or 'a contrastive stage'}; train first"
    )


def load_image_tower(stage_folder: str):
    """(tower, augmentation, checkpoint's path) of a stage folder, of pretraining or of contrastive training.

    tower: the image tower with its (averaged) weights. augmentation: data.images.ImageAugmentation as the stage had it.
    Raises checkpoints.CheckpointError or stages.ConfigurationError with what is missing.
    """
    run_folder, name = os.path.split(stage_folder.rstrip("/"))
    path = os.path.join(run_folder, CONFIG)
    checkpoint = checkpoints.load_latest(stage_run.checkpoint_folder(stage_folder))
    if checkpoint is None or not tf.io.gfile.exists(path):
        raise checkpoints.CheckpointError(
            f"{stage_folder} is no stage folder with a checkpoint, of a run folder with its {CONFIG}; train first"
        )
    configurables.parse_text(_read(path))
    stage = configurables.recipe().stage(name)
    arrays = stage_run.trained_arrays(checkpoint)
    bias = arrays.get("image_tower/head/classifier/bias")
    model = stage.task(metadata={"label_names": ["?"] * (1 if bias is None else len(bias))}).model
    parameters = {path: v for path, v in model.parameters().items() if path.startswith("image_tower/")}
    checkpoints.assign(
        {path: array for path, array in arrays.items() if path.startswith("image_tower/")},
        parameters,
        checkpoint.path,
    )
    return model.image_tower, configurables.augmentation(name), checkpoint.path

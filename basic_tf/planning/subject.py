"""What a stage would train, without building a weight: towers, specs, the optimizer's rule."""

import tensorflow as tf

from basic_tf.planning.head_trace import Head
from basic_tf.planning.step_memory import Subject


def describe(stage, classes: int, microbatch: int | None = None) -> tuple[object, Subject]:
    """(the stage's task, its Subject).

    stage: a training.stages.Stage. classes: of a classifier, whose number a dataset would tell. microbatch: in place of the
    task's own.
    """
    metadata = {"label_names": [str(n) for n in range(classes)]}
    options = {} if microbatch is None else {"microbatch": microbatch}
    task = stage.task(metadata=metadata, **options)
    model, head = task.model, None
    if hasattr(model, "text_tower"):
        towers, specs = {"image_tower": model.image_tower, "text_tower": model.text_tower}, model.specs()
    else:
        towers = {"image_tower": model.image_tower}
        specs = [s._replace(path=f"image_tower/{s.path}") for s in model.image_tower.specs()]
        head = Head(stage.task(metadata=metadata, microbatch=None), classes)
    resolved = stage.rules.resolve([spec.path for spec in specs if spec.trainable])
    trained = frozenset(path for path, rule in resolved.items() if not rule.frozen)
    if not trained:
        raise ValueError(f"stage {stage.name} trains nothing: its rules freeze every parameter")
    dtype = model.image_tower.variable_dtype
    subject = Subject(
        towers=towers,
        specs=specs,
        trained=trained,
        rule=stage.optimizer(0.0, rules=resolved).rule,  # its learning rate has no bytes
        dtype=dtype,
        element=tf.as_dtype(dtype).size,
        average=stage.weight_average is not None,
        embedding_dim=getattr(model, "embedding_dim", 0),
        head=head,
    )
    return task, subject

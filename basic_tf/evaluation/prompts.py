"""Prompt templates and class texts: how the name of a class becomes the sentences that are embedded (paper
section 7).

A template is a string with exactly one `{}`. A class may have several texts (synonyms, or a name and a
description); its prompts are all texts in all templates.
"""

import json
import string
from collections.abc import Callable, Sequence

import tensorflow as tf

# The phrasing of the emoji data's training captions (tools/emoji/captions.py).
EMOJI_TEMPLATES = (
    "{}",
    "a picture of a {}",
    "a picture of the {}",
    "an icon of a {}",
    "an image of {}",
    "a small drawing of a {}",
    "a simple drawing of the {}",
    "the symbol for {}",
)
BARE_TEMPLATES = ("{}",)

TEMPLATE_SETS = {"emoji": EMOJI_TEMPLATES, "bare": BARE_TEMPLATES}


def _as_is(text: str) -> str:
    return text


_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION_TO_SPACE).split())


CANONICALISATIONS: dict[str, Callable[[str], str]] = {
    "as_is": _as_is,  # the class name untouched, as OpenCLIP and CLIP_benchmark evaluate
    "plain": _plain,  # lower case, punctuation to spaces, spaces collapsed
}


def canonicalise(text: str, how: str) -> str:
    """The class name in the named form: "as_is", or "plain" (lower case, no punctuation, single spaces).

    Raises ValueError for an unknown name, or where nothing would be left of the text.
    """
    if how not in CANONICALISATIONS:
        raise ValueError(
            f"canonicalisation {how!r} is not known; choose one of {', '.join(CANONICALISATIONS)}"
        )
    result = CANONICALISATIONS[how](text)
    if not result.strip():
        raise ValueError(f"the class name {text!r} is empty under the canonicalisation {how!r}")
    return result


def check_templates(templates: Sequence[str], source: str) -> tuple[str, ...]:
    """The templates as a tuple; ValueError unless there is at least one and each holds `{}` exactly once."""
    if isinstance(templates, str) or not templates or not all(isinstance(item, str) for item in templates):
        raise ValueError(f"{source}: expected a list of at least one template string, received {templates!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"{source}: a template needs one {{}}, where the class name goes; received {template!r}"
            )
    return tuple(templates)


def load_templates(name_or_path: str) -> tuple[str, ...]:
    """A template set by name ("emoji", "bare") or from a JSON file `{"templates": [...]}` (local or gs://).

    Raises ValueError for a name that is neither, a file that is not such JSON, or a template without one
    `{}`.
    """
    if name_or_path in TEMPLATE_SETS:
        return TEMPLATE_SETS[name_or_path]
    if not tf.io.gfile.exists(name_or_path):
        raise ValueError(
            f"templates {name_or_path!r}: neither a known set ({', '.join(TEMPLATE_SETS)}) "
            "nor an existing JSON file"
        )
    with tf.io.gfile.GFile(name_or_path) as file:
        text = file.read()
    try:
        templates = json.loads(text)["templates"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{name_or_path}: expected JSON {{"templates": ["a picture of a {{}}", ...]}}'
        ) from error
    return check_templates(templates, name_or_path)


def class_prompts(
    classes: Sequence[str | Sequence[str]], templates: Sequence[str], canonicalisation: str = "as_is"
) -> list[tuple[str, ...]]:
    """For each class, its prompts: every text of the class in every template.

    classes: one text for a class, or several. The number of prompts may differ between classes.
    """
    templates = check_templates(templates, "templates")
    prompts = []
    for index, texts in enumerate(classes):
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError(f"class {index} has no text")
        forms = [canonicalise(text, canonicalisation) for text in texts]
        prompts.append(tuple(template.replace("{}", form) for form in forms for template in templates))
    return prompts

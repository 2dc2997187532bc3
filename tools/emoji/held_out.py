"""The names of held-out emoji concepts, for the tools that make other training data: none of their texts may say one."""

import json
from pathlib import Path

from tools.emoji import packages
from tools.emoji.concepts import load_concepts
from tools.sources import npm
from tools.sources.phrases import Phrases


def held_out_phrases(emoji_dir: str, source_dir: str | None = None) -> Phrases:
    """Every name of every concept that splits.json of prepared emoji data holds out; nothing for an empty emoji_dir.

    The names come from the packages in the data's cache (fetched again if they are not there). FileNotFoundError.
    """
    if not emoji_dir:
        return Phrases(())
    splits = Path(emoji_dir) / "splits.json"
    if not splits.is_file():
        raise FileNotFoundError(
            f"{splits} does not exist: make the emoji data first (tools/prepare_emoji.py), name its folder with "
            "--emoji_dir, or say --emoji_dir= to hold nothing out"
        )
    held_out = set(json.loads(splits.read_text(encoding="utf-8"))["held_out"])
    drawn = {package.name for package in packages.STYLE_PACKAGES.values()}
    named = [package for package in packages.PACKAGES if package.name not in drawn]
    files = npm.fetch(named, Path(emoji_dir) / "cache", Path(source_dir) if source_dir else None)
    concepts = [concept for concept in load_concepts(files) if concept.code in held_out]
    missing = held_out - {concept.code for concept in concepts}
    if missing:
        raise ValueError(
            f"{splits} holds out concepts that the packages do not know: {', '.join(sorted(missing))}"
        )
    return Phrases(name for concept in concepts for name in concept.names)

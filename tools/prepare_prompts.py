"""Writes the class names, templates and class subsets of the public zero-shot tests into one JSON file.

    python tools/prepare_prompts.py --output=data/prompts.json

Out of wheels of exact versions, fetched with pip and checked against their hashes (2 MB each; no dependency is installed
and nothing is imported: Python source is parsed as syntax): CLIP's 80 ImageNet templates and 1,000 class names from
open_clip_torch, names and templates of the other data sets from clip_benchmark, the WordNet ids of ImageNet, ImageNet-A and
ImageNet-R from timm. ObjectNet's 113 classes are in tools/prompts/objectnet.json. The file says where each part is from.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

from tools.prompts import syntax, wheels

_OUTPUT = flags.DEFINE_string("output", "data/prompts.json", "The JSON file to write.")
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Where wheels are kept (default: wheels/ beside the output)."
)

_METADATA = "open_clip/zero_shot_metadata.py"
_NAMES = "clip_benchmark/datasets/en_classnames.json"
_TEMPLATES = "clip_benchmark/datasets/en_zeroshot_classification_templates.json"
_SYNSETS = "timm/data/_info/imagenet_synsets.txt"
_SUBSET = "timm/data/_info/imagenet_{}_synsets.txt"
_OBJECTNET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompts", "objectnet.json")
# Under which names the tests of basic_tf.evaluate find what clip_benchmark calls otherwise.
_RENAMED = {"caltech101_vtab": "caltech101", "voc2007_multilabel": "voc2007"}
_LEFT_OUT = {"imagenet1k", "caltech101", "voc2007", "dummy"}


def collect(cache_dir: str) -> dict:
    """The content of the JSON file. ValueError if a source does not hold what is expected of it."""
    paths = {
        wheel: wheels.fetch(wheel, cache_dir)
        for wheel in (wheels.OPEN_CLIP, wheels.CLIP_BENCHMARK, wheels.TIMM)
    }
    metadata = wheels.read_text(paths[wheels.OPEN_CLIP], _METADATA)
    names = json.loads(wheels.read_text(paths[wheels.CLIP_BENCHMARK], _NAMES))
    templates = json.loads(wheels.read_text(paths[wheels.CLIP_BENCHMARK], _TEMPLATES))
    with open(_OBJECTNET, encoding="utf-8") as file:
        objectnet = json.load(file)

    def renamed(of_benchmark: dict) -> dict:
        return {
            _RENAMED.get(name, name): value
            for name, value in sorted(of_benchmark.items())
            if name not in _LEFT_OUT
        }

    # clip_benchmark has one list of templates for both of its Caltech-101s.
    templates["caltech101_vtab"] = templates["caltech101"]
    ids = wheels.read_text(paths[wheels.TIMM], _SYNSETS).split()
    result = {
        "templates": {
            "imagenet": syntax.templates(metadata, "OPENAI_IMAGENET_TEMPLATES"),
            "imagenet_simple": syntax.templates(metadata, "SIMPLE_IMAGENET_TEMPLATES"),
            **{
                name: [template.replace("{c}", "{}") for template in texts]
                for name, texts in renamed(templates).items()
            },
        },
        "classes": {
            "imagenet": syntax.strings(metadata, "IMAGENET_CLASSNAMES"),
            **renamed(names),
            "objectnet": [entry["name"] for entry in objectnet["classes"]],
        },
        "wordnet_ids": {
            "imagenet": ids,
            **{
                f"imagenet_{name}": wheels.read_text(paths[wheels.TIMM], _SUBSET.format(name)).split()
                for name in "ar"
            },
        },
        "objectnet": objectnet["classes"],
        "sources": {
            **{
                wheel.package: {
                    "version": wheel.version,
                    "sha256": wheel.sha256,
                    "licence": wheel.licence,
                    "files": files,
                }
                for wheel, files in (
                    (wheels.OPEN_CLIP, [_METADATA]),
                    (wheels.CLIP_BENCHMARK, [_NAMES, _TEMPLATES]),
                    (wheels.TIMM, [_SYNSETS, *(_SUBSET.format(name) for name in "ar")]),
                )
            },
            "objectnet": objectnet["source"],
        },
    }
    check(result)
    return result


def check(content: dict) -> None:
    """What everybody relies on. ValueError with the first thing that is not so."""
    counts = {
        "ImageNet templates": (len(content["templates"]["imagenet"]), 80),
        "ImageNet class names": (len(content["classes"]["imagenet"]), 1000),
        "distinct ImageNet class names": (len(set(content["classes"]["imagenet"])), 998),
        "ObjectNet classes": (len(content["objectnet"]), 113),
    }
    known = set(content["wordnet_ids"]["imagenet"])
    for name, expected in (("imagenet", 1000), ("imagenet_a", 200), ("imagenet_r", 200)):
        counts[f"WordNet ids of {name}"] = (len(set(content["wordnet_ids"][name]) & known), expected)
    for what, (found, expected) in counts.items():
        if found != expected:
            raise ValueError(f"expected {expected} {what}, found {found}")
    for entry in content["objectnet"]:
        if not set(entry["wordnet_ids"]) <= known:
            raise ValueError(f"ObjectNet's {entry['folder']} has WordNet ids that are none of ImageNet's")
    for name, texts in content["templates"].items():
        for template in texts:
            if template.count("{}") != 1:
                raise ValueError(f"a template of {name} needs one {{}}: {template!r}")


def main(argv: list[str]) -> int:
    """Collects and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    folder = os.path.dirname(_OUTPUT.value) or "."
    try:
        content = collect(_CACHE_DIR.value or os.path.join(folder, "wheels"))
        with open(_OUTPUT.value + ".new", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.replace(_OUTPUT.value + ".new", _OUTPUT.value)
    except (OSError, ValueError) as error:
        print(f"prepare_prompts: {error}", file=sys.stderr)
        return 2
    classes, templates = content["classes"], content["templates"]
    print(
        f"{_OUTPUT.value}: {len(classes['imagenet']):,} ImageNet classes, {len(templates['imagenet'])} templates, names of "
        f"{len(classes)} data sets, templates of {len(templates)}"
    )
    return 0


if __name__ == "__main__":
    app.run(main)

"""The zero-shot tests of the field by name: where each one's pictures, class names and templates are, and its figure.

ImageNet and its five shifts (paper section 7), and the other data sets of CLIP's suite that the paper reports. Names and
templates are those of CLIP, from the JSON file of tools/prepare_prompts.py, but for three sets whose templates none of its
packages has as CLIP printed them: pcam, resisc45 and ucf101 (`PublicSet.differs`). Names that the file lacks are those of
TFDS, which are CLIP's too, or of the folders, as words.
"""

import dataclasses
import re

_CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR_100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
    "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
    "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
    "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
    "willow_tree wolf woman worm"
)
_STL_10 = "airplane bird car cat deer dog horse monkey ship truck"


def _words(names: str) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in names.split())


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """One public test.

    tfds: "builder/config" of TensorFlow Datasets, None where it has none: then our TFRecords, `test_<name>.json` of the
    data folder. classes: the names themselves, a key of the prompts file, or None: as TFDS names its labels. templates: a
    key of the prompts file, or the templates. subset: the key of WordNet ids that compete. figure: what the field reports:
    "top1", "mean_per_class", or "mean_average_precision" (several labels to a picture). preparation: how to get it, in
    addition to `tfds build`. differs: why its figure and the published one are not of the same test, where they are not.
    camel_case: its folders are called so, and its classes are the words. class_count, crop_border: what its records must
    have; fewer or more classes, or a frame that tells pictures apart, are another test.
    """

    name: str
    title: str
    tfds: str | None
    split: str
    templates: str | tuple[str, ...]
    classes: str | tuple[str, ...] | None = None
    subset: str | None = None
    figure: str = "top1"
    preparation: str = ""
    differs: str = ""
    camel_case: bool = False
    class_count: int | None = None
    crop_border: int = 0


def _by_hand(what: str) -> str:
    return f"; {what} must be downloaded by hand first, into <tfds_dir>/downloads/manual"


_RECORDS = "; make test_{0}.json with tools/prepare_class_folders.py"

_SETS = (
    PublicSet(
        "imagenet",
        "ImageNet",
        "imagenet2012",
        "validation",
        "imagenet",
        "imagenet",
        preparation=_by_hand("ILSVRC2012_img_val.tar"),
    ),
    PublicSet("imagenet_a", "ImageNet-A", "imagenet_a", "test", "imagenet", "imagenet", subset="imagenet_a"),
    PublicSet("imagenet_r", "ImageNet-R", "imagenet_r", "test", "imagenet", "imagenet", subset="imagenet_r"),
    PublicSet("imagenet_v2", "ImageNet-V2", "imagenet_v2/matched-frequency", "test", "imagenet", "imagenet"),
    PublicSet("imagenet_sketch", "ImageNet-Sketch", "imagenet_sketch", "test", "imagenet", "imagenet"),
    PublicSet(
        "objectnet",
        "ObjectNet",
        None,
        "test",
        "imagenet",
        "objectnet",
        preparation=_RECORDS.format("objectnet")
        + " (--classes=objectnet --crop_border=2: its pictures have a red frame)",
        class_count=113,
        crop_border=2,
    ),
    PublicSet(
        "birdsnap",
        "Birdsnap",
        None,
        "test",
        ("a photo of a {}, a type of bird.",),
        preparation=_RECORDS.format("birdsnap"),
        class_count=500,
    ),
    PublicSet(
        "caltech101", "Caltech101", "caltech101", "test", "caltech101", "caltech101", figure="mean_per_class"
    ),
    PublicSet("cars", "Stanford Cars", "cars196", "test", "cars"),
    PublicSet("cifar10", "CIFAR-10", "cifar10", "test", "cifar10", _words(_CIFAR_10)),
    PublicSet("cifar100", "CIFAR-100", "cifar100", "test", "cifar100", _words(_CIFAR_100)),
    PublicSet("dtd", "DTD", "dtd", "test", "dtd"),
    PublicSet(
        "eurosat",
        "EuroSAT",
        "eurosat/rgb",
        "train",
        "eurosat",
        "eurosat",
        differs="all pictures, as TFDS has no test split",
    ),
    PublicSet(
        "flowers", "Flowers-102", "oxford_flowers102", "test", "flowers", "flowers", figure="mean_per_class"
    ),
    PublicSet("food101", "Food-101", "food101", "validation", "food101"),
    PublicSet("mnist", "MNIST", "mnist", "test", "mnist", "mnist"),
    PublicSet(
        "pcam",
        "PCam",
        "patch_camelyon",
        "test",
        "pcam",
        "pcam",
        differs="the 2 templates of clip_benchmark, where CLIP has another one",
    ),
    PublicSet("pets", "Oxford Pets", "oxford_iiit_pet", "test", "pets", "pets", figure="mean_per_class"),
    PublicSet(
        "resisc45",
        "RESISC45",
        "resisc45",
        "train",
        "resisc45",
        preparation=_by_hand("NWPU-RESISC45.rar"),
        differs="the 4 templates of clip_benchmark, where CLIP has 18 others; all pictures, as TFDS has no test split",
    ),
    PublicSet("stl10", "STL-10", "stl10", "test", "stl10", _words(_STL_10)),
    # The first official partition, as CLIP; TFDS' own "tfds" is another, random one.
    PublicSet("sun397", "SUN397", "sun397/standard-part1-120k", "test", "sun397"),
    PublicSet(
        "ucf101",
        "UCF101",
        None,  # TFDS has its videos; the suite shows the middle frame of each
        "test",
        ("a photo of a person doing {}.",),
        preparation=_RECORDS.format("ucf101") + " from the middle frame of each video",
        differs="one template, where CLIP has 48",
        camel_case=True,
        class_count=101,
    ),
    PublicSet(
        "voc2007",
        "VOC2007",
        "voc/2007",
        "test",
        "voc2007",
        figure="mean_average_precision",
        differs="the devkit's protocol (11 points; difficult objects left out); how CLIP counted them is not known",
    ),
)
PUBLIC_SETS: dict[str, PublicSet] = {one.name: one for one in _SETS}
# The six whose mean the paper's abstract gives.
ROBUSTNESS = ("imagenet", "imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch", "objectnet")


def plain_label(label: str) -> str:
    """A label name of TFDS as words: `/a/apartment_building/outdoor` is "apartment building outdoor"."""
    if label.startswith("/"):  # SUN397's folders; elsewhere a slash is part of the name ("Ram C/V Cargo Van")
        parts = [part for part in label.split("/") if part]
        label = " ".join(parts[1:] if len(parts[0]) == 1 else parts)  # without the letter folders
    return " ".join(label.replace("_", " ").split())


def camel_case_words(name: str) -> str:
    """`ApplyEyeMakeup` is "Apply Eye Makeup"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)

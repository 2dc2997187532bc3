"""One example: a tf.train.Example and what the project takes from it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class FeatureKeys:
    """Under which keys of a tf.train.Example things stand; gin-bound, for records that others wrote."""

    image: str = "image/encoded"
    caption: str = "caption"
    label: str = "label"
    id: str = "id"


# What img2dataset writes with output_format=tfrecord.
IMG2DATASET = FeatureKeys(image="jpg", caption="txt", label="label", id="key")


@dataclasses.dataclass(frozen=True)
class Record:
    """One example. image: encoded JPEG, PNG, ...; captions: any number; labels: int64 [L]; id: a name."""

    image: bytes
    captions: tuple[str, ...]
    labels: np.ndarray
    id: str


def parse_example(payload: bytes, keys: FeatureKeys = FeatureKeys()) -> Record:
    """Reads a serialized tf.train.Example. ValueError if it is none, or has no picture under `keys.image`."""
    try:
        feature = tf.train.Example.FromString(payload).features.feature
    except Exception as error:  # protobuf's DecodeError, which is not a ValueError
        raise ValueError(f"{len(payload)} bytes are not a serialized tf.train.Example ({error})") from error
    image = feature[keys.image].bytes_list.value if keys.image in feature else ()
    if not image:
        found = ", ".join(sorted(feature)) or "no feature at all"
        raise ValueError(
            f"no picture under {keys.image!r}: the record has {found}; set FeatureKeys to the names it uses"
        )
    captions = feature[keys.caption].bytes_list.value if keys.caption in feature else ()
    labels = feature[keys.label].int64_list.value if keys.label in feature else ()
    name = feature[keys.id].bytes_list.value if keys.id in feature else ()
    return Record(
        image=image[0],
        captions=tuple(caption.decode("utf-8", "replace") for caption in captions),
        labels=np.fromiter(labels, np.int64),  # a fifth of np.array's time for protobuf's sequences
        id=name[0].decode("utf-8", "replace") if name else "",
    )


def serialize_example(
    image: bytes,
    captions: Sequence[str] = (),
    labels: Sequence[int] = (),
    id: str = "",
    keys: FeatureKeys = FeatureKeys(),
) -> bytes:
    """The inverse of `parse_example`; the same arguments always give the same bytes."""
    example = tf.train.Example()
    feature = example.features.feature
    feature[keys.image].bytes_list.value.append(image)
    feature[keys.caption].bytes_list.value.extend(caption.encode() for caption in captions)
    feature[keys.label].int64_list.value.extend(int(label) for label in labels)
    feature[keys.id].bytes_list.value.append(id.encode())
    return example.SerializeToString(deterministic=True)

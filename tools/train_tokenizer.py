r"""Trains a SentencePiece model on text files or on the captions of datasets (of label names where there are no captions).

  python tools/train_tokenizer.py --input=captions.txt --output=tokenizer.model --vocabulary_size=32000
  python tools/train_tokenizer.py --input=data/emoji/train.json --output=data/emoji/tokenizer.model \
      --vocabulary_size=4000 --allow_smaller
  python tools/train_tokenizer.py --input='laion/*.tfrecord' --image_key=jpg --caption_key=txt \
      --output=laion/tokenizer.model                                              (as img2dataset wrote them)

Ids: 0 <pad>, 1 <unk>; no begin and end tokens. Case and Unicode variants are folded by SentencePiece's own
normaliser (nmt_nfkc_cf), which travels inside the model. The same text and flags give the same model, byte
for byte. The last line printed is one JSON object: output, vocabulary_size, sentences, characters,
mean_tokens.
"""

import io
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf
from absl import app, flags

from basic_tf.data.examples import FeatureKeys
from basic_tf.data.records import RecordSource, parse_example
from tools.pairs.files import matching

_OURS = FeatureKeys()
_INPUT = flags.DEFINE_list(
    "input",
    None,
    "Text files (one sentence a line), dataset .json files, .tfrecord files, or patterns of any of them.",
)
_KEYS = {
    name: flags.DEFINE_string(f"{name}_key", getattr(_OURS, name), f"TFRecords: the key of {what}.")
    for name, what in (("image", "the picture"), ("caption", "captions"), ("label", "labels"))
}
_OUTPUT = flags.DEFINE_string("output", None, "The model file to write.")
_VOCABULARY_SIZE = flags.DEFINE_integer(
    "vocabulary_size", 32000, "Pieces, <pad> and <unk> included.", lower_bound=8
)
_ALLOW_SMALLER = flags.DEFINE_bool(
    "allow_smaller", False, "If the text is too small for vocabulary_size, use the largest possible one."
)
_MODEL_TYPE = flags.DEFINE_enum("model_type", "unigram", ["unigram", "bpe"], "SentencePiece's algorithm.")
_COVERAGE = flags.DEFINE_float(
    "character_coverage", 0.9999, "Share of the text's characters that get a piece."
)
_MAXIMUM = flags.DEFINE_integer(
    "max_sentences", 10_000_000, "Sentences used for training: all, or every k-th so that no more are used."
)
_READ_AT_ONCE = 4096
_LONGEST = 4192  # bytes: SentencePiece leaves out longer sentences, without a word
_REPORT_SECONDS = 5.0

# SentencePiece's complaint when a text cannot fill the vocabulary; the number is the largest possible size.
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")
# And when the vocabulary has no room for the single characters of the text; the number is what they take.
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def sentences(path: str, keys: FeatureKeys) -> Iterator[str]:
    """The non-empty lines of a text file, or the texts of a dataset's json or of a pattern of its shards."""
    if path.endswith(".json") or _is_shards(path):
        yield from _record_texts(path, keys)
        return
    with tf.io.gfile.GFile(path, "r") as file:
        for line in file:
            if line.strip():
                yield line.strip()


def _is_shards(path: str) -> bool:
    return ".tfrecord" in path.rpartition("/")[2]


def _record_texts(path: str, keys: FeatureKeys) -> Iterator[str]:
    """The captions of each record; of one without, the names of its labels: what training will say of it."""
    source = RecordSource.open(path)
    names = source.metadata.get("label_names") or ()
    for start in range(0, source.count, _READ_AT_ONCE):
        for payload in source.read(np.arange(start, min(start + _READ_AT_ONCE, source.count))):
            if payload is None:
                continue
            record = parse_example(payload, keys)
            texts = [" ".join(caption.split()) for caption in record.captions if caption.strip()]
            if not texts and len(names) and record.labels.size:
                texts = [", ".join(names[label] for label in record.labels)]
            yield from texts


def pieces(sentence: str, longest: int = _LONGEST) -> Iterator[str]:
    """The sentence, cut between words (in a word that is too long itself, between characters) to at most `longest` bytes."""
    if len(sentence.encode()) <= longest:
        yield sentence
        return
    held, size = [], 0
    for word in re.findall(r" ?\S+", " ".join(sentence.split())):
        for part in [word] if len(word.encode()) <= longest else word:
            more = len(part.encode())
            if size + more > longest:
                yield "".join(held).strip()
                held, size = [], 0
            held.append(part)
            size += more
    yield "".join(held).strip()


def collect(paths: list[str], maximum: int, keys: FeatureKeys = _OURS) -> list[str]:
    """All sentences of the inputs, thinned evenly to at most `maximum`; prints a progress line."""
    kept, seen, stride, cut, reported, start = [], 0, 1, 0, time.monotonic(), time.monotonic()
    # A pattern of shards is one dataset.
    files = [file for path in paths for file in ([path] if _is_shards(path) else matching([path]))]
    for file in files:
        for sentence in sentences(file, keys):
            parts = list(pieces(sentence))
            cut += len(parts) > 1
            for part in parts:
                if seen % stride == 0:
                    kept.append(part)
                    if len(kept) > maximum:
                        kept, stride = kept[::2], stride * 2
                seen += 1
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                print(f"read {seen:,} sentences, {seen / (reported - start):,.0f}/s", flush=True)
    if cut:
        print(f"{cut:,} sentences of more than {_LONGEST:,} bytes were cut between words", flush=True)
    return kept


def train(
    texts: list[str], vocabulary_size: int, allow_smaller: bool, model_type: str, coverage: float
) -> bytes:
    """A serialized SentencePiece model. ValueError says the largest possible size if the text is too
    small, the smallest one if the vocabulary is.
    """
    import sentencepiece

    def attempt(size: int) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            character_coverage=coverage,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # the order of additions, and so the model, must not depend on the machine
            shuffle_input_sentence=False,
            minloglevel=2,
        )
        return model.getvalue()

    try:
        return attempt(vocabulary_size)
    except (RuntimeError, OSError) as error:
        least = _TOO_SMALL.search(str(error))
        if least:
            raise ValueError(
                f"--vocabulary_size={vocabulary_size} is too small: the characters of the text alone are "
                f"{least.group(1)} pieces; raise it, or lower --character_coverage={coverage}"
            ) from error
        found = _TOO_LARGE.search(str(error))
        largest = int(found.group(1)) if found else None
        if largest is None or largest >= vocabulary_size:
            raise
        if not allow_smaller:
            raise ValueError(
                f"{len(texts):,} sentences give at most {largest:,} pieces, but "
                f"--vocabulary_size={vocabulary_size:,}: give more text, set "
                f"--vocabulary_size={largest} or add --allow_smaller"
            ) from error
        print(
            f"text too small for {vocabulary_size:,} pieces: using the largest possible, {largest:,}",
            flush=True,
        )
        return attempt(largest)


def run(
    inputs: list[str],
    output: str,
    vocabulary_size: int,
    *,
    allow_smaller: bool = False,
    model_type: str = "unigram",
    coverage: float = 0.9999,
    maximum: int = 10_000_000,
    keys: FeatureKeys = _OURS,
) -> dict:
    """Collects the text, trains, writes the model; returns its figures. ValueError says what is
    impossible.
    """
    texts = collect(inputs, maximum, keys)
    if not texts:
        raise ValueError(
            f"--input={','.join(inputs)} holds no text: nothing to train on; of records the captions under "
            f"{keys.caption!r} (--caption_key) and the names of labels are read"
        )
    print(f"training {vocabulary_size:,} pieces on {len(texts):,} sentences", flush=True)
    start = time.monotonic()
    model = train(texts, vocabulary_size, allow_smaller, model_type, coverage)
    folder = output.rpartition("/")[0]
    if folder:
        tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(output, "wb") as file:
        file.write(model)
    print(f"trained in {time.monotonic() - start:.1f} s -> {output}", flush=True)

    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    sample = texts[:: max(1, len(texts) // 10_000)]
    return {
        "output": output,
        "vocabulary_size": processor.vocab_size(),
        "sentences": len(texts),
        "characters": sum(map(len, texts)),
        "mean_tokens": round(sum(map(len, processor.encode(sample))) / len(sample), 2),
    }


def main(argv):
    """Trains as the flags say; the last line is the figures as JSON."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; input files go to --input=a,b")
    try:
        figures = run(
            _INPUT.value,
            _OUTPUT.value,
            _VOCABULARY_SIZE.value,
            allow_smaller=_ALLOW_SMALLER.value,
            model_type=_MODEL_TYPE.value,
            coverage=_COVERAGE.value,
            maximum=_MAXIMUM.value,
            keys=FeatureKeys(**{name: flag.value for name, flag in _KEYS.items()}),
        )
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures))


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)

r"""Trains a SentencePiece model on text files or on the captions of a dataset.

  python tools/train_tokenizer.py --input=captions.txt --output=tokenizer.model --vocabulary_size=32000
  python tools/train_tokenizer.py --input=data/emoji/train.json --output=data/emoji/tokenizer.model \
      --vocabulary_size=4000 --allow_smaller

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

import tensorflow as tf
from absl import app, flags

_INPUT = flags.DEFINE_list(
    "input", None, "Text files (one sentence a line) or dataset .json files (their captions are read)."
)
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
_REPORT_SECONDS = 5.0

# SentencePiece's complaint when a text cannot fill the vocabulary; the number is the largest possible size.
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")


def sentences(path: str) -> Iterator[str]:
    """The non-empty lines of a text file, or the captions of a dataset json."""
    if not path.endswith(".json"):
        with tf.io.gfile.GFile(path, "r") as file:
            for line in file:
                if line.strip():
                    yield line.strip()
        return
    import numpy as np

    from basic_tf.data import records

    source = records.RecordSource.open(path)
    for start in range(0, source.count, _READ_AT_ONCE):
        for payload in source.read(np.arange(start, min(start + _READ_AT_ONCE, source.count))):
            if payload is not None:
                for caption in records.parse_example(payload).captions:
                    if caption.strip():
                        yield " ".join(caption.split())


def collect(paths: list[str], maximum: int) -> list[str]:
    """All sentences of the inputs, thinned evenly to at most `maximum`; prints a progress line."""
    kept, seen, stride, reported, start = [], 0, 1, time.monotonic(), time.monotonic()
    for path in paths:
        if not tf.io.gfile.exists(path):
            raise FileNotFoundError(f"--input={path} does not exist")
        for sentence in sentences(path):
            if seen % stride == 0:
                kept.append(sentence)
                if len(kept) > maximum:
                    kept, stride = kept[::2], stride * 2
            seen += 1
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                print(f"read {seen:,} sentences, {seen / (reported - start):,.0f}/s", flush=True)
    return kept


def train(
    texts: list[str], vocabulary_size: int, allow_smaller: bool, model_type: str, coverage: float
) -> bytes:
    """A serialized SentencePiece model. ValueError says the largest possible size if the text is too
    small.
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
) -> dict:
    """Collects the text, trains, writes the model; returns its figures. ValueError says what is
    impossible.
    """
    texts = collect(inputs, maximum)
    if not texts:
        raise ValueError(f"--input={','.join(inputs)} holds no text: nothing to train on")
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
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures))


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)

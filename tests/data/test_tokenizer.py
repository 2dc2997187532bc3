import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.data.examples import serialize_example
from basic_tf.data.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
SIZE = 60


@pytest.fixture(scope="module")
def tool():
    from tools import train_tokenizer

    return train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghinoprstu"), rng.integers(2, 8))) for _ in range(60)] + [
        "apple",
        "boat",
    ]
    lines = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join([*lines, "", "Ünïcode ﬁsh"]) + "\n")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """Trained as a user does: by the command line."""
    command = [sys.executable, str(ROOT / "tools" / "train_tokenizer.py"), f"--vocabulary_size={SIZE}"]
    command += [f"--input={folder / 'text.txt'}", f"--output={folder / 'a.model'}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["vocabulary_size"] == SIZE and figures["sentences"] == 401 and figures["mean_tokens"] > 1
    return str(folder / "a.model")


def test_ids_are_those_of_sentencepiece_cut_and_padded(model):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    tokenizer = Tokenizer(model, 7)
    texts = ["apple boat", "", "cat drum egg fox goat hat ink jar", "Ünïcode ﬁsh", "zzz 中", "a" * 1000]
    expected = [(processor.encode(text) + [0] * 7)[:7] for text in texts]
    ids = tokenizer(texts)
    assert ids.dtype == tf.int32 and ids.numpy().tolist() == expected
    assert tokenizer.lengths(texts).numpy().tolist() == [len(processor.encode(text)) for text in texts]
    assert tokenizer.vocabulary_size == SIZE
    assert tokenizer(tf.zeros([0], tf.string)).shape == (0, 7)


def test_case_and_unicode_variants_do_not_matter(model):
    ids = Tokenizer(model, 12)(["APPLE Boat ﬁsh", "apple boat fish", "ａｐｐｌｅ  boat fish"]).numpy()
    assert (ids[0] == ids[1]).all() and (ids[0] == ids[2]).all() and (ids[0] > 0).any()


def test_inside_tf_data_and_functions(model):
    tokenizer = Tokenizer(model, 5)
    texts = ["apple boat", "cat", "egg fox goat hat ink jar", ""]
    expected = tokenizer(texts).numpy()
    data = tf.data.Dataset.from_tensor_slices(texts).batch(3).map(tokenizer, num_parallel_calls=2)
    assert data.element_spec.shape.as_list() == [None, 5]
    assert (np.concatenate(list(data.as_numpy_iterator())) == expected).all()
    assert (tf.function(tokenizer)(tf.constant(texts)).numpy() == expected).all()


def test_inside_a_saved_model(model, tmp_path):
    class Exported(tf.Module):
        def __init__(self):
            super().__init__()
            self.tokenizer = Tokenizer(model, 6)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def ids(self, texts):
            return self.tokenizer(texts)

    exported = Exported()
    expected = exported.ids(tf.constant(["Apple boat", "jar"])).numpy()
    tf.saved_model.save(exported, str(tmp_path / "saved"))
    program = (
        "import sys, tensorflow as tf, tensorflow_text\n"
        "print(tf.saved_model.load(sys.argv[1]).ids(tf.constant(['Apple boat', 'jar'])).numpy().tolist())"
    )
    # Another process, another folder: nothing but the SavedModel is at hand.
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(result.stdout) == expected.tolist()


def test_training_twice_gives_the_same_bytes(tool, folder, model):
    tool.run([str(folder / "text.txt")], str(folder / "b.model"), SIZE)
    assert (folder / "b.model").read_bytes() == Path(model).read_bytes()


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_little_text_names_the_largest_size_and_can_use_it(tool, folder, tmp_path, model_type, capfd):
    arguments = ([str(folder / "text.txt")], str(tmp_path / "c.model"), 32000)
    with pytest.raises(ValueError, match="or add --allow_smaller") as error:
        tool.run(*arguments, model_type=model_type)
    largest = int(str(error.value).split("at most ")[1].split()[0].replace(",", ""))
    assert not (tmp_path / "c.model").exists()
    figures = tool.run(*arguments, model_type=model_type, allow_smaller=True)
    assert figures["vocabulary_size"] == largest < 32000
    assert f"using the largest possible, {largest:,}" in capfd.readouterr().out


def test_captions_of_a_dataset(tool, folder, tmp_path):
    from basic_tf.data.records import RecordWriter

    lines = [line for line in (folder / "text.txt").read_text().splitlines() if line]
    with RecordWriter(str(tmp_path), "train", shards=2) as writer:
        for line in lines:
            writer.write(serialize_example(b"x", [line, " ", line + "\nand more"]))
        path = writer.finish()
    figures = tool.run([path, str(folder / "text.txt")], str(tmp_path / "m.model"), SIZE)
    assert figures["sentences"] == 3 * len(lines)
    assert tool.collect([path], 10**9)[:2] == [lines[0], lines[0] + " and more"]


def test_records_without_captions_give_the_names_of_their_labels(tool, tmp_path):
    from basic_tf.data.records import RecordWriter

    with RecordWriter(str(tmp_path), "train") as writer:
        writer.write(serialize_example(b"x", ["a caption"], [1]))
        writer.write(serialize_example(b"x", [" "], [1, 0]))
        writer.write(serialize_example(b"x", [], []))
        path = writer.finish(label_names=["red", "round thing"])
    assert tool.collect([path], 10**9) == ["a caption", "round thing, red"]


def test_shards_that_img2dataset_wrote(tool, tmp_path):
    from basic_tf.data.records import IMG2DATASET, RecordWriter

    for shard in range(2):
        with RecordWriter(str(tmp_path), f"{shard}") as writer:
            writer.write(serialize_example(b"x", [f"caption {shard}"], keys=IMG2DATASET))
            writer.finish()
    assert tool.collect([f"{tmp_path}/*.tfrecord"], 10**9, IMG2DATASET) == ["caption 0", "caption 1"]
    with pytest.raises(ValueError, match="the record has jpg, key, label, txt"):
        tool.collect([f"{tmp_path}/*.tfrecord"], 10**9)


def test_patterns_of_text_files(tool, tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(f"from {name}\n")
    assert tool.collect([f"{tmp_path}/*.txt"], 10**9) == ["from a", "from b"]


def test_long_sentences_are_cut_and_not_lost(tool, tmp_path, capsys):
    """SentencePiece leaves out what is longer, without a word."""
    words = [f"w\u00f6rd{n}" for n in range(2000)]
    (tmp_path / "long").write_text("short\n" + " ".join(words) + "\n" + "\u4e2d" * 3000 + "\n")
    found = tool.collect([str(tmp_path / "long")], 10**9)
    assert max(len(text.encode()) for text in found) <= 4192 and len(found) < 12
    assert found[0] == "short" and " ".join(found[1:]).split()[:2000] == words
    assert sum(text.count("\u4e2d") for text in found) == 3000
    assert "2 sentences of more than 4,192 bytes were cut" in capsys.readouterr().out
    assert list(tool.pieces("abc  " + "d" * 9 + " ef g", 5)) == ["abc d", "ddddd", "ddd", "ef g"]


def test_a_large_text_is_thinned_evenly(tool, tmp_path):
    (tmp_path / "many").write_text("\n".join(map(str, range(1000))))
    kept = list(map(int, tool.collect([str(tmp_path / "many")], 300)))
    assert len(kept) <= 300 and set(np.diff(kept)) == {4} and kept[0] == 0 and kept[-1] > 990


def test_impossible_input_is_one_clear_line(tool, tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ValueError, match="empty holds no text"):
        tool.run([str(tmp_path / "empty")], str(tmp_path / "x.model"), SIZE)
    with pytest.raises(FileNotFoundError, match=r"no file matches .*nowhere\.txt"):
        tool.run([str(tmp_path / "nowhere.txt")], str(tmp_path / "x.model"), SIZE)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_vocabulary_smaller_than_the_alphabet_is_one_clear_line(tool, folder, tmp_path, model_type):
    with pytest.raises(ValueError, match=r"vocabulary_size=8 is too small: the characters .* are \d+ pieces"):
        tool.run([str(folder / "text.txt")], str(tmp_path / "x.model"), 8, model_type=model_type)


def test_files_that_are_no_model(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="train_tokenizer"):
        Tokenizer(str(tmp_path / "none.model"), 5)
    (tmp_path / "bad.model").write_bytes(b"certainly not a model")
    with pytest.raises(ValueError, match="is no SentencePiece model"):
        Tokenizer(str(tmp_path / "bad.model"), 5)
    with pytest.raises(ValueError, match="at least 1 token"):
        Tokenizer(model, 0)


def test_a_model_without_padding_at_zero_is_refused(folder, tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=SIZE, minloglevel=2
    )
    with pytest.raises(ValueError, match="<pad>"):
        Tokenizer(str(tmp_path / "m.model"), 5)

"""Makes clip_benchmark_metrics.npz: random embeddings and CLIP_benchmark's figures for them.

Made with numpy 2.4.6:
    python make_clip_benchmark_metrics.py
The formulas are those of github.com/LAION-AI/CLIP_benchmark at 167d471 and 082089f, re-stated here in float64 NumPy from
its files clip_benchmark/metrics/zeroshot_classification.py (`zero_shot_classifier`, `accuracy`; mean-per-class recall is
scikit-learn's balanced accuracy) and clip_benchmark/metrics/zeroshot_retrieval.py (`evaluate`, `recall_at_k`). Its scores
are 100 x cosine; the factor changes no order.
"""

import pathlib

import numpy as np

TOP = (1, 5)
RECALLS = (1, 5, 10)


def normalised(x):
    """torch.nn.functional.normalize(x, dim=-1)."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def zero_shot_classifier(prompts):
    """Embedded prompts [C, P, E] -> classifier [E, C]: normalise, mean over the prompts, normalise, as columns."""
    mean = normalised(prompts).mean(axis=1)
    return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).T


def accuracy(logits, target, k):
    """Share of rows whose target is among the k largest logits."""
    largest = np.argsort(-logits, axis=1)[:, :k]
    return np.mean(np.any(largest == target[:, None], axis=1))


def balanced_accuracy(target, predicted):
    """Mean over the classes that occur in `target` of the recall of that class."""
    return np.mean([np.mean(predicted[target == label] == label) for label in np.unique(target)])


def recall(scores, positive, k):
    """recall_at_k > 0, averaged: scores [queries, candidates], positive likewise, boolean."""
    largest = np.argsort(-scores, axis=1)[:, :k]
    true_positives = np.take_along_axis(positive, largest, axis=1).sum(axis=1)
    return np.mean(true_positives / positive.sum(axis=1) > 0)


def main():
    """Writes inputs (float32) and figures (float64)."""
    rng = np.random.default_rng(20211119)
    classes, prompts, pictures, width = 37, 8, 611, 24
    centres = rng.normal(size=(classes, width))
    prompt_rows = (centres[:, None] + 0.9 * rng.normal(size=(classes, prompts, width))).astype(np.float32)
    # Uneven classes, three without any picture: plain and per-class accuracy differ.
    labels = rng.choice(classes - 3, pictures, p=rng.dirichlet(np.full(classes - 3, 0.7)))
    spread = rng.uniform(0.5, 4.0, classes)[labels, None]  # some classes are harder than others
    picture_rows = normalised(centres[labels] + spread * rng.normal(size=(pictures, width))).astype(
        np.float32
    )
    logits = 100.0 * picture_rows.astype(np.float64) @ zero_shot_classifier(prompt_rows.astype(np.float64))
    result = {"prompts": prompt_rows, "pictures": picture_rows, "labels": labels}
    for k in TOP:
        result[f"acc{k}"] = accuracy(logits, labels, k)
    result["mean_per_class_recall"] = balanced_accuracy(labels, logits.argmax(axis=1))

    images = 173
    image_of_text = np.repeat(np.arange(images), rng.integers(1, 8, images))  # 1 to 7 captions, in order
    image_rows = rng.normal(size=(images, width))
    text_rows = image_rows[image_of_text] + 1.5 * rng.normal(size=(len(image_of_text), width))
    image_rows, text_rows = (normalised(rows).astype(np.float32) for rows in (image_rows, text_rows))
    scores = text_rows.astype(np.float64) @ image_rows.astype(np.float64).T  # [texts, images]
    positive = np.zeros(scores.shape, bool)
    positive[np.arange(len(scores)), image_of_text] = True
    result |= {"images": image_rows, "texts": text_rows, "image_of_text": image_of_text}
    for k in RECALLS:
        result[f"image_retrieval_recall@{k}"] = recall(scores, positive, k)
        result[f"text_retrieval_recall@{k}"] = recall(scores.T, positive.T, k)
    np.savez_compressed(pathlib.Path(__file__).with_name("clip_benchmark_metrics.npz"), **result)


if __name__ == "__main__":
    main()

"""The terms of our bound on the generalisation gap of the normalised contrastive loss (docs/theory.md has its proof).

Ours, after the shape of the paper's theorem (arXiv 2111.10050): gap <= Q1 / sqrt(m) + Q2 / sqrt(B). It holds for any
encoders into the unit ball; the complexities below are those of finite classes, and a real model is one: P weights of b
bits are at most 2^(P b) encoders. Its terms hold exp(2 s), so they are kept as logarithms.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class BoundTerms:
    """Natural logarithms of the terms, mean of both directions; their sum bounds the gap with probability 1 - delta.

    Over sqrt(m): queries (the denominator as a function of the query's encoder), similarities (of the pairs), deviation.
    Over sqrt(B): denominators (a batch's denominator against the population's) and their deviation, which is that of m / B
    independent batches.
    """

    queries: float
    similarities: float
    deviation: float
    denominators: float
    denominators_deviation: float

    @property
    def total(self) -> float:
        """Natural logarithm of the bound."""
        terms = dataclasses.astuple(self)
        largest = max(terms)
        return largest + math.log(sum(math.exp(term - largest) for term in terms))

    @property
    def total_log10(self) -> float:
        """Decimal logarithm of the bound: how many digits it has."""
        return self.total / math.log(10)


def vector_complexity(log_encoders: float, examples: int) -> float:
    """E max over a finite class of |mean of signed embeddings|: at most (1 + sqrt(2 ln class)) / sqrt(n), n examples.

    log_encoders: natural logarithm of the number of encoders in the class, 0 for a fixed one.
    """
    return (1 + math.sqrt(2 * log_encoders)) / math.sqrt(examples)


def bound_terms(
    inverse_temperature: float,
    pairs: int,
    batch: int,
    log_image_encoders: float,
    log_text_encoders: float,
    delta: float = 0.05,
) -> BoundTerms:
    """The bound for m pairs in m / B disjoint batches of B.

    inverse_temperature: s, of the trained model (the temperature counts as fixed). log_image_encoders,
    log_text_encoders: natural logarithms of the numbers of encoders that training could have ended at. delta: the
    probability that the bound may fail. ValueError for values that have no meaning.
    """
    s = inverse_temperature
    if not s > 0 or not 0 < delta < 1 or min(log_image_encoders, log_text_encoders) < 0:
        raise ValueError(
            f"needs s > 0, 0 < delta < 1 and classes of at least one encoder, received {s}, {delta}, "
            f"{log_image_encoders}, {log_text_encoders}"
        )
    if batch < 1 or pairs < batch:
        raise ValueError(f"needs at least one batch of at least one pair, received {pairs=}, {batch=}")
    batches = pairs // batch
    pairs = batches * batch
    confidence = math.log(4 / delta)  # two events in each of two directions
    classes = (log_image_encoders, log_text_encoders)

    def mean_complexity(examples):
        return sum(vector_complexity(logarithm, examples) for logarithm in classes) / 2

    # log c, c = ln(1 + (e^2s - 1) / B): by how much one text moves the logarithm of a batch's denominator.
    moved = math.log(math.log1p((math.exp(2 * s) - 1) / batch)) if s < 300 else math.log(2 * s)
    by_text = moved + 0.5 * math.log(batch * confidence / (2 * batches))
    by_batch = math.log(2 * s) + 0.5 * math.log(confidence / (2 * batches))
    return BoundTerms(
        queries=math.log(2 * s * mean_complexity(pairs)) + 2 * s,
        similarities=_log(2 * s * math.sqrt(2 * sum(classes) / pairs)),
        deviation=math.log(4 * s * math.sqrt(confidence / (2 * pairs))),
        denominators=math.log(2 * s * mean_complexity(batch)) + 2 * s,
        denominators_deviation=min(by_text, by_batch),
    )


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf

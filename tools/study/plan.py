"""What the study runs: a list of runs, each a gin file and bindings, in the order in which they tell most.

Runs of text towers against one frozen image tower, on features of its pictures (gin/study/text.gin), serve claims a, b, c, e
and 0; whole recipes serve d and f; all of them serve g. Learning rates: for each batch size three in steps of two around a
square-root rule, one seed; the best at the edge adds the next one beyond it. The rate of the best retrieval, a test that no
claim uses, is then taken for all runs of that batch size. A run whose rate is not known yet waits.
"""

import dataclasses
from collections.abc import Mapping

BATCHES = (64, 256, 1024, 4096)
SEEDS = (0, 1, 2)
TRAINED = 0.8  # the share of the emoji records that is trained on; gin/study/*.gin bind it too
EXAMPLES = 196_608  # pairs of a run "at equal samples": 48 steps of 4,096
STEPS = EXAMPLES // 1024  # of a run "at equal steps"
MICROBATCH = 256
SHARES = (0.2, 0.4)  # of the emoji records, beside TRAINED
ICONS = 0.1  # the share of the icons whose features are made
_FIRST_RATES = {64: 1e-3, 256: 2e-3, 1024: 4e-3, 4096: 8e-3}
_MOST_RATES = 6

TEXT = "gin/study/text.gin"
SIZES = "gin/study/sizes.gin"


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run. name: its folder under the study's. claims: which it serves. seconds: expected, on two idle cores.

    gin_file, bindings, seed: of a training. features_of: instead, the json of pictures of which a share is embedded by the
    frozen tower; it is left out, and so is what `needs` it, where that is not on disk.
    """

    name: str
    claims: tuple[str, ...]
    seconds: float
    gin_file: str = ""
    bindings: tuple[str, ...] = ()
    seed: int = 0
    features_of: str | None = None
    share: float = 1.0
    needs: str | None = None


def rate_name(batch: int, rate: float) -> str:
    """The run of the learning-rate search."""
    return f"rate/batch{batch}_rate{rate:g}"


def retrieval(figures: Mapping[str, float]) -> float:
    """What the search maximises: mean R@1 of both directions."""
    return 0.5 * sum(figures[f"retrieval/{way}/R_at_1"] for way in ("image_to_text", "text_to_image"))


def rates(found: Mapping[str, Mapping], batch: int) -> tuple[list[float], float | None]:
    """(all rates to be tried so far, the chosen one or None while the search goes on). found: figures by run's name."""
    tried = [_FIRST_RATES[batch] * factor for factor in (0.5, 1, 2)]
    while True:
        scores = {rate: found.get(rate_name(batch, rate)) for rate in tried}
        if any(figures is None for figures in scores.values()):
            return tried, None
        best = max(tried, key=lambda rate: retrieval(scores[rate]))
        if len(tried) >= _MOST_RATES or best not in (min(tried), max(tried)):
            return tried, best
        tried = sorted([*tried, best * 2 if best == max(tried) else best / 2])


def _text(
    name,
    claims,
    batch,
    rate,
    seed,
    *,
    examples=EXAMPLES,
    steps=None,
    seconds=None,
    extra=(),
    folder="runs/study",
    needs="features",
):
    length = f"Duration.examples = {examples}" if steps is None else f"Duration.steps = {steps}"
    pairs = examples if steps is None else steps * batch
    updates = pairs // batch
    return RunSpec(
        name,
        tuple(claims),
        seconds or 15 + pairs / 4500 + 0.012 * updates,
        TEXT,
        (
            f"TOWER = '{folder}/tower/pretrain'",
            f"FEATURES = '{folder}/features/train.json'",
            f"Stage.batch_size = {batch}",
            f"Schedule.peak = {rate:g}",
            length,
            *extra,
        ),
        seed,
        needs=needs,
    )


def sample_name(batch: int, seed: int, rate: float) -> str:
    """The run at equal samples; the search has that of the first seed."""
    return rate_name(batch, rate) if seed == SEEDS[0] else f"samples/batch{batch}_seed{seed}"


def runs(found: Mapping[str, Mapping], folder: str = "runs/study") -> tuple[list[RunSpec], int]:
    """(the runs that can be named now, how many wait for the learning-rate search). found: figures by run's name."""
    specs = [
        RunSpec("tower", ("a", "b", "c", "e", "0", "g"), 240, "gin/study/tower.gin"),
        RunSpec(
            "features", ("a", "b", "c", "e", "0"), 60, features_of="data/emoji/train.json", needs="tower"
        ),
    ]
    chosen, waiting = {}, 0
    for batch in (256, 1024, 64, 4096):
        tried, chosen[batch] = rates(found, batch)
        specs += [_text(rate_name(batch, rate), "a", batch, rate, 0, folder=folder) for rate in tried]

    def add(name, claims, batch, seed, **options):
        nonlocal waiting
        if chosen[batch] is None:
            waiting += 1
        else:
            specs.append(
                _text(f"{name}_seed{seed}", claims, batch, chosen[batch], seed, folder=folder, **options)
            )

    for seed in SEEDS[1:]:  # a, at equal samples: the search has the first seed
        for batch in BATCHES:
            claims = {64: "abg", 256: "abeg", 1024: "ag0", 4096: "abcg"}[batch]
            add(f"samples/batch{batch}", claims, batch, seed)
    for seed in SEEDS:  # c
        exact = (f"contrastive/Contrastive.microbatch = {MICROBATCH}",)
        add("microbatch/exact", "c", 4096, seed, extra=exact)
        add(
            "microbatch/separate",
            "c",
            4096,
            seed,
            extra=(*exact, "contrastive/Contrastive.negatives = 'microbatch'"),
        )
    for seed in SEEDS:  # b: four times the samples in small batches
        add("longer/batch256", "b", 256, seed, examples=4 * EXAMPLES)
    for seed in SEEDS:  # a, at equal steps
        for batch in (64, 256, 4096):
            add(f"steps/batch{batch}", "ab" if batch == 4096 else "a", batch, seed, steps=STEPS)
    for seed in SEEDS:
        add("longer/batch64", "b", 64, seed, examples=4 * EXAMPLES)
    for seed in SEEDS:  # distinct concepts in a batch; there are 1,814 concepts, so none of 4,096
        for batch in (64, 256, 1024):
            distinct = ("FeatureBatches.order = @DistinctLabels",)
            add(f"distinct/batch{batch}", "a", batch, seed, extra=distinct)
    for seed in SEEDS:  # e: less data
        for share in SHARES:
            add(f"data/share{share:g}", "e", 256, seed, extra=(f"train/Subset.stop = {share:g}",))
    specs.append(
        RunSpec("icon_features", ("e",), 120, features_of="data/icons/train.json", share=ICONS, needs="tower")
    )
    for seed in SEEDS:  # e: the noisy icon pairs, mixed in at equal samples
        add("data/icons", "e", 256, seed, extra=_icons(folder), needs="icon_features")
    for seed in SEEDS:  # 0: data, model and batch, alone and together, at equal compute
        for name, data, model, batch in COMBINATIONS:
            add(f"combined/{name}", "0", batch, seed, examples=_EXAMPLES_OF[model],
                extra=(f"train/Subset.stop = {data:g}", *_MODELS[model]), seconds=60)  # fmt: skip
    # Whole recipes, last: they take the longest. f, and d's middle size; then d's others.
    specs += [_stages(name, seed) for seed in SEEDS for name in ("staged", "from_scratch")]
    specs += [_size(size, seed) for size in ("small", "large") for seed in SEEDS]
    return specs, waiting


# Claim 0. Small: a fifth of the records, a text tower of width 64, batch 64. A text tower of width 96 takes 2.2 times the
# multiply-adds for a pair (a test holds this against the tower's own count), so it sees as many pairs less. All grown are
# the runs of COMBINED_BATCH at equal samples.
COMBINED_BATCH = 1024
COMBINATIONS = (
    ("small", 0.2, "small", 64),
    ("data", TRAINED, "small", 64),
    ("model", 0.2, "large", 64),
    ("batch", 0.2, "small", COMBINED_BATCH),
)
_MODELS = {"small": ("TextTransformer.width = 64", "TextTransformer.heads = 2"), "large": ()}
_EXAMPLES_OF = {"small": 422 * 1024, "large": EXAMPLES}


def _icons(folder: str) -> tuple[str, ...]:
    return (
        "FeatureBatches.source = @Mixture()",
        "Mixture.sources = [@train/Subset(), @icons/Records()]",
        "Mixture.names = ['emoji', 'icons']",
        "Mixture.weights = [50, 50]",
        f"icons/Records.path = '{folder}/icon_features/train.json'",
    )


# Whole recipes: a third of the demo's steps.
_PRETRAIN, _CONTRASTIVE, _FINETUNE, _SCRATCH = 250, 130, 200, 434


def _stages(name: str, seed: int) -> RunSpec:
    if name == "from_scratch":
        length, file = (f"finetune/Duration.steps = {_SCRATCH}",), "gin/runs/demo_from_scratch.gin"
    else:
        lengths = {"pretrain": _PRETRAIN, "contrastive": _CONTRASTIVE, "finetune": _FINETUNE}
        length = tuple(f"{stage}/Duration.steps = {steps}" for stage, steps in lengths.items())
        file = "gin/runs/demo.gin"
    claims = ("f", "d", "g") if name == "staged" else ("f", "g")
    return RunSpec(f"stages/{name}_seed{seed}", claims, 300, file, length, seed)


def _size(size: str, seed: int) -> RunSpec:
    length = (f"pretrain/Duration.steps = {_PRETRAIN}", f"contrastive/Duration.steps = {_CONTRASTIVE}")
    seconds = {"small": 90, "large": 420}[size]
    return RunSpec(
        f"size/{size}_seed{seed}",
        ("d", "g"),
        seconds,
        SIZES,
        (*length, f"SIZE = @{size}/CoAtNetTable()", *_TEXTS[size]),
        seed,
    )


_TEXTS = {
    "small": ("TextTransformer.width = 64", "TextTransformer.heads = 2"),
    "large": ("TextTransformer.width = 128", "TextTransformer.heads = 4", "TextTransformer.layers = 3"),
}

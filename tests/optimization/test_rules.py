"""The rule table: total, first match, and plain words when it does not fit."""

import pytest

from basic_tf.optimization import rules
from basic_tf.optimization.rules import Rule, RuleError, RuleTable

PATHS = [
    "image_tower/stem/conv0/kernel",
    "image_tower/stem/conv0/bias",
    "image_tower/stem/norm0/scale",
    "image_tower/stem/norm0/moving_mean",
    "image_tower/s1/block0/depthwise/kernel",
    "image_tower/s3/block0/attention/relative_bias",
    "text_tower/embedding/tokens",
    "text_tower/embedding/positions",
    "text_tower/layer0/attention/query/kernel",
    "text_tower/layer0/attention_norm/scale",
    "image_projection/kernel",
    "text_projection/kernel",
    "log_inverse_temperature",
]


def test_decay_by_default_is_for_kernels_and_embeddings_only():
    resolved = rules.everything().resolve(PATHS)
    assert [path for path in PATHS if resolved[path].decay] == [
        "image_tower/stem/conv0/kernel",
        "image_tower/s1/block0/depthwise/kernel",
        "text_tower/embedding/tokens",
        "text_tower/embedding/positions",
        "text_tower/layer0/attention/query/kernel",
        "image_projection/kernel",
        "text_projection/kernel",
    ]
    assert list(resolved) == PATHS


def test_the_first_match_wins_and_patterns_match_whole_paths():
    table = RuleTable(
        [
            Rule(".*/attention/.*", learning_rate_factor=0.5, decay=False),
            Rule("image_tower/.*", frozen=True),
            Rule("log_inverse_temperature", learning_rate_factor=2.0, decay=True),
            Rule(".*kernel"),
            Rule(".*"),
        ]
    )
    resolved = table.resolve(PATHS)
    assert resolved["image_tower/s3/block0/attention/relative_bias"].learning_rate_factor == 0.5
    assert not resolved["image_tower/s3/block0/attention/relative_bias"].frozen
    assert resolved["image_tower/stem/conv0/kernel"].frozen
    assert resolved["text_tower/layer0/attention/query/kernel"].decay is False
    assert resolved["log_inverse_temperature"].decay is True
    # "image" is a prefix of many paths and the whole of none.
    with pytest.raises(RuleError, match="'image' matches no parameter"):
        RuleTable([Rule("image"), Rule(".*")]).resolve(PATHS)


def test_ready_made_tables():
    frozen = rules.frozen_image_tower().resolve(PATHS)
    assert {path for path in PATHS if frozen[path].frozen} == {
        p for p in PATHS if p.startswith("image_tower/")
    }
    slower = rules.slower_image_tower(0.1).resolve(PATHS)
    assert slower["image_tower/stem/conv0/bias"].learning_rate_factor == 0.1
    assert slower["text_tower/embedding/tokens"].learning_rate_factor == 1.0


def test_uncovered_parameters_are_named():
    with pytest.raises(RuleError, match=r"no rule covers .*image_projection/kernel.*log_inverse_temperature"):
        RuleTable([Rule("(image|text)_tower/.*")]).resolve(PATHS)
    with pytest.raises(RuleError, match=r"and 3 more.*Rule\('\.\*'\)"):
        RuleTable([Rule("text_tower/.*"), Rule("log_inverse_temperature")]).resolve(PATHS)


def test_rules_that_match_nothing_are_named_with_close_paths():
    with pytest.raises(RuleError, match=r"'image_towr/.*' matches no parameter; did you mean .*image_tower"):
        RuleTable([Rule("image_towr/.*", frozen=True), Rule(".*")]).resolve(PATHS)
    with pytest.raises(RuleError, match="never applies: earlier rules take all 3 paths"):
        RuleTable([Rule(".*"), Rule(r"text_tower/.*(tokens|positions|query/kernel)")]).resolve(PATHS)
    with pytest.raises(RuleError) as both:
        RuleTable([Rule("image_tower/.*"), Rule("zzz")]).resolve(PATHS)
    assert "no rule covers" in str(both.value) and "'zzz' matches no parameter" in str(both.value)


def test_rules_that_make_no_sense():
    for bad in (
        {"pattern": "("},
        {"pattern": ".*", "learning_rate_factor": -1.0},
        {"pattern": ".*", "frozen": True, "learning_rate_factor": 0.5},
        {"pattern": ".*", "layout": ("model", "model")},
        {"pattern": ".*", "layout": ("rows",)},
    ):
        with pytest.raises(RuleError):
            Rule(**bad)
    with pytest.raises(RuleError, match="at least one rule"):
        RuleTable([])


@pytest.mark.parametrize(
    "shape,size,expected",
    [
        ((1024, 4096), 4, (None, "model")),
        ((32_000, 1024), 8, ("model", None)),
        ((1024, 1024), 2, (None, "model")),
        ((3, 3, 384, 768), 4, (None, None, None, "model")),
        ((3, 3, 3072, 1), 4, (None, None, "model", None)),
        ((1000, 1021), 8, ("model", None)),  # the largest is not divisible, the next is
        ((1001, 1021), 8, (None, None)),
        ((4096,), 4, (None,)),  # small
        ((), 4, ()),
        ((1024, 4096), 1, (None, None)),
    ],
)
def test_default_layout(shape, size, expected):
    assert rules.default_layout("x/kernel", shape, size) == expected


def test_layout_of_a_rule():
    rule = Rule(".*", layout=["model", None])
    assert rules.layout_of("x", (64, 3), rule, 4) == ("model", None)
    assert rules.layout_of("x", (640, 640), Rule(".*", layout=()), 4) == (None, None)
    assert rules.layout_of("x", (640, 640), Rule(".*"), 4) == (None, "model")
    with pytest.raises(RuleError, match="x has 3 dimensions"):
        rules.layout_of("x", (64, 3, 3), rule, 4)
    with pytest.raises(RuleError, match="dimension 0 of"):
        rules.layout_of("x", (66, 3), rule, 4)

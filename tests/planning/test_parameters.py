"""Counts from specs alone against published and recalled ones, and against weights that exist."""

import pytest

from basic_tf import configurables
from basic_tf.planning import parameters, report, subject
from basic_tf.towers.coatnet import CoAtNet


def planned(size):
    configurables.parse([f"gin/models/basic_{size}.gin"], [])
    return subject.describe(configurables.model_alone(), 10)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize("variant", [f"coatnet_{n}" for n in (0, 1, 2, 3, 4, 5, 7)])
def test_coatnets_meet_the_published_counts(variant):
    found = parameters.image_reference(CoAtNet(variant))
    assert (found.name, found.source) == (variant, "published") and abs(found.difference) < 0.007


@pytest.mark.parametrize(
    ("size", "text", "total"), [("s", 108.4e6, 132e6), ("m", 184.0e6, 347e6), ("l", 670.0e6, 3.10e9)]
)
def test_the_three_sizes_meet_what_is_recalled_of_them(size, text, total):
    _, found = planned(size)
    counts = parameters.by_part(found.specs)
    assert counts["text_tower"] == pytest.approx(text, rel=5e-4)
    assert counts["total"] == pytest.approx(total, rel=0.015)
    assert counts["total"] == sum(spec.size for spec in found.specs)
    recalled = parameters.text_reference(found.towers["text_tower"])
    assert abs(recalled.difference) < 0.007 and recalled.source == "recalled"
    sources = {row.name: row.source for row in report.references(found)}
    assert sources.pop(f"basic_{size}") == "recalled" and set(sources.values()) == {"published"}


def test_a_model_axis_divides_what_the_layout_cuts():
    _, found = planned("s")
    whole, cut = (parameters.weight_bytes(found.specs, 4, axis) for axis in (1, 8))
    assert whole == 4 * sum(spec.size for spec in found.specs)
    paths = parameters.sharded_paths(found.specs, 8)
    small = sum(spec.size for spec in found.specs if spec.path not in paths)
    assert cut == pytest.approx(whole / 8 + 4 * small * 7 / 8, abs=1) and small < 0.01 * whole / 4


def test_an_unknown_tower_has_no_count_to_compare_with():
    tower = CoAtNet("coatnet_0")
    tower.table = type(tower.table)((1, 8), tower.table.stages)
    assert parameters.image_reference(tower) is None

"""The study's plan, its rules and its report on made-up runs; one real run through the runner is among the slow tests."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from basic_tf import configurables
from tools import make_report
from tools.study import claims, plan, statistics, store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print(f"seed {seed}")  # shown where a test fails
    return np.random.default_rng(seed)


def batch_of(spec):
    found = [re.search(r"^Stage\.batch_size = (\d+)$", binding) for binding in spec.bindings]
    return next((int(match[1]) for match in found if match), 512)


def rate_of(spec):
    found = [re.search(r"^Schedule\.peak = (\S+)$", binding) for binding in spec.bindings]
    return next((float(match[1]) for match in found if match), 1e-3)


BEST_RATE = {64: 1e-3, 256: 4e-3, 1024: 1e-3, 4096: 8e-3}  # middle, edges, middle


def made_up(spec, rng, gain=0.02, gap_slope=-0.5):
    """A study.json in which accuracy grows by `gain` per doubling of B, and gaps as B^gap_slope."""
    if spec.features_of or spec.name == "tower":
        return {"name": spec.name, "figures": {}}
    batch, noise = batch_of(spec), rng.normal(0, 0.002, 8)
    score = 0.5 - 0.1 * abs(math.log2(rate_of(spec) / BEST_RATE.get(batch, 1e-3)))
    accuracy = 0.2 + gain * math.log2(batch / 64) + noise[0]
    if "separate" in spec.name:
        accuracy -= 0.05
    figures = {
        claims.SHIFT: accuracy,
        claims.INSIDE: accuracy + 0.3 - 0.5 * accuracy + noise[1],
        "zero_shot/held_out_concepts/top5": 0.2 + noise[2],
        "retrieval/image_to_text/R_at_1": score,
        "retrieval/text_to_image/R_at_1": score,
        "false_negatives_per_pair": batch / 300,
        "loss": 1.0,
    }
    for number, gap in enumerate(claims.GAPS):
        figures[f"gap/{gap}"] = (batch / 64) ** gap_slope * math.exp(noise[3 + number])
    stage = {
        "steps": 10,
        "training_seconds": 5.0,
        "losses": {"10": 1.0},
        "evaluations": [{"step": 10, **figures}],
    }
    return {
        "name": spec.name, "gin_file": spec.gin_file, "bindings": list(spec.bindings), "seed": spec.seed,
        "figures": figures, "stages": {"contrastive": stage},
    }  # fmt: skip


def whole_study(rng, **options):
    """Runs whatever the plan names until nothing is left."""
    found = {}
    for _ in range(20):
        specs, waiting = plan.runs(store.figures_of(found))
        todo = [spec for spec in specs if spec.name not in found]
        if not todo:
            assert waiting == 0
            return found
        found |= {spec.name: made_up(spec, rng, **options) for spec in todo}
    raise AssertionError("the plan never ends")


def test_intervals_are_students(rng):
    values = rng.normal(3, 2, int(rng.integers(3, 9)))
    interval = statistics.mean(values)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.value - interval.half_width, interval.value + interval.half_width) == pytest.approx(
        (low, high)
    )
    x, noise = rng.normal(size=12), rng.normal(0, 0.1, 12)
    found = statistics.trend(x, 2 * x + noise)
    assert found.value == pytest.approx(statistics.slope(x, 2 * x + noise))
    design = np.stack([x, np.ones(12)], 1)
    solution, rest, *_ = np.linalg.lstsq(design, 2 * x + noise)
    error = math.sqrt(rest[0] / 10 * np.linalg.inv(design.T @ design)[0, 0])
    assert (found.value, found.half_width) == pytest.approx(
        (solution[0], scipy.stats.t.ppf(0.975, 10) * error)
    )


def test_verdicts():
    interval = statistics.Interval
    assert interval(2, 1, 3).verdict(1) == interval(-2, 1, 3).verdict(-1) == "confirmed"
    assert interval(2, 1, 3).verdict(-1) == "reversed"
    assert interval(1, 1, 3).verdict(1) == interval(-0.5, 1, 3).verdict(1) == "not seen"
    assert statistics.mean([1, 1]).verdict(1) == statistics.mean([]).verdict(1) == "not run yet"
    assert statistics.trend([1, 2, 1], [1, 2, 3]).verdict(1) == "not run yet"


def test_the_search_goes_on_beyond_an_edge_and_then_chooses(rng):
    found = whole_study(rng)
    for batch, best in BEST_RATE.items():
        tried, chosen = plan.rates(store.figures_of(found), batch)
        assert chosen == pytest.approx(best) and min(tried) < best < max(tried)
        for seed in plan.SEEDS:
            bindings = found[plan.sample_name(batch, seed, chosen)]["bindings"]
            assert f"Schedule.peak = {chosen:g}" in bindings


def test_every_run_is_told_apart_and_its_gin_text_is_read(monkeypatch, rng):
    monkeypatch.chdir(ROOT)
    found = whole_study(rng)
    specs, _ = plan.runs(store.figures_of(found))
    assert len({spec.name for spec in specs}) == len(specs)
    trained = [spec for spec in specs if spec.features_of is None]
    assert len({(spec.gin_file, spec.bindings, spec.seed) for spec in trained}) == len(trained)
    seen = set()
    for spec in trained:
        kind = (spec.gin_file, tuple(re.sub(r"[\d.e-]+$", "", binding) for binding in spec.bindings))
        if kind not in seen:
            seen.add(kind)
            configurables.parse([spec.gin_file], list(spec.bindings))
            assert all(
                stage.train.to_steps(stage.batch_size, 9357) > 1 for stage in configurables.recipe().stages
            )


def test_the_combinations_have_equal_compute(monkeypatch, rng):
    monkeypatch.chdir(ROOT)
    figures = store.figures_of(whole_study(rng))
    specs = [s for s in plan.runs(figures)[0] if s.name.startswith("combined/")]
    assert len(specs) == 12
    specs = [*specs[:4], next(s for s in plan.runs(figures)[0] if s.name == "samples/batch1024_seed1")]
    compute = []
    for spec in specs:
        configurables.parse([spec.gin_file], list(spec.bindings))
        (stage,) = configurables.recipe().stages
        tower = stage.task(metadata=None).model.text_tower
        compute.append(
            sum(tower.multiply_adds().values()) * stage.train.to_steps(stage.batch_size) * stage.batch_size
        )
    assert max(compute) / min(compute) < 1.02


def test_claims_on_runs_in_which_they_hold_or_not(rng):
    parts = claims.verdicts(claims.Study(whole_study(rng)))
    assert {part.claim for part in parts} == set(claims.TITLES)
    of_a = [part for part in parts if part.claim == "a"]
    assert {part.verdict for part in of_a} == {"confirmed"} and len(of_a) == 12
    for part in of_a:
        expected = 0.02 if "accuracy" in part.says else -0.5
        # Not by its interval: of three seeds that is sometimes a tenth of the noise.
        assert abs(part.figure.value - expected) <= 0.1 * abs(expected)
    by_claim = {claim: [part.verdict for part in parts if part.claim == claim] for claim in claims.TITLES}
    assert by_claim["b"] == by_claim["c"] == ["confirmed"] * 2
    assert by_claim["g"][1] == "confirmed"  # the drop was made to shrink; the whole recipes are all alike
    parts = claims.verdicts(claims.Study(whole_study(rng, gain=-0.02, gap_slope=0.5)))
    assert {part.verdict for part in parts if part.claim in "ab"} == {"reversed"}


def test_with_a_part_of_the_runs_the_rest_is_not_run_yet(rng):
    found = whole_study(rng)
    some = {name: one for name, one in found.items() if name.startswith("rate/")}
    for part in claims.verdicts(claims.Study(some)):
        if part.claim == "g" and "one image tower" in part.says:
            continue  # any runs will do
        assert part.verdict == "not run yet"
    some |= {name: one for name, one in found.items() if name.startswith("samples/")}
    verdicts = {part.says: part.verdict for part in claims.verdicts(claims.Study(some)) if part.claim == "a"}
    assert verdicts["at equal samples: accuracy per doubling of B"] == "confirmed"
    assert verdicts["at equal steps: accuracy per doubling of B"] == "not run yet"
    missing = dict(found)
    del missing["longer/batch64_seed1"]
    assert [part.verdict for part in claims.claim_b(claims.Study(missing))] == ["not run yet"] * 2


def test_an_unequal_loss_is_said(rng):
    found = whole_study(rng)
    found["microbatch/exact_seed1"]["stages"]["contrastive"]["losses"] = {"10": 1.02}
    first = claims.claim_c(claims.Study(found))[0]
    assert first.verdict == "reversed" and first.figure.value == pytest.approx(0.02)


KINDS = ("verdicts", "batches", "rates", "comparisons", "shift", "runs")


@pytest.mark.parametrize("part", ["all", "rate/", "none"])
def test_the_report_follows_the_runs(part, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    found = whole_study(rng)
    for name, one in found.items():
        if part == "all" or name.startswith(part):
            (tmp_path / "study" / name).mkdir(parents=True)
            (tmp_path / "study" / name / "study.json").write_text(json.dumps(one))
    document = tmp_path / "study.md"
    document.write_text("".join(f"<!-- generated: study_{kind} study -->\n<!-- end -->\n" for kind in KINDS))
    assert make_report.update([str(document)]) == (1 if part == "none" else 0)
    text = document.read_text()
    if part == "none":
        return
    assert make_report.update([str(document)], check=True) == 0
    runs = json.loads((tmp_path / "study" / "runs.json").read_text())
    assert runs.keys() == {name for name in found if part == "all" or name.startswith(part)}
    assert ("not run yet" in text.lower()) == (part != "all")
    # The record alone gives the same document: readers need not run for hours.
    (tmp_path / "study").rename(tmp_path / "elsewhere")
    (tmp_path / "study").mkdir()
    (tmp_path / "elsewhere" / "runs.json").rename(tmp_path / "study" / "runs.json")
    assert make_report.update([str(document)], check=True) == 0
    assert make_report.update([str(document)]) == 0 and document.read_text() == text
    if part == "all":
        mean = np.mean(
            [
                one["figures"][claims.SHIFT]
                for name, one in found.items()
                if name.startswith("distinct/batch256")
            ]
        )
        row = next(
            line
            for line in text.split("distinct concepts in a batch:")[1].splitlines()
            if line.startswith("| 256 |")
        )
        assert f"| {100 * mean:.1f} ±" in row
        assert (tmp_path / "study" / "accuracy_by_batch.png").stat().st_size > 5000
        mean = np.mean([found[f"combined/data_seed{seed}"]["figures"][claims.SHIFT] for seed in plan.SEEDS])
        row = next(line for line in text.splitlines() if line.startswith("| 0: more data |"))
        assert row.startswith(f"| 0: more data | 3 | {100 * mean:.1f} ±")
        assert (tmp_path / "study" / "comparisons.png").stat().st_size > 5000


def test_the_record_keeps_what_the_claims_read(rng, tmp_path):
    found = whole_study(rng)
    stage = found["longer/batch64_seed1"]["stages"]["contrastive"]
    stage["losses"] = {str(step): float(rng.normal()) for step in range(10, 12290, 10)}
    store.write_record(str(tmp_path / "runs.json"), found)
    kept = store.read_record(str(tmp_path / "runs.json"))
    losses = kept["longer/batch64_seed1"]["stages"]["contrastive"]["losses"]
    assert 90 <= len(losses) <= 100 and losses.items() <= stage["losses"].items()
    stage["losses"] = losses
    assert kept == found
    assert claims.verdicts(claims.Study(kept)) == claims.verdicts(claims.Study(found))
    assert store.read_record(str(tmp_path / "none.json")) == {}
    # Another folder adopts what it has not finished itself.
    folder = str(tmp_path / "study")
    store.write(folder, "combined/data_seed0", {"figures": {claims.SHIFT: 0.9}})
    assert len(store.adopt(folder, str(tmp_path / "runs.json"), "combined/")) == 11
    assert len(store.adopt(folder, str(tmp_path / "runs.json"))) == len(found) - 12
    adopted = store.finished(folder)
    assert adopted.pop("combined/data_seed0")["figures"] == {claims.SHIFT: 0.9}
    assert adopted == {name: one for name, one in found.items() if name != "combined/data_seed0"}
    with pytest.raises(ValueError, match="there is no record of runs in"):
        store.adopt(folder, str(tmp_path / "none.json"))


def test_the_page_is_what_its_record_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # without runs of one's own
    code = make_report.update([str(ROOT / "docs/results/study.md")], check=True)
    assert code == 0, capsys.readouterr()


def test_the_binary_lists_the_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "tools/run_study.py", f"--folder={tmp_path}", "--list"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "rate/batch4096_rate0.008" in done.stdout
        and "wait for a learning rate" in done.stdout.splitlines()[-1]
    )

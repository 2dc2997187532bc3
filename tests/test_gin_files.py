"""Every run file that ships describes a recipe whose models can be built."""

from pathlib import Path

import pytest

from basic_tf import configurables

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / "gin" / "runs").glob("*.gin"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # includes are written from the project's root


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_parses_builds_and_reads_back(path):
    configurables.parse([str(path)], [])
    recipe = configurables.recipe()
    for stage in recipe.stages:
        task = stage.task(metadata={"label_names": ["a", "b", "c"]})
        model = task.model if configurables.is_contrastive(stage) else task.model.image_tower
        specs = model.specs()  # nothing is allocated
        assert specs and len({spec.path for spec in specs}) == len(specs)
        prefix = "" if configurables.is_contrastive(stage) else "image_tower/"
        stage.rules.resolve([prefix + spec.path for spec in specs if spec.trainable])
    text = configurables.config_text()
    configurables.parse_text(text)
    configurables.recipe()
    assert configurables.config_text() == text


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_is_an_experiment_card(path):
    head = "".join(
        line for line in path.read_text().splitlines(keepends=True) if line.startswith("#")
    ).lower()
    for word in ("command", "hardware", "time", "result"):
        assert word in head, f"{path.name} does not say its {word}"


def test_no_recipe_is_said():
    configurables.parse([], ["Stage.batch_size = 8"])
    with pytest.raises(configurables.GinError, match=r"bind no Recipe\.stages"):
        configurables.recipe()

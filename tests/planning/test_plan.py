"""The whole plan of a small recipe: sums, phases, recommendation, and errors in one line."""

import dataclasses
import json

import pytest
from absl import flags

from basic_tf import configurables, plan
from basic_tf.planning import compute, optimizer_memory, recommendation, step_memory, subject

GIN = "tests/training/tiny.gin"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def stage_subject(name, *bindings):
    configurables.parse([GIN], list(bindings))
    return subject.describe(configurables.recipe().stage(name), 10)


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of the binary, in this process."""
    saved = {name: (flag.value, flag.present) for name, flag in flags.FLAGS._flags().items()}
    try:
        flags.FLAGS(["plan", *arguments])
        plan.main(["plan"])
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    finally:
        for name, (value, present) in saved.items():
            flags.FLAGS[name].value, flags.FLAGS[name].present = value, present
    out, err = capsys.readouterr()
    return code, out, err


def test_json_holds_what_tools_read(capsys):
    code, out, _ = run(capsys, f"--gin_file={GIN}", "--json", "--memory_limit_gib=64")
    found = json.loads(out)
    assert code == 0 and found["stage"] == "finetune"
    parameters = found["parameters"]
    assert parameters["total"] == sum(
        parameters[p] for p in ("image_tower", "text_tower", "projections", "temperature")
    )
    assert parameters["references"] == []
    causes = found["bytes_per_device"]
    assert {"weights", "slots", "gradients", "activations", "embeddings", "loss", "peak"} <= set(causes)
    assert causes["weights"] == 4 * parameters["total"]
    totals = {name: sum(phase.values()) for name, phase in found["phases"].items()}
    assert causes["peak"] == max(totals.values()) == totals[found["peak_phase"]]
    assert causes["peak"] <= sum(v for k, v in causes.items() if k != "peak")
    assert found["flops"]["step"] == found["flops"]["step_per_pair"] * 16 + found["flops"]["loss"]
    assert found["recommendation"]["microbatch"] == 16 and found["recommendation"]["remat"] == "none"


def test_the_table_is_for_people(capsys):
    code, out, _ = run(capsys, f"--gin_file={GIN}", "--stage=pretrain", "--classes=7")
    assert code == 0
    assert "image tower" in out and "peak" in out and "The step needs" in out and "text tower" not in out


def test_a_limit_that_nothing_fits_is_said_in_one_line(capsys):
    code, _, err = run(
        capsys,
        f"--gin_file={GIN}",
        "--stage=contrastive",
        "--device=accelerator",
        "--mesh=2x1",
        "--batch=2",
        "--memory_limit_gib=0.0002",
    )
    assert code == 2
    assert err.startswith("plan: nothing fits 0.0002 GiB") and err.count("\n") == 1 and "alone take" in err


def test_what_would_fit_shares_rows_before_it_repeats_arithmetic():
    _, found = stage_subject("contrastive", "TextTransformer.vocabulary_size = 65536")  # one large weight
    one = step_memory.Setting(pairs=1, microbatch=1, remat="blocks", host=False)
    quarter, eighth = (
        step_memory.step_memory(found, dataclasses.replace(one, model_axis=n)).peak for n in (4, 8)
    )
    limit = int(1.2 * eighth)
    assert quarter > limit
    for mesh, pairs, proposed in (
        ((8, 1), 32, "--mesh=8x1 --shard_over=batch"),  # the devices that are there
        ((2, 4), 32, "--mesh=8x1 --shard_over=batch"),  # as many, none of which repeats another's work
        ((1, 1), 32, "--mesh=8x1 --shard_over=batch"),  # more of them
        ((1, 1), 1, "--mesh=1x8 --shard_over=model"),  # a batch that cannot be cut
    ):
        setting = dataclasses.replace(one, pairs=pairs, batch_axis=mesh[0], model_axis=mesh[1])
        words = recommendation.remedy(found, setting, limit)
        assert words.startswith("weights cut over 8 devices would")
        assert words.endswith(f"--runtime=dtensor {proposed}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mesh=3x1"], "cannot be divided among the 3 devices"),
        (["--mesh=3"], "is not BATCHxMODEL"),
        (["--microbatch=5"], "cannot be cut into microbatches of 5"),
        (["--runtime=mirrored", "--mesh=2x2"], "keeps whole weights"),
        (["--runtime=tpu", "--mesh=2x1", "--shard_over=batch"], "keeps whole weights"),
        (["--runtime=one_device", "--mesh=2x1"], "has one device"),
        (["--stage=nothing"], "is not one of pretrain, contrastive, finetune"),
        (["--gin_param=CoAtNet.variant = 'coatnet_9'"], "coatnet_9"),
        (["--gin_file=missing.gin"], "there is no gin file missing.gin"),
    ],
)
def test_errors_take_one_line(capsys, arguments, words):
    code, out, err = run(capsys, f"--gin_file={GIN}", *arguments)
    assert code == 1 and not out
    assert err.startswith("plan: ") and err.count("\n") == 1 and words in err


def test_devices_that_see_the_same_rows_repeat_the_work():
    task, found = stage_subject("finetune")
    alone, shared, repeated = (
        compute.flops(task, set(found.trained), setting, set())["step_per_device"]
        for setting in (
            step_memory.Setting(16),
            step_memory.Setting(16, batch_axis=8),
            step_memory.Setting(16, model_axis=8),
        )
    )
    assert repeated == 8 * shared == alone


def test_bytes_of_the_optimizer_are_those_of_its_slots():
    task, found = stage_subject("finetune")
    model = task.model
    variables = {path: v for path, v in model.parameters().items() if path in found.trained}
    optimizer = configurables.recipe().stage("finetune").optimizer(0.0, rules=None)
    optimizer.build(variables)
    allocated = sum(slot.shape.num_elements() * slot.dtype.size for slot in optimizer.slots().values())
    shapes = {spec.path: spec.shape for spec in found.specs if spec.path in found.trained}
    assert optimizer_memory.optimizer_memory(found.rule, shapes, "float32", 1, True).slots == allocated


def test_the_state_of_basic_s_is_half_its_weights():
    configurables.parse(["gin/models/basic_s.gin"], [])
    _, found = subject.describe(configurables.model_alone(), 10)
    shapes = {spec.path: spec.shape for spec in found.specs if spec.path in found.trained}
    slots = optimizer_memory.optimizer_memory(found.rule, shapes, "float32", 1, True).slots
    assert 0.5 <= slots / (4 * sum(spec.size for spec in found.specs if spec.path in found.trained)) <= 0.55


@pytest.mark.slow
def test_more_rows_need_more_and_more_devices_less():
    _, found = stage_subject("finetune", "finetune/CoAtNet.batch_norm = 'frozen'")
    base = step_memory.Setting(pairs=16, microbatch=8, host=False)
    peak = step_memory.step_memory(found, base).peak
    wider = step_memory.step_memory(found, dataclasses.replace(base, microbatch=16)).peak
    shared = step_memory.step_memory(found, dataclasses.replace(base, pairs=32, batch_axis=4)).peak
    assert wider > peak
    assert shared < wider
    candidates = recommendation.recommend(found, base, wider)
    assert all(c.plan.peak <= wider for c in candidates) and candidates[0].microbatch == 16
    tight = recommendation.recommend(found, base, peak)
    assert next(c.microbatch or 0 for c in tight) < 16


def test_weights_cut_over_the_batch_axis_take_their_share_and_no_sum_of_their_own():
    _, found = stage_subject("finetune", "TextTransformer.vocabulary_size = 4096")
    table = next(
        s for s in found.specs if s.path == "text_tower/embedding/tokens"
    )  # all else is below 16,384 elements
    assert [s.path for s in found.specs if s.size >= 16_384] == [table.path]
    replicas = step_memory.Setting(pairs=32, microbatch=8, batch_axis=2, host=False)
    mesh = dataclasses.replace(replicas, shard_over="batch")
    whole, cut = (step_memory.step_memory(found, setting) for setting in (replicas, mesh))
    assert whole.largest("weights") - cut.largest("weights") == 4 * table.size // 2
    # bfloat16 momentum and float32 average; the factors of the second moment are cut where they keep the axis.
    saved = whole.largest("slots") - cut.largest("slots")
    assert 6 * table.size // 2 <= saved <= 6 * table.size // 2 + 4 * 4096
    gradients = 4 * sum(s.size for s in found.specs if s.path in found.trained)
    assert whole.phases["update"]["gradients"] == 2 * gradients
    assert cut.phases["update"]["gradients"] == gradients - 4 * table.size // 2


def test_a_frozen_tower_keeps_nothing_and_ghost_groups_divide_the_microbatch():
    _, frozen = stage_subject("contrastive")
    plan_of = step_memory.step_memory(frozen, step_memory.Setting(pairs=16, microbatch=8, host=False))
    assert "pass 2, image tower" not in plan_of.phases and "pass 2, text tower" in plan_of.phases
    _, ghost = stage_subject("pretrain")
    assert recommendation.ghost_group(ghost) == 4
    assert recommendation.microbatches(24, 4) == [4, 8, 12, 24]

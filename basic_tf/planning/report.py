"""The plan as a table for people and as one JSON object."""

from rich import box
from rich.console import Console
from rich.table import Table

from basic_tf.planning import parameters
from basic_tf.planning.recommendation import GIB, Candidate
from basic_tf.planning.step_memory import CAUSES, Setting, StepMemory, Subject


def as_json(
    stage: str, subject: Subject, setting: Setting, plan: StepMemory, flops: dict, candidates: list[Candidate],
    chosen: Candidate | None, message: str,
) -> dict:  # fmt: skip
    """Everything that the table shows; bytes and FLOPs as plain numbers."""
    counts = parameters.by_part(subject.specs)
    trained = [spec for spec in subject.specs if spec.path in subject.trained]
    slots = sum(
        slot.bytes
        for s in trained
        for slot in subject.rule.slot_specs(s.path, s.shape, subject.dtype).values()
    )
    return {
        "stage": stage,
        "setting": {
            "batch": setting.pairs, "rows_per_device": setting.rows, "microbatch": setting.microbatch or setting.rows,
            "remat": setting.remat, "mesh": f"{setting.batch_axis}x{setting.model_axis}",
            "weights_cut_into": setting.shards,
        },
        "parameters": counts | {"references": [vars(r) | {"difference": r.difference} for r in references(subject)]},
        "optimizer_state_share": slots / (4 * sum(spec.size for spec in trained)),
        "flops": flops,
        "bytes_per_device": {cause: plan.largest(cause) for cause in CAUSES} | {"peak": plan.peak},
        "peak_phase": plan.peak_phase,
        "phases": plan.phases,
        "candidates": [
            {"remat": c.remat, "microbatch": c.microbatch, "peak": c.plan.peak} for c in candidates
        ],
        "recommendation": chosen and {"remat": chosen.remat, "microbatch": chosen.microbatch, "peak": chosen.plan.peak},
        "message": message,
    }  # fmt: skip


def references(subject: Subject) -> list[parameters.Reference]:
    """The published or recalled counts that belong to the towers, where there are any."""
    found = [parameters.image_reference(subject.towers["image_tower"])]
    if "text_tower" in subject.towers:
        found.append(parameters.text_reference(subject.towers["text_tower"]))
    return [r for r in found if r]


def show(report: dict, plan: StepMemory, console: Console | None = None) -> None:
    """Prints the tables."""
    console = console or Console()
    console.print(_parameters(report))
    flops = report["flops"]
    forward = ", ".join(
        f"{k.removesuffix('_forward')} {v / 1e9:.2f}" for k, v in flops.items() if k.endswith("_forward")
    )
    console.print(
        f"FLOPs (multiply-add = 2), billions a pair: forward {forward}; training {flops['step_per_pair'] / 1e9:.2f} a pair; "
        f"a step of {report['setting']['batch']:,} pairs {flops['step'] / 1e15:.3f} x 10^15\n"
    )
    console.print(_bytes(report, plan))
    if report["candidates"]:
        console.print(_candidates(report))
    console.print(report["message"], soft_wrap=True)


def _parameters(report: dict) -> Table:
    table = Table("parameters", "this model", box=box.SIMPLE, title=f"stage {report['stage']}")
    for part, count in report["parameters"].items():
        if part != "references" and count:
            table.add_row(part.replace("_", " "), f"{count:,}")
    for row in report["parameters"]["references"]:
        table.add_row(
            f"{row['name']}, counted as {row['source']}",
            f"{row['counted']:,} ({row['source']} {row['count']:,.0f}, {row['difference']:+.2%})",
        )
    table.add_row("optimizer state / trained fp32 bytes", f"{report['optimizer_state_share']:.3f}")
    return table


def _bytes(report: dict, plan: StepMemory) -> Table:
    setting = report["setting"]
    title = (
        f"GiB per device: {setting['rows_per_device']:,} rows, microbatch {setting['microbatch']}, "
        f"remat {setting['remat'] or 'of each tower'}, mesh {setting['mesh']}, "
        f"weights cut into {setting['weights_cut_into']}"
    )
    table = Table("cause", *plan.phases, box=box.SIMPLE, title=title)
    for cause in CAUSES:
        table.add_row(cause, *(f"{phase[cause] / GIB:.3f}" for phase in plan.phases.values()))
    marks = (
        f"{plan.total(name) / GIB:.3f}" + (" peak" if name == plan.peak_phase else "") for name in plan.phases
    )
    table.add_row("together", *marks, style="bold")
    return table


def _candidates(report: dict) -> Table:
    table = Table("remat", "largest microbatch that fits", "peak, GiB", box=box.SIMPLE)
    for row in report["candidates"]:
        fits = str(row["microbatch"]) if row["microbatch"] else "none (smallest shown)"
        table.add_row(row["remat"], fits, f"{row['peak'] / GIB:.2f}")
    return table

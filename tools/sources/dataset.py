"""A reader's rows to a dataset on disk: counting, converting, the json, the report."""

import dataclasses
import itertools
import posixpath
import time
from collections.abc import Mapping

import tensorflow as tf
from rich.console import Console
from rich.table import Table

from basic_tf.data.records import RecordWriter
from tools.sources.conversion import Check, convert
from tools.sources.filters import CaptionCounts
from tools.sources.progress import progress_bar
from tools.sources.rejects import RejectLog
from tools.sources.rows import Row


def write_dataset(
    source,
    check: Check,
    output_dir: str,
    name: str,
    *,
    shards: int = 8,
    records_per_shard: int | None = None,
    max_reject_share: float = 0.05,
    threads: int | None = None,
    limit: int | None = None,
    facts: Mapping | None = None,
    console: Console | None = None,
) -> RejectLog:
    """Writes <output_dir>/<name>.json, its shards, and <name>.rejects.jsonl; returns the log of rejected rows.

    source: a reader, with `rows(pictures)`, which yields `rows.Row` and `rows.BadRow`, `total` (None if unknown) and
    `labels`, a LabelTable. limit: of rows read. facts: for the dataset's json. The dataset appears whole or not at all;
    the reject file stays either way. TooManyRejectsError; ValueError if no row is left.
    """
    console, start = console or Console(), time.monotonic()
    total = source.total if limit is None else min(source.total or limit, limit)
    tf.io.gfile.makedirs(output_dir)
    rejects = posixpath.join(output_dir, f"{name}.rejects.jsonl")
    with progress_bar(console) as progress:
        if check.filters.caption_repeats is not None and check.repeats is None:
            task = progress.add_task("counting captions", total=total)
            counts = CaptionCounts()
            for row in itertools.islice(source.rows(pictures=False), limit):
                if isinstance(row, Row):
                    counts.add(row.captions)
                progress.advance(task)
            check = dataclasses.replace(check, repeats=counts)
        # A limit may ask for more rows than there are: then the share is of the rows that were read.
        log = RejectLog(rejects, max_reject_share, total if limit is None else None)
        with (
            log,
            RecordWriter(output_dir, name, shards=shards, records_per_shard=records_per_shard) as writer,
        ):
            task = progress.add_task("converting", total=total)
            rows = itertools.islice(source.rows(), limit)
            convert(rows, check, writer, log, lambda: progress.advance(task), threads)
            log.close()
            if not writer.count:
                raise ValueError(
                    f"no row became a record ({_causes(log)}): nothing is written; see {rejects}"
                )
            labels = {"label_names": source.labels.names} if source.labels.names else {}
            path = writer.finish(
                **{"licences": [getattr(source, "licence", "") or "not stated"]}
                | labels
                | dict(facts or {})
                | {"filters": dataclasses.asdict(check.filters), "conversion": log.as_json()}
                | ({"near_duplicates": check.evaluation.as_json()} if check.evaluation else {})
            )
    _report(log, writer.count, console)
    seconds = time.monotonic() - start
    console.print(
        f"{path}: {writer.count:,} records after {seconds:.1f} s ({log.rows / seconds:,.0f} rows/s)"
    )
    return log


def _report(log: RejectLog, written: int, console: Console) -> None:
    """A table of what became of the rows."""
    table = Table("", "cause", "rows", title=f"{log.rows:,} rows")
    table.add_row("written", "", f"{written:,}")
    for kind, causes in log.causes.items():
        for cause, count in causes.most_common():
            table.add_row(kind, cause, f"{count:,}")
    console.print(table)
    if log.rows > written:
        console.print(f"rejected rows, with file and place: {log.path}")


def _causes(log: RejectLog) -> str:
    parts = [f"{cause} {count:,}" for causes in log.causes.values() for cause, count in causes.most_common(4)]
    return ", ".join(parts) or "there was none"

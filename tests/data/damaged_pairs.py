"""Pairs of which some are damaged, each in a known way, written in the formats that users have."""

import base64
import csv
import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from tests.data.pictures import jpeg, png, smooth

# What is done to a row -> the cause that must stand in the reject file.
COMMON = {
    "noise": "unknown format",
    "cut": "undecodable JPEG",
    "cut png": "undecodable PNG",
    "no bytes": "empty picture",
    "one pixel": "wrong size",
    "blank": "empty caption",
    "latin": "bad encoding",
}
WAYS = {
    "csv": COMMON | {"gone": "missing file", "short": "missing column", "quote": "malformed row"},
    "jsonl": COMMON | {"gone": "missing file", "short": "missing column", "quote": "malformed row"},
    "parquet": COMMON | {"gone": "missing picture", "null": "empty caption"},
    "webdataset": COMMON | {"gone": "missing picture", "short": "no caption and no label"},
}


@dataclasses.dataclass
class Pair:
    id: str
    picture: bytes
    caption: str
    damage: str | None = None


def pairs(count: int, ways, rng: np.random.Generator, share: float = 0.05) -> list[Pair]:
    """count pairs, `share` of them damaged, in each way about as often, at random places."""
    damaged = rng.choice(count, max(len(ways), round(share * count)), replace=False).tolist()
    kinds = {row: list(ways)[i % len(ways)] for i, row in enumerate(damaged)}
    known = [
        encode(smooth(rng, int(h), int(w))) for encode in (jpeg, png) for h, w in rng.integers(9, 40, (8, 2))
    ]
    rows = []
    for number in range(count):
        pair = Pair(f"{number:06d}", known[rng.integers(len(known))], f'a thing, "number" {number}\u00e9')
        pair.damage = kinds.get(number)
        pair.picture = {
            "noise": b"ab" + rng.bytes(200),
            "cut": jpeg(smooth(rng, 30, 31))[: -int(rng.integers(3, 200))],
            "cut png": png(smooth(rng, 30, 31))[: -int(rng.integers(13, 200))],
            "no bytes": b"",
            "one pixel": png(np.zeros((1, 1, 3), np.uint8)),
        }.get(pair.damage, pair.picture)
        pair.caption = {"blank": " \t", "latin": "caf\udce9"}.get(pair.damage, pair.caption)
        rows.append(pair)
    return rows


def write(kind: str, rows: list[Pair], folder: Path) -> str:
    """Writes the pairs; returns what to give as --input."""
    return {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet, "webdataset": _tars}[kind](rows, folder)


def _pictures(rows: list[Pair], folder: Path) -> None:
    (folder / "pictures").mkdir()
    for pair in rows:
        if pair.damage != "gone":
            (folder / "pictures" / pair.id).write_bytes(pair.picture)


def _csv(rows, folder):
    _pictures(rows, folder)
    with open(folder / "pairs.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "caption"])
        for pair in rows:
            if pair.damage == "quote":  # never closed: it would swallow the rows behind it
                file.write(f'{pair.id},pictures/{pair.id},"open\r\n')
            else:
                cells = [pair.id, f"pictures/{pair.id}", pair.caption]
                writer.writerow(cells[: 2 if pair.damage == "short" else 3])
    return str(folder / "pairs.csv")


def _jsonl(rows, folder):
    _pictures(rows, folder)
    with open(folder / "pairs.jsonl", "wb") as file:
        for pair in rows:
            values = {"id": pair.id, "image": f"pictures/{pair.id}", "caption": pair.caption}
            if pair.damage == "short":
                del values["caption"]
            line = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")
            file.write((line[:-2] if pair.damage == "quote" else line) + b"\n")
    return str(folder / "pairs.jsonl")


def _parquet(rows, folder):
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq

    texts = [pair.caption.encode("utf-8", "surrogateescape") for pair in rows]
    # Bytes that are no UTF-8 get into a column of strings through careless writers: here by hand.
    offsets = np.cumsum([0] + [len(text) for text in texts]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts))]
    captions = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    nulls = pa.array([pair.damage == "null" for pair in rows])
    captions = pa.compute.if_else(nulls, pa.scalar(None, pa.string()), captions)
    pictures = pa.array([None if pair.damage == "gone" else pair.picture for pair in rows], pa.binary())
    table = pa.table({"key": [pair.id for pair in rows], "jpg": pictures, "txt": captions, "extra": nulls})
    pq.write_table(table, folder / "pairs.parquet", row_group_size=100)
    return str(folder / "pairs.parquet")


def tar_of(samples: list[dict[str, bytes]], file) -> None:
    """Writes samples {"__key__": ..., ending: bytes} as webdataset's TarWriter does."""
    with tarfile.open(fileobj=file, mode="w") as tar:
        for sample in samples:
            for end, data in sample.items():
                if end != "__key__":
                    info = tarfile.TarInfo(f"{sample['__key__']}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def sample(pair: Pair) -> dict[str, bytes]:
    found = {"__key__": pair.id, "jpg": pair.picture, "json": json.dumps({"width": 3}).encode()}
    if pair.damage != "short":
        found["txt"] = pair.caption.encode("utf-8", "surrogateescape")
    if pair.damage == "gone":
        del found["jpg"]
    return found


def _tars(rows, folder):
    size = -(-len(rows) // 3)
    for shard in range(3):
        with open(folder / f"{shard:05d}.tar", "wb") as file:
            tar_of([sample(pair) for pair in rows[shard * size : (shard + 1) * size]], file)
    return str(folder / "*.tar")


def jsonl_base64(rows, path: Path) -> str:
    lines = [{"key": p.id, "image": base64.b64encode(p.picture).decode(), "text": p.caption} for p in rows]
    path.write_text("".join(json.dumps(line) + os.linesep for line in lines))
    return str(path)

"""The emoji packages in small: tests/data/fixtures/emoji.json in the files that `npm pack` writes."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

from tools.emoji import packages
from tools.emoji.concepts import code_of
from tools.emoji.styles import slug
from tools.sources import npm

ENTRIES = json.loads((Path(__file__).parent / "fixtures" / "emoji.json").read_text(encoding="utf-8"))[
    "entries"
]
CODES = {entry["name"]: code_of(entry["emoji"]) for entry in ENTRIES}

# Like the real packages: some know codepoints, some names only, one the older names without hyphens.
WITH_CODES = {"noto", "twemoji", "openmoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"}
LACKING = {
    "emojione": {"ladder", "socks"},
    "emojione-v1": {"door"},
    "fxemoji": {"socks", "ladder", "game die"},
}
LOOKS = {
    "noto": ("#d04030", ""),
    "twemoji": ("#3060d0", "rotate(8 16 16)"),
    "emojione": ("#20a040", "translate(1 1)"),
    "emojione-monotone": ("currentColor", "rotate(-8 16 16)"),
    "fluent-emoji-flat": ("#e0a020", "scale(.95)"),
    "fluent-emoji-high-contrast": ("currentColor", "scale(.9)"),
    "noto-v1": ("#a02060", "translate(-1 0)"),
    "openmoji": ("#60c0c0", "rotate(20 16 16)"),
    "emojione-v1": ("#806040", "translate(0 2)"),
    "fxemoji": ("#404040", "scale(.8) translate(4 4)"),
}


def icon_set(style: str) -> dict[str, dict]:
    """icons.json and chars.json of one style."""
    color, transform = LOOKS[style]
    icons, aliases, chars = {}, {}, {}
    for entry in ENTRIES:
        if entry["name"] in LACKING.get(style, ()):
            continue
        name = slug(entry["name"])
        if style == "fxemoji":
            name = slug(entry["unicode_name"]).replace("-", "")
        icons[name] = {"body": f'<g fill="{color}" transform="{transform}">{entry["drawing"]}</g>'}
        if style in WITH_CODES:
            # With the variation selector, as some sets have it.
            chars["-".join(f"{ord(c):04x}" for c in entry["emoji"])] = name
    if style == "twemoji":  # an alias: the picture of another name, mirrored
        aliases["flame"] = {"parent": "fire", "hFlip": True}
        chars = {code: "flame" if name == "fire" else name for code, name in chars.items()}
    return {
        "icons.json": {"icons": icons, "aliases": aliases, "width": 32, "height": 32},
        "chars.json": chars,
    }


def texts() -> dict[str, dict[str, object]]:
    """The files of the three packages of names."""
    codes = [code_of(entry["emoji"]).upper() for entry in ENTRIES]
    subgroups = sorted({entry["subgroup"] for entry in ENTRIES})
    shortcodes = dict(zip(codes, (entry["shortcodes"] for entry in ENTRIES)))
    data = [
        {"emoji": entry["emoji"], "tags": entry["tags"], "subgroup": subgroups.index(entry["subgroup"])}
        for entry in ENTRIES
    ]
    base = {entry["emoji"]: {"name": entry["name"], "group": entry["group"]} for entry in ENTRIES}
    lists = {e["emoji"]: [slug(e["name"]).replace("-", "_"), *e["keywords"]] for e in ENTRIES}
    empty = ("cldr", "emojibase-legacy", "github", "iamcal", "joypixels")
    return {
        packages.UNICODE_EMOJI.name: {"data-by-emoji.json": base},
        packages.EMOJILIB.name: {"dist/emoji-en-US.json": lists},
        packages.EMOJIBASE.name: {
            "en/data.json": data,
            "en/messages.json": {"subgroups": [{"order": i, "key": k} for i, k in enumerate(subgroups)]},
            "meta/unicode-names.json": dict(zip(codes, (entry["unicode_name"] for entry in ENTRIES))),
            "en/shortcodes/emojibase.json": shortcodes,
            **{f"en/shortcodes/{name}.json": {} for name in empty},
        },
    }


def write_packages(folder: Path, monkeypatch, looks: dict[str, tuple[str, str]] | None = None) -> Path:
    """Writes the .tgz files and makes them the known ones. looks: overrides LOOKS."""
    for style, look in (looks or {}).items():
        monkeypatch.setitem(LOOKS, style, look)
    folder.mkdir(parents=True, exist_ok=True)
    content = texts() | {package.name: icon_set(s) for s, package in packages.STYLE_PACKAGES.items()}
    known = {}
    for package in packages.PACKAGES:
        file = folder / package.file_name
        with tarfile.open(file, "w:gz") as archive:
            for name, value in content[package.name].items():
                data = json.dumps(value).encode()
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        known[package.name] = dataclasses.replace(package, integrity=npm.integrity(file))
    monkeypatch.setattr(packages, "PACKAGES", tuple(known.values()))
    monkeypatch.setattr(
        packages, "STYLE_PACKAGES", {style: known[p.name] for style, p in packages.STYLE_PACKAGES.items()}
    )
    return folder

"""Which icon of a style shows which concept."""

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tools.emoji.concepts import Concept, normal_code
from tools.sources import npm
from tools.sources.render import Picture, icon_document

_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/Library/Fonts",
)


def slug(name: str) -> str:
    """A name as iconify writes it: "man’s shoe" -> "mans-shoe"."""
    text = unicodedata.normalize("NFKD", name.lower())
    text = "".join(c for c in text if not unicodedata.combining(c) and c not in "'’")
    return re.sub(r"[^a-z0-9]+", "-", text.replace("&", " and ")).strip("-")


def join(concepts: Sequence[Concept], icons: Iterable[str], by_code: Mapping[str, str]) -> dict[str, str]:
    """Concept code -> icon name, for the concepts that the style has.

    By codepoint where the set knows them; else by CLDR name, by the character's own Unicode name, by a
    shortcode, in this order, hyphens ignored (older sets use older names; fxemoji writes "babychick"). An
    icon serves one concept.
    """
    icons = list(icons)
    names = {name: name for name in icons}
    for name in icons:
        names.setdefault(name.replace("-", ""), name)
    ways = (
        lambda concept: [by_code.get(concept.code)],
        lambda concept: [names.get(slug(concept.name)), names.get(slug(concept.name).replace("-", ""))],
        lambda concept: [names.get(slug(concept.unicode_name).replace("-", ""))],
        lambda concept: [names.get(slug(alias).replace("-", "")) for alias in concept.aliases],
    )
    joined: dict[str, str] = {}
    taken: set[str] = set()
    for way in ways:
        for concept in concepts:
            if concept.code in joined:
                continue
            for icon in way(concept):
                if icon and icon not in taken:
                    joined[concept.code] = icon
                    taken.add(icon)
                    break
    return joined


def icon_pictures(
    archive: Path, concepts: Sequence[Concept], mistaken: Iterable[str] = ()
) -> dict[str, Picture]:
    """The SVGs of a style of an @iconify-json package, by concept code; none for the codes in `mistaken`."""
    icons, chars = npm.read_json(archive, "icons.json", "chars.json")
    aliases = icons.get("aliases", {})
    by_code: dict[str, str] = {}
    for code, name in chars.items():
        by_code.setdefault(normal_code(code), name)
    joined = join(concepts, [*icons["icons"], *aliases], by_code)
    return {
        code: Picture(f"{archive.name}: {name}", svg=icon_document(icons, name))
        for code, name in joined.items()
        if code not in mistaken
    }


def font_pictures(font: Path, concepts: Sequence[Concept]) -> dict[str, Picture]:
    """The glyphs of a font for the concepts that are one character, by concept code."""
    from matplotlib.ft2font import FT2Font  # heavy, and needed here only

    known = FT2Font(str(font)).get_charmap()
    return {
        concept.code: Picture(f"{font}: {concept.code}", text=chr(int(concept.code, 16)), font=str(font))
        for concept in concepts
        if "-" not in concept.code and int(concept.code, 16) in known
    }


def find_font(family: str, folders: Iterable[str] = _FONT_FOLDERS) -> Path | None:
    """The file of an installed font family, asked of fontconfig, else looked for in the usual folders."""
    if shutil.which("fc-list"):
        found = subprocess.run(
            ["fc-list", "--format=%{file}\n", f":family={family}"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split("\n")
        if found[0]:
            return Path(sorted(filter(None, found))[0])
    for folder in folders:
        root = Path(folder).expanduser()
        if root.is_dir():
            for file in sorted(root.rglob(f"{family}*")):
                if file.suffix.lower() in (".ttf", ".otf"):
                    return file
    return None

"""What is said of a picture: several captions, other ones for each style, none naming a held-out concept."""

from collections.abc import Sequence

from tools.emoji.concepts import Concept
from tools.sources import choices
from tools.sources.phrases import Phrases

TEMPLATES = (
    "a picture of {a}",
    "a picture of the {}",
    "an icon of {a}",
    "an image of {}",
    "a small drawing of {a}",
    "a simple drawing of the {}",
    "a cartoon of {a}",
    "this is {a}",
    "{} icon",
    "the symbol for {}",
    "a photo of {a}",
    "clip art of {a}",
)
_TEMPLATES_EACH = 3
_SHORTCODES_EACH = 2


def fixed_texts(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """The words of captions that belong to no concept: templates, groups and subgroups."""
    groups = {concept.group for concept in concepts} | {kind(concept) for concept in concepts}
    return (*(template.format("", a="a") for template in TEMPLATES), "a kind of", *sorted(groups))


def kind(concept: Concept) -> str:
    """The subgroup in words: "food-fruit" -> "food fruit"."""
    return concept.subgroup.replace("-", " ") or concept.group.lower()


def keywords(concept: Concept, forbidden: Phrases) -> list[str]:
    """The keywords that may be said."""
    return [word for word in concept.keywords if word not in forbidden]


def described(concept: Concept, most: int = 10) -> str:
    """A name with its keywords, as captions have it: "cat face: animal, meow, pet"."""
    return f"{concept.name}: {', '.join(concept.keywords[:most])}" if concept.keywords else concept.name


def captions(concept: Concept, style: str, forbidden: Phrases, seed: int) -> list[str]:
    """About ten distinct captions of the picture of a concept in a style; its name first.

    Keyword lists are shuffled subsets of different sizes, drawn by (seed, concept, style). Captions that name
    something forbidden are left out.
    """
    draw = (seed, concept.code, style)
    name, article = concept.name, _article(concept.name)
    words = keywords(concept, forbidden)
    texts = [name]
    for template in choices.ordered(TEMPLATES, *draw, "templates")[:_TEMPLATES_EACH]:
        texts.append(template.format(name, a=article))
    if words:
        some = choices.ordered(words, *draw, "some")
        texts.append(f"{name}: {', '.join(some[: 2 + choices.number(*draw, 'size') % 4])}")
        most = choices.ordered(words, *draw, "most")
        texts.append(f"{name}: {', '.join(most[:10])}")
        few = choices.ordered(words, *draw, "few")
        texts.append(", ".join(few[: 3 + choices.number(*draw, "few size") % 3]))
        all_of_them = choices.ordered([*words, name], *draw, "all")
        texts.append(", ".join(all_of_them[: 5 + choices.number(*draw, "all size") % 6]))
        texts.append(f"{name} {choices.pick(words, *draw, 'beside')}")
    texts += choices.ordered(concept.aliases, *draw, "shortcodes")[:_SHORTCODES_EACH]
    texts.append(f"{name}, a kind of {kind(concept)}")
    return [text for text in dict.fromkeys(texts) if text and text not in forbidden]


def retrieval_captions(concept: Concept, style: str, seed: int, count: int = 5) -> list[str]:
    """Captions that fit one concept only: each has the name."""
    texts = captions(concept, style, Phrases(()), seed)
    return [text for text in texts if concept.name in text][:count]


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"

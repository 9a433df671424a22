"""Normalise class names, and detect names that a person would read as the same.

A label is in Unicode's composed form (NFC), with whitespace trimmed and collapsed. Two labels that then differ only by
case, by lookalike or invisible characters, by space, underscore or hyphen, or in how a number is written (1 and 1.0)
are one class in two spellings: the run stops and names both.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from rootstock.system.errors import SourceError

MAX_LISTED = 5  # pairs that an error lists
NUMBER = re.compile(r"([+-]?)0*(\d*)(?:\.(\d*?)0*)?")
DASHES = re.compile("[\u2010-\u2015\u2212]")
# Letters of other alphabets that look like Latin ones after case folding (from Unicode's confusables): in both cases,
# so that even a single letter is confusable; and as capitals only.
LIKE_LATIN = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0445\u0458\u0455\u0456\u0501\u04bb\u03bf\u0131", "aeopcxjsidhoi"
)
CAPITALS_LIKE_LATIN = str.maketrans(
    "\u0432\u043a\u043c\u043d\u0442\u0443\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03c1\u03c4\u03c5\u03c7",
    "bkmhtyabezhikmnptux",
)  # fmt: skip
# Invisible besides control and format characters: fillers, variation selectors (Unicode's Default_Ignorable).
UNDRAWN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)
FLAG, TAGS = (
    "\U0001f3f4",
    re.compile("[\U000e0020-\U000e007f]"),
)  # flags of England, Scotland and Wales differ only in tags
JOINER = "\u200d"
QUOTES = re.compile("[\u2018\u2019\u00b4\u0060]")
# Names that file managers give copies: Windows, macOS, GNOME, KDE, in several languages.
COPY = r"(?:copy|kopie|copie|copia|cópia|kopia|kopio|kopi|kopya|másolat|\u043a\u043e\u043f\u0438\u044f)"
COPY_BEHIND = "(?:\u306e?\u30b3\u30d4\u30fc|\u526f\u672c|\u62f7\u8d1d|\ubcf5\uc0ac\ubcf8)"  # Japanese, Chinese, Korean
COPIED = re.compile(
    rf"{COPY}(?: of| von| de| di| af| van)? (?P<behind>.+)"
    rf"|(?P<before>.+?)(?:[ _\u2013\u2014-]+{COPY}|[ _\u2013\u2014-]*{COPY_BEHIND})(?:[ _-]*\(?\d+\)?)?"
    r"|(?P<numbered>.+?)[ _]*\(\d{1,2}\)"
)


@lru_cache(maxsize=100_000)
def clean(label: str) -> str:
    """Normalise a label: NFC, with whitespace trimmed and collapsed."""
    return " ".join(unicodedata.normalize("NFC", label).split())


@lru_cache(maxsize=100_000)
def lookalike_key(label: str) -> str:
    """Return a key that is equal for labels that look the same to a person."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", clean(label)).casefold())
    folded = folded.replace("i\u0307", "i")  # from a Turkish capital
    drawn = "".join(letter for before, letter in zip(f" {folded}", folded, strict=False) if _is_drawn(letter, before))
    seen = DASHES.sub("-", drawn).strip()
    if (number := NUMBER.fullmatch(seen)) and any(map(str.isdecimal, seen)):
        sign, whole, fraction = number.groups(default="")
        return f"{sign.replace('+', '')}{whole or '0'}{'.' if fraction else ''}{fraction}"
    seen = seen.translate(LIKE_LATIN)
    if sum(map(str.isalpha, seen)) > 1:  # a single letter may be Greek on purpose
        seen = QUOTES.sub("'", seen.translate(CAPITALS_LIKE_LATIN))
    spaced = re.sub(r"(?<=\w) ?- ?(?=\w)", " ", seen)
    return re.sub(r"[_\s]+", " ", re.sub(r"\.(?=\s|$)", "", spaced)).strip(" .") or seen


def _is_drawn(letter: str, before: str) -> bool:
    """Whether a character is visible, by itself or because it changes an emoji."""
    if letter == JOINER:
        return unicodedata.category(before) in ("So", "Sk", "Mn")
    if TAGS.match(letter):
        return before == FLAG or bool(TAGS.match(before))
    return unicodedata.category(letter) not in ("Cf", "Cc") and not UNDRAWN.match(letter)


def copied_from(label: str) -> str | None:
    """Return the key of the label that this one is a copy of by name: `ants (1)`, `ants - Copy`, `Kopie von ants`."""
    match = COPIED.fullmatch(unicodedata.normalize("NFKC", clean(label)).casefold())
    return lookalike_key(next(filter(None, match.groups()))) if match else None


def lookalikes(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """List the pairs of labels that a person would read as the same."""
    first: dict[str, str] = {}
    return [
        (other, label) for label in sorted(labels) if (other := first.setdefault(lookalike_key(label), label)) != label
    ]


def copies(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """List pairs of an original label and a label that is a copy of it by name."""
    by_key = {lookalike_key(label): label for label in labels}
    pairs = ((by_key.get(copied_from(label) or ""), label) for label in sorted(labels))
    return [(original, label) for original, label in pairs if original and original != label]


def check_lookalikes(labels: Mapping[str, str]) -> None:
    """Check that no two labels are spellings of the same class.

    Args:
        labels: every label and where it is from, for the error.

    Raises:
        SourceError: two of them differ only in case or appearance.
    """
    if pairs := lookalikes(labels):
        named = "; ".join(
            f"{_printable(a)} ({labels[a]}) and {_printable(b)} ({labels[b]})" for a, b in pairs[:MAX_LISTED]
        )
        more = f"; and {len(pairs) - MAX_LISTED} more pairs" if len(pairs) > MAX_LISTED else ""
        raise SourceError(
            f"These labels look like the same class: {named}{more}. Give both the same name (rename the folder, or "
            "correct the table), or names that differ more."
        )


def _printable(label: str) -> str:
    """Write a label so that invisible and lookalike characters show."""
    return repr(label) if label.isascii() else f"{label!r} ({ascii(label)[1:-1]})"

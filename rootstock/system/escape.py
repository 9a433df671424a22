"""Escapes names from outside (of files, domains, classes, runs) for Markdown, CSV, terminals and file names.

A name may contain what Markdown, a spreadsheet or a terminal interprets as a command. HTML is escaped by jinja2
(rootstock/evaluation/report.py), and plots draw names with `parse_math=False`.
"""

import csv
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 100  # bytes of a file name: leaves room for suffixes within the limit of 255
DIGEST = 12  # hexadecimal digits: a collision probability of about 1 in 10**6 among 20 million names
# No separator, no leading dot or dash, nothing that git refuses in a name: `..`, `.lock`, a trailing dot.
SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.|lock(?:$|\.)|$))*")
LIKE_OURS = re.compile(rf"-[0-9a-f]{{{DIGEST}}}$")

# Spreadsheets treat a cell that starts like this as a formula; leading apostrophes may have been added by `cell`.
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are full-width = + - @
ACTIVE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is plain text
ENTITY = re.compile(r"&(?=#?\w+;)")
BLOCK = re.compile(r"^(\d*)([-+=#]|(?<=\d)[.)](?=\s|$))")  # a list item, a heading, a heading's underline
CLOSING = re.compile(r"(?<=\s)#+$")  # of a heading: `# a #` renders as "a"
REFERENCES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
ESCAPED = re.compile(rf"\\([!-/:-@\[-`{{-~])|{'|'.join(REFERENCES)}")
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, text direction, surrogates, line ends
JOINERS = "\u200c\u200d"  # used in Persian text and family emoji


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with control and text-direction characters escaped, e.g. as `\x1b`.

    Args:
        text: any.
        keep: characters to leave as they are, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in keep or char in JOINERS or unicodedata.category(char) not in INVISIBLE else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def markdown(text: object) -> str:
    """Escape a text for Markdown: a line, a table cell or a heading."""
    line = printable(" ".join(str(text).split()))
    line = ACTIVE.sub(lambda found: f"\\{found[0]}", line)
    line = ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    return CLOSING.sub(r"\\\g<0>", BLOCK.sub(r"\1\\\2", line))


def plain(shown: str) -> str:
    """Undo `markdown`, for a terminal, which shows text as it is."""
    return ESCAPED.sub(lambda found: found[1] or REFERENCES[found[0]], shown)


def cell(text: str) -> str:
    """Escape a text for a spreadsheet cell: an apostrophe is put before what would be a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def as_csv(table: "pd.DataFrame") -> str:
    """Format a table as CSV, escaped for spreadsheets; equal tables give equal bytes."""
    texts = [name for name in table.columns if table[name].dtype.kind not in "biuf"]
    shown = {name: [cell(one) if isinstance(one, str) else one for one in table[name]] for name in texts}
    # pandas does not quote a lone carriage return, which readers take for the end of a row.
    returns = any("\r" in one for column in shown.values() for one in column if isinstance(one, str))
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return table.assign(**shown).to_csv(index=False, float_format="%.6g", lineterminator="\n", quoting=quoting)


def from_cell(text: str) -> str:
    """Undo `cell`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text[1:]) else text


def file_name(text: str) -> str:
    """Return a safe file or git name; different texts give different names.

    A safe text is returned as it is; else its letters are kept and a digest is appended.
    """
    if len(text) <= LONGEST and SAFE.fullmatch(text) and not LIKE_OURS.search(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    kept = re.sub(r"[^A-Za-z0-9]+", "-", text)[: LONGEST - DIGEST - 1].strip("-")
    return f"{kept or 'unnamed'}-{digest}"

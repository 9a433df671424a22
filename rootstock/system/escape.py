"""Names that came from outside (of files, domains, classes, runs), made safe for the place where they are put.

A name is data: it may hold what Markdown, a spreadsheet, a terminal or a path takes for an order. HTML is jinja2's
affair (rootstock/evaluation/report.py escapes everything), and plots draw names with `parse_math=False`.
"""

import csv
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 100  # bytes of a file's name: room for an ending, in what 255 are the most of
DIGEST = 12  # hexadecimal digits: a chance of one in a million for two names of 20 million
# No separator, no leading dot or dash, nothing that git refuses in a name: `..`, `.lock`, a dot at the end.
SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.|lock(?:$|\.)|$))*")
LIKE_OURS = re.compile(rf"-[0-9a-f]{{{DIGEST}}}$")

# Spreadsheets take a cell that begins so for a formula, also behind an apostrophe that was put before it here.
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are wide = + - @
ACTIVE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside of a word is none
ENTITY = re.compile(r"&(?=#?\w+;)")
BLOCK = re.compile(r"^(\d*)([-+=#]|(?<=\d)[.)](?=\s|$))")  # a list's item, a heading, the line below one
CLOSING = re.compile(r"(?<=\s)#+$")  # of a heading: `# a #` reads "a"
REFERENCES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
ESCAPED = re.compile(rf"\\([!-/:-@\[-`{{-~])|{'|'.join(REFERENCES)}")
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, direction, halves of characters, ends of lines
JOINERS = "\u200c\u200d"  # which Persian and family pictures are written with


def printable(text: str, keep: str = "") -> str:
    r"""Give a text without what moves a terminal's cursor, or turns the direction of writing: `\x1b` in its place.

    Args:
        text: any.
        keep: characters that may stay, such as the ends of lines.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in keep or char in JOINERS or unicodedata.category(char) not in INVISIBLE else _named(char)
        for char in text
    )


def _named(char: str) -> str:
    return char.encode("unicode_escape").decode()


def markdown(text: object) -> str:
    """Give a text that Markdown shows as it is, in a line, a table's cell or a heading."""
    line = printable(" ".join(str(text).split()))
    line = ACTIVE.sub(lambda found: f"\\{found[0]}", line)
    line = ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    return CLOSING.sub(r"\\\g<0>", BLOCK.sub(r"\1\\\2", line))


def plain(shown: str) -> str:
    """Give lines of Markdown with the names that `markdown` was given, for a terminal, which shows what is sent."""
    return ESCAPED.sub(lambda found: found[1] or REFERENCES[found[0]], shown)


def cell(text: str) -> str:
    """Give a text that a spreadsheet shows as it is: an apostrophe goes before what would be a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def as_csv(table: "pd.DataFrame") -> str:
    """Give a table as a CSV file that a spreadsheet shows as it is; equal tables give equal bytes."""
    texts = [name for name in table.columns if table[name].dtype.kind not in "biuf"]
    shown = {name: [cell(one) if isinstance(one, str) else one for one in table[name]] for name in texts}
    # pandas quotes no lone carriage return, and who reads the file takes it for the end of a row.
    returns = any("\r" in one for column in shown.values() for one in column if isinstance(one, str))
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return table.assign(**shown).to_csv(index=False, float_format="%.6g", lineterminator="\n", quoting=quoting)


def from_cell(text: str) -> str:
    """Give back what `cell` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text[1:]) else text


def file_name(text: str) -> str:
    """Give a name for a file, or in git, that leads nowhere else; of two names two.

    What is safe stays as it is; else its letters are kept, and a digest keeps it apart.
    """
    if len(text) <= LONGEST and SAFE.fullmatch(text) and not LIKE_OURS.search(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    kept = re.sub(r"[^A-Za-z0-9]+", "-", text)[: LONGEST - DIGEST - 1].strip("-")
    return f"{kept or 'unnamed'}-{digest}"

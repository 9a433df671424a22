"""A comparison of backbones: its candidates, and where its table, curves and page are kept.

data/compare is not the output of a stage: rows hold images/s, and `dvc repro` should not try eighty backbones. It is
added to DVC as it is (data/compare.dvc), so that it can be pushed, pulled and restored.
"""

from typing import TYPE_CHECKING

from rootstock.config.params import Params
from rootstock.system.errors import RootstockError
from rootstock.system.files import write
from tasks.bridge import versions
from tasks.bridge.workspace import COMPARE, DATASET, FEATURES, IMAGES, TRIED, TRIED_BACKBONES

if TYPE_CHECKING:  # imports torch, needed only to try a candidate
    import pandas as pd

    from rootstock.evaluation.compare import Candidate
    from rootstock.evaluation.compare_table import Row

TABLE, CURVES, PAGE = COMPARE / "compare.parquet", COMPARE / "curves.parquet", COMPARE / "report.html"


def candidates(params: Params) -> "list[Candidate]":
    """Return the candidates that params.yaml names.

    Raises:
        RootstockError: it names none.
        DamagedError: the table of earlier comparisons is damaged.
    """
    from rootstock.evaluation import compare, compare_table

    compare_table.read(TABLE), compare_table.read_curves(CURVES)  # fail now rather than after hours
    found = compare.candidates(params)
    if not found:
        raise RootstockError("params.yaml: compare.backbones and compare.scratch are empty; name at least one backbone")
    return found


def measure(candidate: "Candidate", params: Params) -> "Row":
    """Evaluate a candidate and save its row and curve at once, so that a kill loses none that are done."""
    from rootstock.evaluation import compare, compare_table

    paths = compare.Paths(IMAGES, DATASET, FEATURES, TRIED, TRIED_BACKBONES)
    row, epochs = compare.measure(candidate, params, paths)
    compare_table.write(TABLE, compare_table.merge(compare_table.read(TABLE), row))
    if epochs:
        compare_table.write(CURVES, compare_table.merge_curves(compare_table.read_curves(CURVES), row, epochs))
    return row


def finish() -> "tuple[pd.DataFrame, dict[str, bytes]]":
    """Render the page and add it to DVC; return the rows of this version of the data, and the plots."""
    from rootstock.evaluation import compare_report, compare_table

    now = compare_table.version_of(DATASET)
    table, epochs = (
        kept[kept["data"] == now] for kept in (compare_table.read(TABLE), compare_table.read_curves(CURVES))
    )
    drawn = compare_report.pictures(table, epochs)
    write(PAGE, compare_report.render(table, drawn))
    versions.add(COMPARE)
    return table, drawn

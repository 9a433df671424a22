"""The look of plots, and how they become PNGs: in a light and a dark theme.

pyplot is not used: it keeps global state, and flows plot in threads.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 110
MODELS = {"head": "head", "finetuned": "fine-tuned"}  # key in metrics.json: name in plots
NAME_LENGTH = 24  # characters of a name in a plot
# For names in scripts that the first one lacks, as far as they are installed; else each letter is drawn as a box.
FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "Noto Sans",
    "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Unifont",
)  # fmt: skip
_installed = set(font_manager.get_font_names())
mpl.rcParams["font.family"] = [font for font in FONTS if font in _installed]
warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")


@dataclass(frozen=True)
class Theme:
    """The colours of a plot; head and fine-tuned are distinguishable with colour blindness."""

    background: str
    ink: str
    faint: str
    head: str
    finetuned: str
    wrong: str

    def model(self, name: str) -> dict[str, Any]:
        """Return colour, marker and label of a model; champion and challenger look like head and fine-tuned."""
        colour, marker = (self.head, "o") if name in ("head", "champion") else (self.finetuned, "D")
        return {"color": colour, "marker": marker, "label": MODELS.get(name, name)}


LIGHT = Theme("#ffffff", "#25302c", "#dde3e0", "#c9781f", "#11766b", "#c2402f")
DARK = Theme("#18201e", "#d5dedb", "#34403c", "#eba54f", "#4cbfae", "#ee7b69")


def short(name: str) -> str:
    """Shorten a long name in the middle: its end often distinguishes it from its neighbours."""
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[:half]}…{name[1 - half :]}"


def new_figure(
    theme: Theme, width: float, height: float, rows: Sequence[float] = (1,), columns: Sequence[float] = (1,)
) -> tuple[Figure, npt.NDArray[Any]]:
    """Create a styled figure of a size in inches, with axes in rows and columns of given proportions."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.background, layout="constrained")
    ratios = {"height_ratios": rows, "width_ratios": columns}
    grid = figure.subplots(len(rows), len(columns), sharex="col", squeeze=False, gridspec_kw=ratios)
    for axes in grid.flat:
        axes.set_facecolor(theme.background)
        axes.grid(visible=True, color=theme.faint, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=theme.ink, labelsize=9, length=0)
        axes.xaxis.label.set(color=theme.ink, fontsize=10)
        axes.yaxis.label.set(color=theme.ink, fontsize=10)
        axes.spines[:].set_visible(False)
    return figure, grid


def legend(axes: Axes, theme: Theme, *, above: bool = False) -> None:
    """Add a legend inside or above the axes."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3} if above else {}
    shown = axes.legend(fontsize=8, facecolor=theme.background, edgecolor="none", labelcolor=theme.ink, **place)
    for text in shown.get_texts():
        text.set_parse_math(False)  # names come from users


def in_both_themes(drawings: Mapping[str, Callable[[Theme], Figure]]) -> dict[str, bytes]:
    """Render figures as PNG, in the light theme and, with the suffix "_dark", in the dark one.

    Laying out a figure takes as long as drawing it: the dark one's axes go where the light one's are.
    """
    rendered = {}
    for name, draw in drawings.items():
        light, dark = draw(LIGHT), draw(DARK)
        rendered[name] = png(light)
        dark.set_layout_engine("none")
        for axes, placed in zip(dark.axes, light.axes, strict=True):
            axes.set_position(placed.get_position(original=True))
        rendered[f"{name}_dark"] = png(dark)
    return rendered


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # `savefig` draws everything twice
    return buffer.getvalue()

"""The page that `dvc plots show` fills: with Vega inside, where DVC's own loads it from the network."""

from importlib.metadata import version
from pathlib import Path

from rootstock.system.files import write

PAGE = Path("plots.html")  # in .dvc
VEGA_LITE = "5.20"  # DVC's templates are of version 5
REVISION = 2  # of the page below: one of another revision is written anew
# DVC has a place for every plot of dvc.yaml, and an empty specification where its file has no rows: nothing was
# fine-tuned, or the images are too few for a learning curve. Such a place is removed.
EMBED = """window.vegaEmbed = (place, spec) =>
  Object.keys(spec).length ? vegaEmbed(place, spec) : document.querySelector(place).remove();"""


def prepare(dvc_folder: Path) -> None:
    """Write the page unless it is there; DVC finds it by `plots.html_template`."""
    path = dvc_folder / PAGE
    first = f"<!-- page {REVISION}, vl-convert-python {version('vl-convert-python')}, Vega-Lite {VEGA_LITE} -->"
    if not path.exists() or not path.read_text(encoding="utf-8").startswith(first):
        write(path, f"{first}\n{_page()}")


def _page() -> str:
    import vl_convert

    bundle = vl_convert.javascript_bundle(EMBED, VEGA_LITE).replace("</script", r"<\/script")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<link rel="icon" href="data:,">
{{refresh_tag}}
<title>Plots</title>
<style>
  body {{ font-family: sans-serif; display: flex; flex-wrap: wrap; gap: 2rem; }}
  table {{ border-spacing: 15px; }}
</style>
<script>{bundle}</script>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""

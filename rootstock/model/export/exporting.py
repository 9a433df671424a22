"""Exports a model to a folder: the file, what it needs to be used, and how far it agrees with the model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from rootstock.config.flow_params import ExportFormat as Format
from rootstock.model.export import checking, formats, int8
from rootstock.model.export.checking import Agreement, SplitPixels
from rootstock.model.export.formats import Run
from rootstock.model.export.network import ExportedNetwork, metadata
from rootstock.model.model import Model
from rootstock.system import causes
from rootstock.system.errors import ParamsError, RootstockError
from rootstock.system.files import replacing_folder, write
from rootstock.system.phrases import percent
from rootstock.training import unfreezing

DESCRIPTION, README = "export.json", "README.md"
# Of a probability; by other kernels the same network differs by less than 0.00001.
MAY_DIFFER = 0.001


@dataclass(frozen=True)
class Dataset:
    """The images that an export is checked and calibrated on: the manifest, and the folder of the shards."""

    manifest: pd.DataFrame
    images: Path

    def split(self, model: Model, name: str, most: int = checking.AT_MOST) -> SplitPixels | None:
        """Return images of a split; None if it has none."""
        return SplitPixels.of(model, self.manifest, name, self.images, most) or None


@dataclass(frozen=True)
class Version:
    """An exported file: its precision, size, speed, and how far it agrees with the model."""

    precision: str
    file: str
    bytes: int
    images_per_second: float
    agreement: Agreement
    validation_accuracy: float | None = None

    def __str__(self) -> str:
        """Describe it in a phrase."""
        accuracy = (
            "" if self.validation_accuracy is None else f", validation accuracy {percent(self.validation_accuracy)}"
        )
        size = f"{self.bytes / 1e6:,.1f} MB, {self.images_per_second:,.0f} images/s"
        return f"{self.file}: {self.precision}, {size}, {self.agreement}{accuracy}"


@dataclass(frozen=True)
class Exported:
    """What was written where; `dropped` says why there is no int8 version, if one was asked for."""

    folder: Path
    versions: list[Version]
    dropped: str = ""


def export(
    model: Model,
    digest: str,
    format: Format,
    out: Path,
    dataset: Dataset | None = None,
    max_loss: float | None = None,
) -> Exported:
    """Write a model in another format, with export.json and a README.md that shows how to use it.

    Args:
        model: that is exported.
        digest: of its weights.
        format: of the file.
        out: the folder; it is replaced if it holds an export.
        dataset: to check on; without one, random pixels are compared.
        max_loss: the share of validation accuracy that an int8 version may lose; None makes no such version.

    Raises:
        ParamsError: the format needs a package that is not installed, int8 needs a dataset or is not for this format,
            or `out` holds something else.
        RootstockError: the network cannot be exported in this format, or computes something else there.
    """
    _check(format, out, dataset, max_loss)
    size, described = model.spec.transform.size, metadata(model, digest)
    test = dataset.split(model, "test") if dataset else None
    with replacing_folder(out) as folder:
        network = ExportedNetwork(model)
        try:
            path = formats.write(format, network, size, folder, described)
            run = formats.open_file(path)
            agreement = checking.compare(run, model, test)
        except RootstockError:
            raise
        except Exception as error:  # exporters and runtimes raise anything for an unsupported operation
            raise RootstockError(f"This network cannot be exported to {format}: {causes.first_line(error)}") from error
        _check_agreement(model, agreement, format)
        versions, dropped = [_version("float32", path, run, size, agreement)], ""
        if max_loss is not None and dataset:
            quantised, dropped = _quantised(model, path, run, dataset, test, max_loss)
            versions += [quantised] if quantised else []
        write(folder / README, _readme(model, format, described, network.outputs, versions))
        shown = {**described, "format": format, "versions": [asdict(version) for version in versions]}
        write(folder / DESCRIPTION, json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
    return Exported(out, versions, dropped)


def _check(format: Format, out: Path, dataset: Dataset | None, max_loss: float | None) -> None:
    formats.check_installed(*formats.NEEDS[format])
    if max_loss is not None:
        int8.check_format(format)
        if dataset is None:
            raise ParamsError("int8 is calibrated on training images, and there is no dataset here: run the pipeline.")
    if out.exists() and not (out / DESCRIPTION).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ParamsError(f"{out} holds something else than an export, and is left alone; name another folder.")


def _check_agreement(model: Model, agreement: Agreement, format: Format) -> None:
    """Refuse a file that computes something else; a model in bf16 or float16 differs from any float32 version."""
    exact = model.spec.precision == "f32" and model.spec.dtype == "float32"
    if exact and not agreement.largest_difference <= MAY_DIFFER:
        raise RootstockError(
            f"Exported to {format}, this network computes something else: probabilities differ by up to "
            f"{agreement.largest_difference:.2g} on {agreement.images:,} {agreement.of}. Nothing was written."
        )


def _version(
    precision: str, path: Path, run: Run, size: int, agreement: Agreement, accuracy: float | None = None
) -> Version:
    with_weights = sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.exists())
    speed = checking.images_per_second(run, size)
    return Version(precision, path.name, with_weights, round(speed, 1), agreement, accuracy)


def _quantised(
    model: Model, path: Path, run: Run, dataset: Dataset, test: SplitPixels | None, max_loss: float
) -> tuple[Version | None, str]:
    """Quantise; return the version, or why it was dropped."""
    train = dataset.split(model, "train", int8.CALIBRATION_IMAGES)
    val = dataset.split(model, "val")
    if train is None or val is None:
        raise ParamsError("int8 needs training and validation images of the model's classes, and there are none.")

    transformer = unfreezing.is_vision_transformer(model.network.backbone)
    quantised = int8.quantise(path, train.batches(), transformer=transformer)
    own = formats.open_file(quantised)
    before, after = checking.accuracy(run, val), checking.accuracy(own, val)
    if before - after > max_loss:
        for file in (quantised, quantised.with_suffix(".bin")):
            file.unlink(missing_ok=True)
        fall = f"validation accuracy falls from {percent(before)} to {percent(after)} ({len(val):,} images)"
        return None, f"int8 was not kept: {fall}, by more than export.max_loss ({percent(max_loss)})"
    size = model.spec.transform.size
    return _version("int8", quantised, own, size, checking.compare(own, model, test), after), ""


def _readme(
    model: Model,
    format: Format,
    described: dict[str, Any],
    outputs: list[str],
    versions: list[Version],
) -> str:
    loader = jinja2.PackageLoader("rootstock.model.export", "")
    environment = jinja2.Environment(  # noqa: S701  Markdown; class names are not in it
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("readme.md.j2").render(
        format=format, outputs=outputs, versions=versions, spec=model.spec, **described
    )

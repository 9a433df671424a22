"""Grad-CAM drawn over images, and written into a folder beside predictions: one JPEG for each image."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from rootstock.model import grad_cam
from rootstock.model.grad_cam import GradCam
from rootstock.model.model import Model
from rootstock.system import escape
from rootstock.system.errors import ParamsError
from rootstock.system.files import write

SIDE = 224  # pixels, at least: smaller images are enlarged
COLOURS = colormaps["inferno"]  # its lightness rises with the evidence, so that it is read without seeing colours
STRONGEST = 0.7  # opacity of the colour where the evidence is strongest
QUALITY = 88  # of the JPEGs


@dataclass(frozen=True)
class Explanations:
    """A folder that receives a JPEG for each image: where the evidence for the predicted class lies."""

    folder: Path
    cam: GradCam

    def write(self, paths: Sequence[str], pixels: NDArray[np.uint8], classes: Sequence[int]) -> list[str]:
        """Explain images, and write each under a name that is safe whatever its path.

        Args:
            paths: of the images (n,), as they are listed.
            pixels: as the network sees them (n, 3, size, size).
            classes: the predicted ones (n,).

        Returns:
            The files, within the folder (n,).
        """
        names = [f"{escape.file_name(path)}.jpg" for path in paths]
        for name, image, evidence in zip(names, pixels, self.cam(pixels, classes), strict=True):
            write(self.folder / name, encoded(overlay(image, evidence)))
        return names


def into(folder: Path, model: Model, name: str) -> Explanations:
    """Prepare a folder for explanations.

    Args:
        folder: created if it is missing.
        model: whose predictions are explained.
        name: the architecture of its backbone.

    Raises:
        ParamsError: the folder is a file, or nothing in the network can be explained.
    """
    if folder.exists() and not folder.is_dir():
        raise ParamsError(f"{folder} is a file; expected a folder for the explanations")
    cam = grad_cam.start(model, name)
    if cam is None:
        raise ParamsError(f"{name} has no layer with feature maps that explain a class; predict without --explain")
    folder.mkdir(parents=True, exist_ok=True)
    return Explanations(folder, cam)


def overlay(pixels: NDArray[np.uint8], evidence: NDArray[np.float32], side: int = SIDE) -> Image.Image:
    """Draw evidence (size, size) from 0 to 1 over an image (3, size, size), which is grey below it.

    The picture has at least `side` pixels along each side.
    """
    image = enlarged(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), side)
    strength = Image.fromarray(evidence.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    strong = np.asarray(strength)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    colour = 255 * COLOURS(strong[..., 0])[..., :3]
    opacity = STRONGEST * strong
    drawn = grey * (1 - opacity) + colour * opacity
    return Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """Enlarge a small image so that its shorter side has at least `side` pixels."""
    times = -(-side // min(image.size))
    return image if times <= 1 else image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)


def encoded(image: Image.Image) -> bytes:
    """Encode an image as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()

"""Why the winner decides as it does: Grad-CAM for its worst mistakes and most confident hits, and what layers see."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rootstock.backbones import depths, feature_maps
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.evaluation import thumbnails
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.scored import Scored
from rootstock.features import preparing
from rootstock.images.pixels import OpenedFile
from rootstock.model import explanations, grad_cam
from rootstock.model.grad_cam import GradCam
from rootstock.model.model import Model

MISTAKES, HITS = 12, 12  # explained, at most
SIDE = 144  # pixels of a picture
FILTERS, FILTER_PX = 64, 22  # of the first layer: how many are shown, and pixels of each
CHANNELS, CHANNEL_PX = 8, 72  # of a layer's feature maps
COLUMNS = 16  # of filters
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Evidence:
    """An image with the evidence for the predicted class and, if that is wrong, for the actual one; WebP.

    `evidence` has the name of each class with the picture, which is empty where Grad-CAM finds nothing that speaks for
    the class. Where images have any number of classes, it is for the class of the surest decision.
    """

    image: bytes
    evidence: Sequence[tuple[str, bytes]]
    actual: str
    predicted: str
    confidence: float
    path: str


@dataclass(frozen=True)
class Level:
    """Feature maps of a layer: its name, the shape of its maps, and some of its channels as one picture."""

    name: str
    layer: str
    channels: int
    side: int
    picture: bytes


@dataclass(frozen=True)
class Why:
    """Explanations of test images, and pictures of the backbone.

    Args:
        layer: whose maps explain; "" if none does.
        mistakes: the most confident ones.
        hits: the surest image of some classes.
        filters: of the first layer, as one picture; empty if it is no convolution of three channels.
        filter_shape: its number of filters and their side in pixels.
        example: the image whose feature maps are shown.
        levels: low, mid and high, those that there are.
    """

    layer: str
    mistakes: Sequence[Evidence] = ()
    hits: Sequence[Evidence] = ()
    filters: bytes = b""
    filter_shape: tuple[int, int] = (0, 0)
    example: bytes = b""
    levels: Sequence[Level] = ()


def explain(pair: ModelPair, test: Scored, winner: str) -> Why:
    """Explain the winner's worst mistakes and most confident hits among the test images, and look into its backbone."""
    model, name = pair.whole(winner), pair.backbone.description["name"]
    wrong, hits = test.mistakes(winner)[:MISTAKES], _surest(test, winner)[:HITS]
    places = np.concatenate([wrong, hits])
    seen = _pixels(pair, model, test, places)
    cam = grad_cam.start(model, name)
    shown = _evidence(cam, pair, test, winner, places, seen)
    filters, shape = _filters(model)
    example = seen[len(wrong)] if len(hits) else seen[0]
    return Why(
        layer=cam.layer if cam else "",
        mistakes=shown[: len(wrong)] if cam else (),
        hits=shown[len(wrong) :] if cam else (),
        filters=filters,
        filter_shape=shape,
        example=_picture(example),
        levels=_levels(model, name, example),
    )


def _surest(test: Scored, winner: str) -> NDArray[np.int64]:
    """Return the place of the most confident hit of each class, the classes with the most confident one first."""
    own = test.predictions[winner]
    hits = np.flatnonzero(own.is_right(test.labels))
    ordered = hits[np.argsort(-own.confidence[hits], kind="stable")]
    _, first = np.unique(tables.strata_of_rows(test.rows)[ordered], return_index=True)
    return ordered[np.sort(first)]


def _pixels(pair: ModelPair, model: Model, test: Scored, places: NDArray[np.int64]) -> Pixels:
    """Return images as the network sees them (n, 3, size, size)."""
    spec = replace(model.spec, decode="full") if model.spec.decode == "gpu" else model.spec
    rows = test.rows.iloc[places]
    with Reader(pair.inputs.images) as reader:
        images = [
            preparing.prepare(spec, reader.image(shard, int(offset), int(size), image_id))
            for shard, offset, size, image_id in zip(
                *(rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True
            )
        ]
    return np.stack([image for image in images if not isinstance(image, OpenedFile)])


def _evidence(
    cam: GradCam | None, pair: ModelPair, test: Scored, winner: str, places: NDArray[np.int64], seen: Pixels
) -> list[Evidence]:
    if cam is None:
        return []
    own = test.predictions[winner]
    wanted = [(at, label) for at, place in enumerate(places) for label in own.explained(test.labels, place)]
    images = seen[[at for at, _ in wanted]]
    maps = cam(images, [label for _, label in wanted])
    found: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
    for (at, label), image, evidence in zip(wanted, images, maps, strict=True):
        found[at].append((pair.classes[label], _drawn(image, evidence)))
    rows, predicted = test.rows.iloc[places], own.texts(pair.classes, places)
    return [
        Evidence(
            image=_picture(seen[at]),
            evidence=found[at],
            actual=pair.shown(row["label"]),
            predicted=pair.shown(predicted[at]),
            confidence=float(own.confidence[places[at]]),
            path=f"{row['source']}/{row['path']}",
        )
        for at, (_, row) in enumerate(rows.iterrows())
    ]


def _drawn(image: Pixels, evidence: NDArray[np.float32]) -> bytes:
    return thumbnails.encoded(_sized(explanations.overlay(image, evidence, SIDE))) if evidence.any() else b""


def _picture(image: Pixels) -> bytes:
    return thumbnails.encoded(_sized(explanations.enlarged(Image.fromarray(image.transpose(1, 2, 0)), SIDE)))


def _sized(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _filters(model: Model) -> tuple[bytes, tuple[int, int]]:
    """Draw the filters of the first layer, each scaled so that its zeros are grey, and return their number and side."""
    weights = feature_maps.first_filters(model.network.backbone)
    if weights is None:
        return b"", (0, 0)
    shown = weights[:FILTERS].cpu()
    scaled = 0.5 + 0.5 * shown / shown.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pixels = (255 * scaled).round().byte().permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(one).resize((FILTER_PX, FILTER_PX), Image.Resampling.NEAREST) for one in pixels]
    sheet = thumbnails.tiled(pictures, FILTER_PX, COLUMNS, gap=3)
    return thumbnails.encoded(sheet), (len(weights), int(weights.shape[-1]))


def _levels(model: Model, name: str, example: Pixels) -> list[Level]:
    """Draw the channels that an image excites most, at each feature level."""
    network = model.network.eval()
    named = depths.named_depths(depths.uncut(network.backbone), name)
    with torch.inference_mode():
        image = network.normalise(torch.from_numpy(example[None]).to(next(network.parameters()).device))
    maps = feature_maps.feature_maps(network.backbone, list(named.values()), image)
    return [
        Level(level, layer, maps[layer].shape[1], maps[layer].shape[-1], _channels(maps[layer][0].cpu()))
        for level, layer in named.items()
        if layer in maps and maps[layer][0, 0].numel() > 1
    ]


def _channels(maps: Tensor) -> bytes:
    """Draw the channels of maps (c, h, w) that vary most."""
    most = maps.flatten(1).std(1).argsort(descending=True, stable=True)[:CHANNELS]
    pictures = []
    for channel in maps[most]:
        low, high = channel.min(), channel.max()
        scaled = ((channel - low) / (high - low).clamp(min=1e-12)).numpy()
        coloured = (255 * explanations.COLOURS(scaled)[..., :3]).round().astype(np.uint8)
        pictures.append(Image.fromarray(coloured).resize((CHANNEL_PX, CHANNEL_PX), Image.Resampling.NEAREST))
    return thumbnails.encoded(thumbnails.tiled(pictures, CHANNEL_PX, CHANNELS, gap=4))

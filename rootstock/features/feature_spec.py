"""The feature spec: how an image's features are computed. A model is served with the spec it was measured with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from rootstock.config import params
from rootstock.config.architectures import PENULTIMATE, Transform

if TYPE_CHECKING:  # these import torch, which the name of a folder of features does not need
    from rootstock.backbones.depths import Pooling
    from rootstock.images.decoding import Decode

Precision = Literal["f32", "bf16"]
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class FeatureSpec:
    """Everything but the network's weights that determines the features of an image.

    `transform` resizes, crops and normalises; `decode` is how JPEGs are decoded before; the network is cut at `layer`
    with `pooling`; `engine` computes it in `precision`; features are rounded to `dtype`, as in the feature files. With
    `mirror`, they are the mean of those of the image and of its mirror image. The defaults are exact, and those of a
    fine-tuned network.
    """

    transform: Transform
    layer: str = PENULTIMATE
    pooling: "Pooling" = "avg"
    decode: "Decode" = "full"
    engine: str = "eager"
    precision: Precision = "f32"
    dtype: Dtype = "float32"
    mirror: bool = False

    @classmethod
    def of(cls, transform: Transform, settings: params.Extract, engine: str) -> "FeatureSpec":
        """Return the spec of the section `extract` of params.yaml, with the engine that `auto` stands for."""
        return cls(
            transform, settings.layer, settings.pooling, settings.decode, engine, settings.precision, settings.dtype
        )

    def prepares_like(self, other: "FeatureSpec") -> bool:
        """Check whether images are decoded and resized in the same way (normalisation comes later, in the network)."""
        one, two = self.transform, other.transform
        same_size = (one.size, one.resize, one.interpolation) == (two.size, two.resize, two.interpolation)
        return same_size and self.decode == other.decode

    def as_dict(self) -> dict[str, str | bool]:
        """Return the spec as JSON values, without the transform, which the backbone's description has."""
        values = asdict(self)
        del values["transform"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], transform: Transform) -> "FeatureSpec":
        """Return the spec that `as_dict` made the values from; missing ones, of earlier versions, are the defaults.

        Raises:
            ValueError: a value is none that `extract` may have. (Engines may be those of other versions.)
        """
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        extract = {name: value for name, value in known.items() if name not in ("engine", "mirror")}
        params.Extract.model_validate(extract)
        return cls(transform, **known)

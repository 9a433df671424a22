"""A name becomes a network: from an entry of config/architectures.py to a module without its classification layer."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn

from rootstock.config.architectures import TIMM, Architecture, architecture
from rootstock.system.errors import ParamsError


def build(name: str, image_size: int, variant: str | None = None) -> nn.Module:
    """Build an architecture with random weights and without its classification layer.

    Its last layer that maps features to classes becomes the identity, so that calling the network gives the
    features (n, width) that layer would have seen.
    """
    network = whole(name, image_size, variant)
    parent, _, leaf = classification_layer(network).rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network


def whole(name: str, image_size: int, variant: str | None = None) -> nn.Module:
    """Build an architecture with its classification layer."""
    described = architecture(name, variant)
    options = dict(described.options) | ({"variant": variant} if variant else {})
    if name.startswith(TIMM):
        options |= options_of_timm(name, image_size)
    elif described.size_option:
        square = described.size_option == "input_size"
        options[described.size_option] = (image_size, image_size) if square else image_size
    if described.pretrained == "torchvision":
        check_known(name)
    try:
        return _built(described, name, options)
    except (ValueError, AssertionError) as error:
        raise wrong_size(image_size, name, error) from None


def _built(described: Architecture, name: str, options: dict[str, Any]) -> nn.Module:
    """Call the function that builds it; timm and torchvision take seconds to import, and one is needed."""
    if described.library == "timm":
        import timm

        return timm.create_model(**options)  # type: ignore[no-any-return]
    if described.library == "torchvision":
        from torchvision.models import get_model

        return get_model(**options)  # type: ignore[no-any-return]
    return _ours()[name](**options)


def _ours() -> dict[str, Callable[..., nn.Module]]:
    """Import the builders of our own backbones: of those whose library is "rootstock"."""
    from rootstock.backbones.lenet import LeNet5
    from rootstock.backbones.residual import plain34, shortcuts34

    return {"lenet5": LeNet5, "plain34": plain34, "resnet34": shortcuts34}


def check_known(name: str) -> None:
    """Names come and go with torchvision's versions: our list is of one, installed is another."""
    import torchvision

    if name not in torchvision.models.list_models():
        raise ParamsError(
            f"params.yaml: backbone.name is {name!r}, which torchvision {torchvision.__version__} does not have; "
            "expected a name that it has. Upgrade torchvision for this one."
        )


def options_of_timm(name: str, image_size: int) -> dict[str, Any]:
    """Tell a transformer of timm's the size of its images, where it has to know."""
    config = config_of_timm(name)
    if not config.fixed_input_size or config.input_size[1] == image_size:
        return {}
    return {"img_size": image_size}


def config_of_timm(name: str) -> Any:  # noqa: ANN401
    """Give what timm says of a model of its: input size, crop, mean, deviation, where its weights are.

    Raises:
        ParamsError: timm has no such model, naming the nearest that it has.
    """
    import timm  # takes seconds to import

    model = name.removeprefix(TIMM)
    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(f'{TIMM}{each}' for each in near)}?" if near else ""
        raise ParamsError(
            f"params.yaml: backbone.name is {name!r}; timm {timm.__version__} has no model of that name.{hint}"
        )
    return timm.get_pretrained_cfg(model)


def wrong_size(size: int, name: str, error: object) -> ParamsError:
    """Say that a network does not take images of a size."""
    why = str(error).splitlines()[0].rstrip(".")
    return ParamsError(
        f"params.yaml: backbone.image_size is {size}, which {name} does not take ({why}); expected a size that it "
        "takes. Leave it empty for its own."
    )


def classification_layer(network: nn.Module) -> str:
    """Name the layer that maps features to classes: the last linear one, or SqueezeNet's last convolution."""
    kind = nn.Conv2d if type(network).__name__ == "SqueezeNet" else nn.Linear
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, kind)]
    return layers[-1]

"""Build a network from its name in config/architectures.py, without its classification layer."""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from rootstock.config.architectures import TIMM, Architecture, architecture
from rootstock.system.errors import ParamsError


def build(name: str, image_size: int, variant: str | None = None) -> nn.Module:
    """Build an architecture with random weights and without its classification layer.

    The classification layer is replaced by the identity, so that calling the network returns that layer's input, the
    features (n, width).
    """
    network = build_with_classifier(name, image_size, variant)
    for layer in classification_layers(network):
        parent, _, leaf = layer.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network


def build_with_classifier(name: str, image_size: int, variant: str | None = None) -> nn.Module:
    """Build an architecture with its classification layer."""
    described = architecture(name, variant)
    options = dict(described.options) | ({"variant": variant} if variant else {})
    if name.startswith(TIMM):
        options |= timm_options(name, image_size)
    elif described.size_option:
        square = described.size_option == "input_size"
        options[described.size_option] = (image_size, image_size) if square else image_size
    if described.pretrained == "torchvision":
        check_in_torchvision(name)
    try:
        return _construct(described, name, options)
    except (ValueError, AssertionError) as error:
        raise image_size_error(image_size, name, error) from None


def _construct(described: Architecture, name: str, options: dict[str, Any]) -> nn.Module:
    """Call the builder; timm and torchvision take seconds to import, so only the one needed is imported."""
    if described.library == "timm":
        return import_timm().create_model(**options)  # type: ignore[no-any-return]
    if described.library == "torchvision":
        from torchvision.models import get_model

        return get_model(**options)  # type: ignore[no-any-return]
    return _ours()[name](**options)


def _ours() -> dict[str, Callable[..., nn.Module]]:
    """Import the builders of Rootstock's own backbones (library "rootstock")."""
    from rootstock.backbones.lenet import LeNet5
    from rootstock.backbones.residual import plain34, shortcuts34

    return {"lenet5": LeNet5, "plain34": plain34, "resnet34": shortcuts34}


def check_in_torchvision(name: str) -> None:
    """Check that the installed torchvision has a model; names differ between versions."""
    import torchvision

    if name not in torchvision.models.list_models():
        raise ParamsError(
            f"params.yaml: backbone.name is {name!r}, which torchvision {torchvision.__version__} does not have; "
            "expected a model of the installed version. Upgrade torchvision for this one."
        )


def timm_options(name: str, image_size: int) -> dict[str, Any]:
    """Return timm's image-size option for models with a fixed input size, such as vision transformers."""
    config = timm_config(name)
    if not config.fixed_input_size or config.input_size[1] == image_size:
        return {}
    return {"img_size": image_size}


def timm_config(name: str) -> Any:  # noqa: ANN401
    """Return timm's configuration of a model: input size, crop, mean, standard deviation, location of weights.

    Raises:
        ParamsError: timm has no such model; the message suggests the nearest names.
    """
    timm, model = import_timm(), name.removeprefix(TIMM)
    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(f'{TIMM}{each}' for each in near)}?" if near else ""
        raise ParamsError(
            f"params.yaml: backbone.name is {name!r}; timm {timm.__version__} has no model of that name.{hint}"
        )
    return timm.get_pretrained_cfg(model)


@cache
def import_timm() -> ModuleType:
    """Import timm, and not wandb, which timm imports where it is installed (2 s) for a logger that is not used here."""
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        import timm
    finally:
        if hidden:
            sys.modules.pop("wandb", None)
    return timm  # type: ignore[no-any-return]


def image_size_error(size: int, name: str, error: object) -> ParamsError:
    """Return the error for an image size that a network does not accept."""
    why = str(error).splitlines()[0].rstrip(".")
    return ParamsError(
        f"params.yaml: backbone.image_size is {size}, which {name} does not accept ({why}); expected a size "
        "that it accepts. Leave it empty for the network's own."
    )


def classification_layers(network: nn.Module) -> list[str]:
    """Return the name of the classification layer: the last linear layer, or SqueezeNet's last convolution.

    timm names them itself: a convolution in some networks, and two layers in distilled vision transformers.
    """
    modules = dict(network.named_modules())
    named = getattr(network, "pretrained_cfg", {}).get("classifier")
    by_timm = [named] if isinstance(named, str) else list(named or ())
    if by_timm and all(name in modules for name in by_timm):
        return by_timm
    kind = nn.Conv2d if type(network).__name__ == "SqueezeNet" else nn.Linear
    return [name for name, module in modules.items() if isinstance(module, kind)][-1:]

"""List the blocks an architecture stacks, from input to features: the units of unfreezing."""

from torch import nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def blocks(network: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """List the blocks of an architecture, from input to features, each with its name and modules.

    A block is an entry of the network's sequences: a residual block, an inverted residual, an inception module, a
    transformer block; in AlexNet and VGG, which are written layer by layer, a single layer. A norm belongs to the layer
    before it, and plain layers after the last composite block (a final convolution, a norm) belong to that block.
    """
    found: list[tuple[str, list[nn.Module]]] = []
    for name, module in _stacked(network, ""):
        if not any(True for _ in module.parameters()):
            continue
        if found and isinstance(module, NORMS):
            found[-1][1].append(module)
        else:
            found.append((name, [module]))
    composite = [index for index, (_, modules) in enumerate(found) if _is_composite(modules[0])]
    if composite:
        last = composite[-1]
        found[last][1].extend(module for _, modules in found[last + 1 :] for module in modules)
        del found[last + 1 :]
    return found


def _is_composite(module: nn.Module) -> bool:
    """Whether a module holds more than one layer; a convolution with its norm and activation is one."""
    own = [part for part in module.modules() if not isinstance(part, NORMS) and list(part.parameters(recurse=False))]
    return len(own) > 1


def _stacked(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Expand sequences, and top-level modules that hold only sequences and plain layers, into what they stack."""
    parts = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(child.children())
        sequences = [part for part in inner if type(part) in (nn.Sequential, nn.ModuleList)]
        only_holds = sequences and all(part in sequences or not list(part.children()) for part in inner)
        if type(child) in (nn.Sequential, nn.ModuleList) or (not prefix and only_holds):
            parts += _stacked(child, f"{path}.")
        else:
            parts.append((path, child))
    return parts

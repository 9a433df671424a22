"""Divide a network at the border between its frozen and its trained layers, so that training can start there.

The network's own forward pass is traced with torch.fx. Blocks are single steps of it, whatever they do inside. What
cannot be traced, or has a frozen part that hands over more than one tensor, is not divided.
"""

import hashlib
import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rootstock.backbones.blocks import blocks
from rootstock.backbones.depths import Cut, LayerReached, first_tensor, uncut
from rootstock.training.classifier import Classifier, mixed_precision, precision_on

TOLERANCE, ROUGH_TOLERANCE = 1e-4, 2e-2  # of the largest logit, in float32 and in mixed precision


class UndividedError(Exception):
    """A network that cannot be divided; the message says why."""


@dataclass(frozen=True)
class Division:
    """Both parts of a classifier.

    `frozen` maps uint8 pixels (n, 3, size, size) to activations (n, ...), `trained` maps these to logits (n, k).
    """

    frozen: "FrozenPart"
    trained: "TrainedPart"

    def fingerprint(self) -> str:
        """Return a digest of all that the activations depend on besides the pixels."""
        content = hashlib.sha256(self.frozen.network.code.encode())
        for name, value in sorted(self.frozen.state_dict().items()):
            content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return content.hexdigest()


class FrozenPart(nn.Module):
    """Normalisation and the frozen layers, always in evaluation mode."""

    def __init__(self, normalise: nn.Module, network: fx.GraphModule) -> None:
        super().__init__()
        self.normalise, self.network = normalise, network

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the activations of a batch."""
        activations: Tensor = _computed(self.network, self.normalise(pixels))
        return activations


class TrainedPart(nn.Module):
    """The layers that are trained, and the head: a classifier of activations. Its parameters are the classifier's."""

    def __init__(self, classifier: Classifier, training: fx.GraphModule, evaluating: fx.GraphModule) -> None:
        super().__init__()
        self.head, self.frozen_statistics = classifier.head, classifier.frozen_statistics
        self.when_training, self.when_evaluating = training, evaluating
        # not registered: its frozen layers are no part of this
        self._classifier: Callable[[], Classifier] = lambda: classifier

    def forward(self, activations: Tensor) -> Tensor:
        """Compute the logits of a batch; the head runs in float32, as in the whole classifier."""
        whole = self._classifier()
        output = _computed(self.when_training if self.training else self.when_evaluating, activations.float())
        if isinstance(whole.backbone, Cut):
            output = whole.backbone.pooled(first_tensor(output))
        return whole.classify(output)

    def train(self, mode: bool = True) -> "TrainedPart":
        """Set the mode of the whole classifier, which knows what stays in evaluation mode."""
        self.training = mode
        self._classifier().train(mode)
        return self


def _computed(part: fx.GraphModule, x: Tensor) -> Any:  # noqa: ANN401
    try:
        return part(x)
    except LayerReached as reached:  # by the hook of the layer where the network is cut
        return reached.output


def divide(classifier: Classifier, example: Tensor) -> Division:
    """Divide a classifier whose trained parameters are those that require gradients.

    Args:
        classifier: its mode stays as it is.
        example: pixels (n, 3, size, size) uint8, on which both must agree.

    Raises:
        UndividedError: there is no frozen part, or it cannot be told from the rest.
    """
    mode = classifier.training
    try:
        parts = [_parts(classifier, training) for training in (True, False)]
        if parts[0][0].code != parts[1][0].code:  # a choice by the mode outside all blocks
            raise UndividedError("its frozen part depends on the mode of training")
        frozen = FrozenPart(classifier.normalise, parts[1][0]).eval()
        division = Division(frozen, TrainedPart(classifier, parts[0][1], parts[1][1]))
        _check(classifier, division, example)
    finally:
        classifier.train(mode)
    return division


def _check(classifier: Classifier, division: Division, example: Tensor) -> None:
    classifier.eval()
    division.trained.train(False)
    with torch.inference_mode(), mixed_precision(example.device):  # a GPU plans anew for each precision
        expected = classifier(example)
        activations = division.frozen(example)
        if not isinstance(activations, Tensor) or activations.shape[:1] != example.shape[:1]:
            raise UndividedError("its frozen part hands over no tensor of a row per image")
        differ = (division.trained(activations) - expected).abs().max()
    tolerance = TOLERANCE if precision_on(example.device) is torch.float32 else ROUGH_TOLERANCE
    if not differ <= tolerance * expected.abs().max().clamp_min(1e-6):
        raise UndividedError(f"its logits would differ by {float(differ):.2g}")


def _parts(classifier: Classifier, training: bool) -> tuple[fx.GraphModule, fx.GraphModule]:
    network = uncut(classifier.backbone)
    network.training = training  # of the whole: blocks are not looked into
    graph, output = _trace(classifier.backbone)
    trained = _trained(graph, network)
    above = {node for node in _ancestors([output]) if node in trained}
    handed = {source for node in above for source in node.all_input_nodes if source not in trained} or {output}
    handed = {node for node in handed if node.op != "get_attr"}
    if any(node.op == "placeholder" for node in handed):
        raise UndividedError("its first layers are trained")
    if len(handed) != 1:
        raise UndividedError(f"its frozen part hands over {len(handed)} values")
    [border] = handed
    constants = {source for node in above for source in node.all_input_nodes if source.op == "get_attr"}
    return (
        _module(network, graph, _ancestors([border]), border),
        _module(network, graph, (above | constants) - {border}, output, border),
    )


class _Tracer(fx.Tracer):
    """Takes blocks as they are, and notes the output of one layer."""

    def __init__(self, steps: Iterable[nn.Module], layer: nn.Module | None) -> None:
        super().__init__()
        self.steps, self.layer = set(map(id, steps)), layer
        self.output: object = None

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return id(module) in self.steps or super().is_leaf_module(module, name)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        found = super().call_module(module, forward, args, kwargs)
        if module is self.layer and self.output is None:
            self.output = found
        return found


def _trace(backbone: nn.Module) -> tuple[fx.Graph, fx.Node]:
    """Trace a network's forward pass; return it with the node of the features, or of the layer where it is cut."""
    network = uncut(backbone)
    layer = network.get_submodule(backbone.layer) if isinstance(backbone, Cut) else None
    tracer = _Tracer((module for _, modules in blocks(network) for module in modules), layer)
    given = list(inspect.signature(network.forward).parameters.values())
    defaults = {parameter.name: parameter.default for parameter in given[1:]}  # a mask, say
    hooks = layer._forward_hooks.copy() if layer else {}
    if layer:  # the hook that ends the pass there has nothing to do with a trace
        layer._forward_hooks.clear()
    try:
        graph = tracer.trace(network, defaults)
    except Exception as error:  # whatever a forward pass may do with what is no tensor
        raise UndividedError(f"its forward pass cannot be traced ({type(error).__name__})") from error
    finally:
        if layer:
            layer._forward_hooks.update(hooks)
    [whole] = next(node for node in graph.nodes if node.op == "output").args
    output = getattr(tracer.output, "node", None) if layer else whole
    if not isinstance(output, fx.Node):
        raise UndividedError("its output is not a single tensor" if not layer else f"{backbone.layer} is in a block")
    return graph, output


def _trained(graph: fx.Graph, network: nn.Module) -> set[fx.Node]:
    """Return the nodes that depend on a parameter that is trained."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        own: list[Any] = []
        if node.op == "call_module":
            own = list(network.get_submodule(node.target).parameters())
        elif node.op == "get_attr":
            own = [operator.attrgetter(node.target)(network)]
        trained = any(isinstance(value, Tensor) and value.requires_grad for value in own)
        if trained or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    found, waiting = set(nodes), list(nodes)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _module(
    network: nn.Module, graph: fx.Graph, chosen: set[fx.Node], output: fx.Node, given: fx.Node | None = None
) -> fx.GraphModule:
    """Build a module of some nodes, which shares the network's layers; it is given the value of `given`, if any."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if given is not None:
        copies[given] = part.placeholder("activations")
    for node in graph.nodes:
        if node in chosen:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[output])
    return fx.GraphModule(network, part)

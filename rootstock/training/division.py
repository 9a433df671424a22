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
from rootstock.backbones.depths import Cut, first_tensor, uncut
from rootstock.training.classifier import Classifier

TOLERANCE = 1e-4  # of the largest logit


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
        activations: Tensor = self.network(self.normalise(pixels))
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
        output = (self.when_training if self.training else self.when_evaluating)(activations.float())
        if isinstance(whole.backbone, Cut):
            output = whole.backbone.pooled(first_tensor(output))
        return whole.classify(output)

    def train(self, mode: bool = True) -> "TrainedPart":
        """Set the mode of the whole classifier, which knows what stays in evaluation mode."""
        self.training = mode
        self._classifier().train(mode)
        return self


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
    with torch.inference_mode():
        expected = classifier(example)
        activations = division.frozen(example)
        if not isinstance(activations, Tensor) or len(activations) != len(example):
            raise UndividedError("its frozen part hands over no tensor of a row per image")
        differ = (division.trained(activations) - expected).abs().max()
    if not differ <= TOLERANCE * expected.abs().max().clamp_min(1e-6):
        raise UndividedError(f"its logits would differ by {float(differ):.2g}")


def _parts(classifier: Classifier, training: bool) -> tuple[fx.GraphModule, fx.GraphModule]:
    network = uncut(classifier.backbone)
    network.training = training  # of the whole: blocks are not looked into
    graph = _trace(network)
    output = _output(graph, classifier.backbone)
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
    """Takes blocks as they are."""

    def __init__(self, steps: Iterable[nn.Module]) -> None:
        super().__init__()
        self.steps = set(map(id, steps))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return id(module) in self.steps or super().is_leaf_module(module, name)


def _trace(network: nn.Module) -> fx.Graph:
    given = list(inspect.signature(network.forward).parameters.values())
    defaults = {parameter.name: parameter.default for parameter in given[1:]}  # a mask, say
    try:
        return _Tracer(module for _, modules in blocks(network) for module in modules).trace(network, defaults)
    except Exception as error:  # whatever a forward pass may do with what is no tensor
        raise UndividedError(f"its forward pass cannot be traced ({type(error).__name__})") from error


def _output(graph: fx.Graph, backbone: nn.Module) -> fx.Node:
    """Return the node of the features: the network's output, or that of the layer where it is cut."""
    if not isinstance(backbone, Cut):
        [given] = next(node for node in graph.nodes if node.op == "output").args
        if not isinstance(given, fx.Node):
            raise UndividedError("its output is not a single tensor")
        return given
    for node in graph.nodes:
        if isinstance(node, fx.Node) and node.op == "call_module" and node.target == backbone.layer:
            return node
    raise UndividedError(f"{backbone.layer} lies inside a block")


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

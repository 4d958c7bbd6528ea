"""The interface of a network: it is built from its spec, called with x, t, y, and counted by fvcore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from harness.errors import InputError
from harness.spec.data import InputShape
from harness.spec.model import NETWORKS, ModelSpec


class CostPart(NamedTuple):
    """A model whose cost, multiplied by `times`, is a part of the cost of another model."""

    times: int
    model: ModelSpec


class Network(nn.Module, ABC):
    """Predicts `outputs` values for each value of its input.

    Each subclass has its own file and a line in `NETWORKS`; in a user's file it has the attribute `Spec` instead of the
    line. It holds no random state: for label dropout the caller passes `null_class`.

    Args:
        model: its spec.
        shape: of its input.
        outputs: values predicted for each value of the input; the objective says how many.
    """

    #: Its spec, a subclass of `ModelSpec`.
    Spec: ClassVar[type[ModelSpec]]
    #: Handles for its operators that fvcore does not count: name -> (inputs, outputs) -> multiply-adds.
    op_handles: ClassVar[Mapping[str, Callable[[list[Any], list[Any]], int]]] = {}

    def __init__(self, model: ModelSpec, shape: InputShape, outputs: int = 2) -> None:
        super().__init__()
        self.shape, self.outputs = shape, outputs

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict what the objective asks for.

        Args:
            x: noised images (N, C, S, S).
            t: times (N,), integer or float, as the objective draws them.
            y: labels (N,) int64, `null_class` where dropped; None if and only if the network has no classes.

        Returns:
            (N, outputs * C, S, S): C channels of the first predicted value, then C of the next.
        """

    @property
    def null_class(self) -> int:
        """The label that stands for "no label": the number of classes.

        Raises:
            InputError: the network has no classes.
        """
        if not self.shape.classes:
            raise InputError("a model without classes has no null class")
        return self.shape.classes

    def regions(self) -> Iterable[nn.Module]:
        """The parts that are compiled, by default the whole; parts of one kind and shape share their code."""
        return [self]

    def compile_regions(self) -> None:
        """Compile the regions, in place: names of weights stay. Another shape of the input needs new code."""
        for part in self.regions():
            part.compile(dynamic=False)

    def initialise(self, seed: int) -> None:
        """Overwrite every parameter by torch's own initialisation, decided by `seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()

    @classmethod
    def cost_parts(cls, model: ModelSpec) -> list[CostPart]:
        """Models whose costs add up to that of `model`; smaller ones are traced faster."""
        return [CostPart(1, model)]


def build(model: ModelSpec, shape: InputShape, outputs: int) -> Network:
    """The network that a spec names, with torch's default weights; `initialise` sets them from a seed."""
    network: Network = NETWORKS.load(model.network)(model, shape, outputs)
    return network

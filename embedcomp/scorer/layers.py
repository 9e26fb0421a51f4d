"""The layers of a standalone model as torch has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from embedcomp.engine.arrays import as_array
from embedcomp.engine.standalone import Standalone
from embedcomp.engine.tensors import bytes_by_layer
from embedcomp.graph.lookups import plain_linear
from embedcomp.modules.layout import Compressed, module_of
from embedcomp.modules.linear import ServedLinear


class Layers:
    """Compressed layers, built from their description, and the weights that a program reads.

    Args:
        held: the artifact's tensors.
    """

    def __init__(self, standalone: Standalone, held: Mapping[str, Tensor]):
        self.held, self._tables = held, standalone.tables
        self._built = {name: _layer(name, what, held) for name, what in standalone.layers.items()}

    def of(self, name: str) -> Any:
        """A compressed layer; None: the layer was kept as it is."""
        return self._built.get(name)

    def resident(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """Bytes of the numbers that torch reads, by module.

        Args:
            weights: of the dense part, decoded; tables are read as they are stored.
        """
        inside = tuple(f"{table}." for table in self._tables)
        held = {name: t for name, t in self.held.items() if name.startswith(inside)}
        arrays = {name: as_array(tensor.detach()) for name, tensor in {**held, **weights}.items()}
        return bytes_by_layer(arrays, self._tables)

    def weight(self, name: str) -> Tensor:
        """A weight of the dense part; that of a compressed layer is decoded."""
        if name in self.held:
            return self.held[name]
        layer, _, part = name.rpartition(".")
        plain = self._built[layer]
        assert isinstance(plain, ServedLinear)
        found: Tensor = getattr(plain_linear(plain), part).detach()
        return found


def _layer(name: str, layout: Mapping[str, Any], held: Mapping[str, Tensor]) -> Compressed:
    with torch.device("meta"):
        layer = module_of(layout)
    inside = f"{name}."
    own = {n.removeprefix(inside): t for n, t in held.items() if n.startswith(inside)}
    layer.load_state_dict(own, assign=True)
    return layer.eval()

"""Several adapters over one base in one batch: each row of the batch has its own, or none.

    y_i = W x_i + s_a B_a A_a x_i + b,     a the adapter of row i

The base is in memory once and multiplies the whole batch at once; updates multiply the rows that are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from eckart.nn.adapters.adapter import Adapter, check_fits, filled
from eckart.nn.adapters.lora import LoRA
from eckart.nn.surgery import replace_layer

__all__ = ["ManyLoRA", "adapters_by_row", "put_adapters"]


class ManyLoRA(nn.Module):
    """A frozen layer with the updates of several adapters.

    Parameters
    ----------
    updates : mapping of str to LoRA
        By name of adapter, all over one base.

    Attributes
    ----------
    rows : dict of str to Tensor, or None
        Which rows of the batch each adapter has; None for the base alone.
    """

    def __init__(self, updates: Mapping[str, LoRA]) -> None:
        super().__init__()
        self.base = next(iter(updates.values())).base
        self.names, self.updates = list(updates), nn.ModuleList(updates.values())
        self.rows: dict[str, torch.Tensor] | None = None
        self.batch = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer, to each row with its update."""
        y = self.base(x)
        if self.rows is None:
            return y
        if len(x) != self.batch:
            raise ValueError(f"a layer got {len(x)} rows in a batch of {self.batch}: this model mixes rows")
        for name, update in zip(self.names, self.updates, strict=True):
            where = self.rows.get(name)
            if where is not None:
                assert isinstance(update, LoRA)
                y = y.index_copy(0, where, update.added(y.index_select(0, where), x.index_select(0, where)))
        return y


def put_adapters(network: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Put several adapters into a network, in place; it then computes what it did, until rows are given theirs.

    Parameters
    ----------
    network : Module
    adapters : mapping of str to Adapter
        By a name for each.

    Raises
    ------
    ValueError
        One does not fit; the network is then as it was. See `eckart.nn.adapters.adapter.check_fits`.

    Examples
    --------
    >>> from eckart.nn.adapters.adapter import adapter_of
    >>> from eckart.nn.adapters.lora import add_lora
    >>> tuned, network = (nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
    >>> _ = add_lora(tuned, rank=1)["0"].B.data.fill_(1.0)
    >>> put_adapters(network, {"one": adapter_of(tuned)})
    >>> x = torch.ones(2, 2)
    >>> plain = network(x)
    >>> with adapters_by_row(network, ["one", None]):
    ...     (network(x) == plain).all(dim=1)
    tensor([False,  True])
    """
    found: dict[str, dict[str, LoRA]] = {}
    layers: dict[str, Any] = {}
    for adapter in adapters.values():
        layers |= check_fits(adapter, network)
    network.requires_grad_(False)
    for key, adapter in adapters.items():
        for name in adapter.layers:
            found.setdefault(name, {})[key] = filled(layers[name], adapter, name).requires_grad_(False)
    for name, updates in found.items():
        replace_layer(network, name, ManyLoRA(updates))


@contextmanager
def adapters_by_row(network: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Give each row of the batches that a network reads meanwhile its adapter.

    Parameters
    ----------
    network : Module
        After `put_adapters`.
    names : sequence of str or None
        An adapter for each row, None for the base alone.

    Raises
    ------
    ValueError
        A name that no adapter has, no adapters, or, in the network, a batch of another size.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, ManyLoRA)]
    known = {name for layer in layers for name in layer.names}
    for name in names:
        if name is not None and name not in known:
            raise ValueError(f"no adapter has the name {name!r}: there are {', '.join(sorted(known)) or 'none'}")
    for layer in layers:
        device = layer.base.weight.device
        places = {name: [i for i, other in enumerate(names) if other == name] for name in layer.names}
        layer.rows = {name: torch.tensor(where, device=device) for name, where in places.items() if where}
        layer.batch = len(names)
    try:
        yield
    finally:
        for layer in layers:
            layer.rows = None

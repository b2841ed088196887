"""Readable twin of calibration: all activations and gradients of a network at once."""

from __future__ import annotations

import torch


def passed_through(network, layers, run):
    """Inputs and output gradients of each layer while ``run(network)`` gives a number to differentiate, or None."""
    kept = {name: ([], []) for name in layers}
    handles = []
    for name in layers:

        def hook(module, x, out, name=name):
            kept[name][0].append(x[0].detach())
            if not out.requires_grad:
                out.requires_grad_()
            out.register_hook(lambda g: kept[name][1].append(g.detach()))

        handles.append(network.get_submodule(name).register_forward_hook(hook))
    run(network)
    for handle in handles:
        handle.remove()
    return {
        name: tuple(torch.cat([x.reshape(-1, x.shape[-1]).double() for x in side]) if side else None for side in both)
        for name, both in kept.items()
    }

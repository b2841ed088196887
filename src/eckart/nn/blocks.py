"""A network as blocks that run one after another, so that one of them at a time has to be in memory.

    start -> block 0 -> block 1 -> ... -> finish

`LanguageBlocks` is a causal language model in a directory: its embeddings, last norm and softmax stay, its transformer
blocks are built empty, and each gets its weights from the files when its turn comes. What a block is called with
beside the hidden states (masks, positions) is what the model itself passes: it is run once with its blocks replaced
by recorders. `WholeNetwork` is any torch module, as one block.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from eckart.core.extras import needed
from eckart.nn.experts import UnstackedWeights, unstack
from eckart.nn.weights import Weights, tied_to

__all__ = ["Blocks", "LanguageBlocks", "WholeNetwork", "drawn_label_loss"]


class Blocks(Protocol):
    """What calibration needs to know of a network."""

    names: list[str]  # of the blocks, as prefixes of their layers' names
    model: nn.Module  # the whole, perhaps without weights

    def samples(self, batch: Any) -> int:
        """Count what the loss is an average over."""
        ...

    def start(self, batch: Any) -> Any:
        """Give the first block's input."""
        ...

    def load(self, index: int) -> nn.Module:
        """Give a block with its weights, which are not trained."""
        ...

    def run(self, index: int, block: nn.Module, hidden: Any) -> Any:
        """Give the block's output, the next one's input."""
        ...

    def draw(self, batch: Any, hidden: Any, generator: torch.Generator) -> torch.Tensor:
        """Give a number whose gradient is a draw from the loss's curvature at the network's output.

        Its gradients g at any place of the network have E[g g'] = the Gauss-Newton matrix there.
        """
        ...


class WholeNetwork:
    """Any torch module, as one block.

    Parameters
    ----------
    network : Module
        Called as ``network(**batch)`` for a mapping, ``network(*batch)`` for a tuple, else ``network(batch)``.
    draw : callable, optional
        ``draw(output, generator)``, as `Blocks.draw`. By default the curvature of half the squared distance between
        outputs: a sum of the output's numbers times Gaussian noise.
    """

    def __init__(self, network: nn.Module, draw: Callable[[Any, torch.Generator], torch.Tensor] | None = None) -> None:
        self.names, self.model, self._draw = [""], network, draw or _gaussian

    def samples(self, batch: Any) -> int:
        """Length of the batch."""
        inputs = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else (batch,)
        return len(next(iter(inputs)))

    def start(self, batch: Any) -> Any:
        """Give the batch itself."""
        return batch

    def load(self, index: int) -> nn.Module:
        """Give the network."""
        return self.model

    def run(self, index: int, block: nn.Module, hidden: Any) -> Any:
        """Give the network's output."""
        if isinstance(hidden, Mapping):
            return block(**hidden)
        return block(*hidden) if isinstance(hidden, tuple) else block(hidden)

    def draw(self, batch: Any, hidden: Any, generator: torch.Generator) -> torch.Tensor:
        """See `Blocks.draw`."""
        return self._draw(hidden, generator)


def drawn_label_loss(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sum the losses of labels that are drawn from the predictions themselves.

    Parameters
    ----------
    logits : Tensor of shape (tokens, vocabulary)
    generator : Generator
    """
    with torch.no_grad():
        labels = torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def _gaussian(output: Any, generator: torch.Generator) -> torch.Tensor:
    if not isinstance(output, torch.Tensor):  # a model output of transformers: its first tensor
        output = next(x for x in (output.values() if isinstance(output, Mapping) else output) if x is not None)
    return (output * torch.randn(output.shape, generator=generator).to(output)).sum()


class LanguageBlocks:
    """A causal language model of transformers, from its directory, a block at a time. Computes in float32.

    Experts of a mixture are layers, see `eckart.nn.experts`.

    Parameters
    ----------
    folder : path

    Raises
    ------
    FileNotFoundError, ValueError
        No model there, an architecture that transformers does not know or that has no list of blocks, or weights that
        do not fit it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        transformers, accelerate = needed("transformers", "hf"), needed("accelerate", "hf")
        Weights(folder)  # there are some
        try:
            self.config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            with accelerate.init_empty_weights(include_buffers=False):
                self.model = transformers.AutoModelForCausalLM.from_config(self.config, dtype=torch.float32).eval()
        except (ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: no causal language model that transformers knows: {reason}") from None
        self._weights = UnstackedWeights(folder, unstack(self.model))
        lists = [(name, x) for name, x in self.model.named_modules() if isinstance(x, nn.ModuleList) and len(x)]
        # Of equal members: a mixture's experts are a list within one of these.
        lists = [(name, x) for name, x in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
        if not lists:
            raise ValueError(f"{folder}: {type(self.model).__name__} has no list of blocks")
        name, self._blocks = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))
        self.names = [f"{name}.{i}" for i in range(len(self._blocks))]
        self._in_tuples = False  # whether a block wraps its output
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] | None = None
        for name, parameter in self.model.named_parameters():
            self._source(name, parameter)  # all are there, before any work
        inside = tuple(f"{name}." for name in self.names)
        self._fill(self.model, "", lambda name: not name.startswith(inside))
        self.model.requires_grad_(False)

    def _source(self, name: str, parameter: torch.Tensor) -> str:
        tied, shape = tied_to(self.model, name), tuple(parameter.shape)
        return self._weights.source(name, tied, shape, type(self.model).__name__)

    def _fill(self, module: nn.Module, prefix: str, wanted: Callable[[str], bool]) -> None:
        read: dict[str, nn.Parameter] = {}  # tied ones stay one
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            if parameter.is_meta and wanted(prefix + name):
                source = self._source(prefix + name, parameter)
                if source not in read:
                    read[source] = nn.Parameter(self._weights.read(source).to(torch.float32), requires_grad=False)
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, read[source])
        for name, _ in module.named_buffers():
            if prefix + name in self._weights and wanted(prefix + name):
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, self._weights.read(prefix + name))

    def samples(self, batch: torch.Tensor) -> int:
        """Count the tokens."""
        return batch.numel()

    @torch.no_grad()
    def start(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed the tokens of one window, (1, context): (1, context, d)."""
        return self._first(batch)

    def pull_back(self, batch: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Give the gradient at the embedding's output, where that at the first block's input is known."""
        cut: list[torch.Tensor] = []

        def detach(module: nn.Module, arguments: Any, out: torch.Tensor) -> torch.Tensor:
            cut.append(out.detach().requires_grad_())
            return cut[0]

        handle = self.model.get_input_embeddings().register_forward_hook(detach)
        try:
            hidden = self._first(batch)
        finally:
            handle.remove()
        return torch.autograd.grad(hidden, cut[0], gradient)[0]

    def _first(self, batch: torch.Tensor) -> torch.Tensor:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[torch.Tensor] = []

        def record(*arguments: Any, **keywords: Any) -> torch.Tensor:
            if arguments:
                hidden, arguments = arguments[0], arguments[1:]
            else:
                hidden = keywords.pop("hidden_states")
            first.append(hidden)
            calls.append((arguments, keywords))
            if len(calls) == len(self._blocks):
                raise _Recorded
            return hidden

        with self._instead(record), suppress(_Recorded):
            self.model(batch, use_cache=False)
        self._calls = calls  # the same for every window of this length
        return first[0]

    def load(self, index: int) -> nn.Module:
        """Build a block of its own; dropped, it frees its memory."""
        block = copy.deepcopy(self._blocks[index])
        self._fill(block, f"{self.names[index]}.", lambda name: True)
        return block.requires_grad_(False)

    def run(self, index: int, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Give the block's output, (1, context, d)."""
        assert self._calls is not None
        arguments, keywords = self._calls[index]
        out = block(hidden, *arguments, **keywords)
        self._in_tuples = isinstance(out, tuple)
        return out[0] if self._in_tuples else out

    def logits(self, batch: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Give the logits that follow from the last block's output: (1, context, vocabulary)."""
        with self._instead(lambda *_, **__: (hidden,) if self._in_tuples else hidden):
            return self.model(batch, use_cache=False).logits

    def draw(self, batch: torch.Tensor, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """See `Blocks.draw`: the curvature is that of the KL divergence of the model's predictions."""
        return drawn_label_loss(self.logits(batch, hidden)[0], generator)

    @contextmanager
    def _instead(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Have the blocks do something else meanwhile; their attributes, which models read, stay."""
        for block in self._blocks:
            block.forward = forward
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward


class _Recorded(Exception):
    pass

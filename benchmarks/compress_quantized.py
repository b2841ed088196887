"""4 bits, and 4 bits with a part of low rank: perplexity of SmolLM2-135M-Instruct on two texts.

    python benchmarks/compress_quantized.py SHARED_DATA MODEL [--bits 4] [--group 128] [--rank 16 32]

MODEL is the directory that compress_language.py makes. The linear layers in the blocks are rounded, to nearest and by
GPTQ, and what was lost gets factors of low rank in the metric of the inputs (24 x 1,024 tokens of WikiText-2 valid);
the rest stays float32. Bits are those a weight of these layers takes, factors of 16 bits included. The weights were 4
bits in groups of 32 before (the package has no others): groups of 32 would give them back. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from eckart.nn.language import load_model, load_tokenizer, needed_tokens, perplexity, read_text, tokens_of, windows_of
from eckart.nn.quantize import gptq, quantized_bits, round_to_nearest, with_low_rank
from eckart.nn.surgery import layers_of


@torch.no_grad()
def second_moments(model: torch.nn.Module, layers: dict, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """E[x x'] of every layer's inputs; one tensor for layers that have one input."""
    sums: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}
    owner: dict[str, str] = {}

    def watch(name: str, x: torch.Tensor) -> None:
        owner.setdefault(name, next((owner[other] for other, y in seen.items() if y is x), name))
        seen[name] = x
        if owner[name] == name:
            rows = x.flatten(0, -2)
            sums[name] = sums.get(name, 0) + (rows.T @ rows).double()  # type: ignore[arg-type]

    handles = [
        layer.register_forward_pre_hook(lambda module, x, name=name: watch(name, x[0]))
        for name, layer in layers.items()
    ]
    for window in windows:
        seen.clear()
        model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: sums[owner[name]] / windows.numel() for name in layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--rank", type=int, nargs="+", default=[16, 32])
    asked = parser.parse_args()
    tokenizer, model = load_tokenizer(asked.model), load_model(asked.model).requires_grad_(False)
    texts = asked.data / "text"
    tests = [
        tokens_of(tokenizer, read_text(file))[: needed_tokens(8, 1024)]
        for file in (texts / "wikitext2" / "wiki.test.raw.xz", texts / "war_and_peace.txt.xz")
    ]
    calibration = tokens_of(tokenizer, read_text(texts / "wikitext2" / "wiki.valid.raw.xz"))
    layers = layers_of(model, skip=["lm_head"])
    R = second_moments(model, layers, windows_of(calibration, 1024, 24))
    dense = {name: layer.weight.data.clone() for name, layer in layers.items()}

    def measured(bits: float) -> dict[str, object]:
        return {"bits": round(bits, 3), "perplexity": [round(perplexity(model, t).perplexity, 3) for t in tests]}

    def grids(name: str) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {
            "nearest": lambda W: round_to_nearest(W, asked.bits, asked.group),
            "gptq": lambda W: gptq(W, R[name], asked.bits, asked.group),
        }

    results: dict[str, object] = {"dense": measured(32)}
    numbers = sum(W.numel() for W in dense.values())
    base = sum(W.numel() * quantized_bits(W.shape[1], asked.bits, asked.group) for W in dense.values()) / numbers
    for kind in ("nearest", "gptq"):
        for name, layer in layers.items():
            layer.weight.data = grids(name)[kind](dense[name])
        results[kind] = measured(base)
        print(json.dumps({kind: results[kind]}), flush=True)
        for rank in asked.rank:
            more = sum(16 * rank * sum(W.shape) for W in dense.values()) / numbers
            for name, layer in layers.items():
                rounds = 3 if kind == "nearest" else 1
                Q, X = with_low_rank(dense[name], grids(name)[kind], rank, right=R[name], rounds=rounds)
                layer.weight.data = Q + X.dense().float()
            results[f"{kind} + rank {rank}"] = measured(base + more)
            print(json.dumps({f"{kind} + rank {rank}": results[f"{kind} + rank {rank}"]}), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

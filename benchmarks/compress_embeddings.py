"""The embedding of SmolLM2-135M-Instruct alone compressed, blocks as they are: perplexity on two texts.

    python benchmarks/compress_embeddings.py SHARED_DATA FOLDER [--keep 0.8 0.6 0.4]

Three ways in the same numbers, k (m + d - k) + m a group: the plain SVD, all tokens in one group in the metric of
frequencies and uses, and twelve groups of 4,096 tokens. The embedding is tied to the softmax, 28.3 million numbers.
The protocol is that of compress_language.py, which also makes the model in FOLDER/dense. Prints a JSON object after
every budget, with all there is so far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from eckart.core.lowrank import pivoted_numbers
from eckart.core.svd import metric_svd
from eckart.nn.blocks import LanguageBlocks
from eckart.nn.calibrate import decompose
from eckart.nn.language import load_model, load_tokenizer, needed_tokens, perplexity, read_text, tokens_of, windows_of
from eckart.nn.plan import plan_ranks
from eckart.nn.vocabulary import decompose_vocabulary, grouped_tensors


def plain(W: torch.Tensor, keep: float) -> torch.Tensor:
    m, d = W.shape
    rank = max(k for k in range(d) if pivoted_numbers(m, d, k) + m <= keep * m * d)
    return metric_svd(W).cut(rank).dense().float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--windows", type=int, default=8, help="of each text to test on")
    asked = parser.parse_args()
    model, texts, work = asked.folder / "dense", asked.data / "text", asked.folder / "embedding-work"
    tokenizer = load_tokenizer(model)

    def tokens(file: Path, windows: int) -> torch.Tensor:
        return tokens_of(tokenizer, read_text(file))[: needed_tokens(windows, 1024)]

    tests = [tokens(texts / file, asked.windows) for file in ("wikitext2/wiki.test.raw.xz", "war_and_peace.txt.xz")]
    started = time.perf_counter()
    batches = list(windows_of(tokens(texts / "wikitext2" / "wiki.valid.raw.xz", 24), 1024)[:, None])
    blocks, found = LanguageBlocks(model), {}
    decompose(blocks, batches, work / "ends", patterns=(), keep_ends=True)
    for groups in (1, 12):
        if not (work / str(groups)).exists():
            shutil.copytree(work / "ends", work / f"{groups}.part")
            (work / f"{groups}.part").rename(work / str(groups))
        found[groups] = decompose_vocabulary(blocks, batches, work / str(groups), groups=groups)
    results: dict[str, object] = {"calibration_seconds": round(time.perf_counter() - started, 1)}
    network = load_model(model).requires_grad_(False)
    weight = network.get_input_embeddings().weight
    W, name = weight.clone(), next(iter(found[12].groups))

    def measured(X: torch.Tensor) -> list[float]:
        weight.copy_(X)
        return [perplexity(network, test).perplexity for test in tests]

    results["dense"] = measured(W)
    for keep in asked.keep:
        for groups in (12, 1):
            plan = plan_ranks(found[groups].layers, keep)
            X = grouped_tensors(W, found[groups], plan, name, dense=True)["weight"]
            ranks = [(x.shape[0], x.rank) for x in plan.layers.values()]
            row = {"perplexity": measured(X), "predicted_loss": plan.loss, "keep": plan.keep, "ranks": ranks}
            results[f"keep {keep}, {groups} groups"] = row
        results[f"keep {keep}, plain"] = {"perplexity": measured(plain(W, keep))}
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()

"""A step of LoRA training of SmolLM2-135M-Instruct, ours beside peft's: seconds and peak memory.

    python benchmarks/lora_step.py MODEL SHARED_DATA [--rounds 3] [--steps 4] [--rank 16]

Every linear layer of the blocks is adapted, rank 16, alpha 32, AdamW, float32, a window of 1,024 tokens a step: what
the first windows of SST-2's training sentences pack into. A process a side and round, in turns; of its steps the
first does not count. Three ways:

    ours          eckart.nn.adapters.finetune
    peft          peft's model in the same loop: the same windows, logits made only where a token counts
    peft, whole   peft's model with labels given to transformers, logits everywhere, as its examples train

Prints one JSON object: medians of seconds a step, largest peak bytes, ratios to ours, and the losses of all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from eckart.nn.adapters.examples import Packed, drawn, encode, pack, read_rows
from eckart.nn.adapters.finetune import finetune
from eckart.nn.adapters.lora import add_lora, lora_parameters
from eckart.nn.language import load_model, load_tokenizer
from eckart.nn.train import rate_at

PATTERNS = ("Review: {sentence}\nIs it positive? 0 no, 1 yes:", " {label}")
WAYS = ("ours", "peft", "peft, whole")


def windows_of(model: Path, data: Path, steps: int) -> Packed:
    rows = drawn(read_rows(data / "tasks" / "sst2.parquet", "train"), 2000, seed=0)
    packed, _ = pack(encode(rows, load_tokenizer(model), *PATTERNS), 1024)
    return packed.rows(slice(steps))


def peft_model(network: Any, rank: int) -> Any:
    import peft

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    asked = peft.LoraConfig(r=rank, lora_alpha=32, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return peft.get_peft_model(network, asked)


def one(way: str, model: Path, data: Path, steps: int, rank: int) -> dict[str, Any]:
    windows, network = windows_of(model, data, steps), load_model(model)
    times = [time.perf_counter()]
    if way == "peft, whole":
        network = peft_model(network, rank)
        parameters = [x for x in network.parameters() if x.requires_grad]
        optimizer, losses = torch.optim.AdamW(parameters, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0), []
        order = torch.randperm(steps, generator=torch.Generator().manual_seed(0))
        network.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, 2e-4, 0.1)
            read = windows.rows(order[step : step + 1])
            given = {"input_ids": read.tokens, "position_ids": read.positions, "labels": read.labels}
            loss = network(**given, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            times.append(time.perf_counter())
    else:
        if way == "peft":
            parameters = {name: x for name, x in peft_model(network, rank).named_parameters() if x.requires_grad}
        else:
            add_lora(network, rank, 32.0)
            parameters = lora_parameters(network)
        told = lambda *_: times.append(time.perf_counter())  # noqa: E731
        losses = finetune(network, parameters, windows, 2e-4, batch=1, progress=told).losses
    seconds = [b - a for a, b in itertools.pairwise(times[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--one", choices=WAYS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked.model, asked.data, asked.steps, asked.rank)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(asked.rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            command = [sys.executable, __file__, str(asked.model), str(asked.data), "--one", way]
            command += ["--steps", str(asked.steps), "--rank", str(asked.rank)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(done.stdout))
    table = {
        way: {
            "seconds": round(statistics.median(x for r in runs for x in r["seconds"]), 3),
            "peak_bytes": max(r["peak_bytes"] for r in runs),
            "losses": [round(x, 5) for x in runs[0]["losses"]],
        }
        for way, runs in found.items()
    }
    ours = table["ours"]
    for row in table.values():
        row |= {x: round(row[y] / ours[y], 3) for x, y in (("times_ours", "seconds"), ("memory_of_ours", "peak_bytes"))}
    print(json.dumps(table))


if __name__ == "__main__":
    main()

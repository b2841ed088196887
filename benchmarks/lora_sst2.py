"""SmolLM2-135M-Instruct tuned on SST-2, by LoRA and with all weights: what each learned, and forgot of WikiText-2.

    python benchmarks/lora_sst2.py MODEL SHARED_DATA FOLDER [--tried 600] [--examples 1000] [--ranks 16]

The protocol: sentences of the training part, "SENTENCE\\nSentiment:", then " negative" or " positive"; windows of 256
tokens, about 14 sentences and a step each; one epoch, seed 0. Learning rates are chosen with `eckart lora frontier` on
`--tried` sentences, by accuracy on 120 of the dev part and then by loss, beside WikiText-2 valid. Then one LoRA run of
the first rank and one run of all weights are trained on `--examples` sentences, and measured once on the 872 of the
test part and on 32 x 256 tokens of WikiText-2 test, before and after. What is there in FOLDER is not run again. Prints
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from eckart.nn.adapters.examples import read_rows

WORDS = (" negative", " positive")


def eckart(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(["eckart", *map(str, arguments), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def write(data: Path, folder: Path) -> dict[str, Path]:
    files = {part: folder / f"{part}.jsonl" for part in ("train", "dev", "test")}
    for part, file in files.items():
        rows = read_rows(data / "tasks" / "sst2.parquet", part)
        said = ({"prompt": f"{r['sentence'].strip()}\nSentiment:", "completion": WORDS[r["label"]]} for r in rows)
        file.write_text("".join(json.dumps(row) + "\n" for row in said), "utf-8")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tried", type=int, default=600)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16])
    parser.add_argument("--lrs", default="1e-4,4e-4,1.6e-3")
    parser.add_argument("--full-lrs", default="1e-5,3e-5,1.5e-4")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    files, text = write(asked.data, asked.folder), asked.data / "text" / "wikitext2"
    form = ["--context", 256, "--batch", 1, "--validation", files["dev"]]
    tried = ["--held", 120, "--limit", asked.tried, "--knew", text / "wiki.valid.raw.xz", "--knew-windows", 16]
    rates = ["--ranks", ",".join(map(str, asked.ranks)), "--lrs", asked.lrs, "--full-lrs", asked.full_lrs]
    found = eckart(
        "lora", "frontier", asked.model, files["train"], *form, *tried, *rates, "-o", asked.folder / "frontier"
    )
    results: dict[str, Any] = {"frontier": found["rows"]}
    measured = ["--held", 60, "--limit", asked.examples, "--test", files["test"]]
    measured += ["--knew", text / "wiki.test.raw.xz", "--knew-windows", 32]
    for method, how in ((f"rank {asked.ranks[0]}", ["--rank", asked.ranks[0]]), ("all weights", ["--full"])):
        rows = [row for row in found["rows"] if row["method"] == method]
        lr = max(rows, key=lambda row: (row["accuracy"], -row["loss"]))["lr"]
        out, started = asked.folder / method.replace(" ", "-"), time.perf_counter()
        if not (out / "eckart.json").exists():
            arguments = ["-o", out, "--lr", lr, *how, "--plot", out.with_suffix(".png")]
            made = eckart("lora", "train", asked.model, files["train"], *form, *measured, *arguments)
            made["wall_seconds"] = time.perf_counter() - started
            (asked.folder / f"{out.name}.json").write_text(json.dumps(made), "ascii")
        made = json.loads((asked.folder / f"{out.name}.json").read_bytes())
        names = ("lr", "steps", "best_step", "trained_numbers", "peak_bytes", "wall_seconds", "before", "after")
        results[method] = {name: made[name] for name in names}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

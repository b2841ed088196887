"""Without torch, or transformers, what imports it is left out of the doctests; its tests say so themselves."""

import importlib.util
from pathlib import Path

_TOWERS, _NN = Path("src/eckart/recommend/towers"), Path("src/eckart/nn")
collect_ignore: list[str] = []
if not importlib.util.find_spec("torch"):
    collect_ignore += [str(_TOWERS / f"{name}.py") for name in ("distributed", "fit", "losses", "net", "train")]
    collect_ignore += [str(file) for file in _NN.glob("*.py") if file.name != "__init__.py"]
elif not importlib.util.find_spec("transformers"):
    collect_ignore += [str(_NN / "hf.py")]

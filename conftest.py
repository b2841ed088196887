"""Without torch, what imports it is left out of the doctests; its tests say so themselves."""

import importlib.util
from pathlib import Path

_TOWERS = Path("src/eckart/recommend/towers")
collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else [str(_TOWERS / f"{name}.py") for name in ("distributed", "fit", "losses", "net", "train")]
)

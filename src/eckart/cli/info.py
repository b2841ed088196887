"""``eckart info``: what is installed here, or what a model directory holds."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any

import typer

from eckart.cli import terminal

__all__ = ["info"]

_EXTRAS = ("demo", "plot", "torch", "hf")  # for users; [test] and [all] are for us and for the lazy
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[([\w,-]+)\])?.*\bextra\s*==\s*['"]([\w-]+)['"]""")


def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="directory that eckart fit wrote", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show what is installed here, or what a model is."""
    if model is None:
        found = _installation()
        flat = {"version": found["version"], **{f"kernels: {k}": v for k, v in found["kernels"].items()}}
        flat |= {f"solver {k}": v for k, v in found["solvers"].items()}
        flat |= {f"extra [{k}]": _state(k, v["missing"]) for k, v in found["extras"].items()}
    else:
        found = _model(model)
        flat = {k: v for k, v in found.items() if k != "history"}
    if as_json:
        terminal.print_json(found)
        return
    terminal.print_facts("what", flat)
    if found.get("history"):
        print()
        columns = list(found["history"][0])
        terminal.print_table(columns, [[record.get(name) for name in columns] for record in found["history"]])


def _installation() -> dict[str, Any]:
    import eckart
    from eckart.recommend.solver import SOLVERS, named_solver

    return {
        "version": eckart.__version__,
        "kernels": eckart.kernel_info(),
        "solvers": {name: dataclasses.asdict(named_solver(name, {})) for name in SOLVERS},  # type: ignore[call-overload]
        "extras": {name: _extra(name) for name in _EXTRAS},
    }


def _extra(name: str) -> dict[str, Any]:
    """Whether all that an extra asks for is there, by what the installed package says of itself."""
    from importlib import metadata

    wanted = _wanted(name, metadata.requires("eckart") or [])
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    missing = [name for name in wanted if name.lower() not in installed]
    return {"installed": not missing, "missing": missing}


def _wanted(extra: str, requirements: list[str]) -> list[str]:
    names = []
    for found in map(_REQUIREMENT.match, requirements):
        if found and found[3] == extra:
            inner = found[2].split(",") if found[1] == "eckart" else []
            names += [found[1]] if not inner else [n for one in inner for n in _wanted(one, requirements)]
    return names


def _model(path: str) -> dict[str, Any]:
    import eckart
    from eckart.recommend.solver import solver_name

    model = eckart.load(path)
    settings = dataclasses.asdict(model.solver)  # type: ignore[call-overload]
    del settings["threads"]  # of the run, not of the model
    return {
        "model": path,
        "solver": solver_name(model.solver),
        "settings": settings,
        "users": len(model.users),
        "items": len(model.items),
        "entries": int(model.seen.nnz),
        "user_ids": "text" if model.users.is_text else "integers",
        "item_ids": "text" if model.items.is_text else "integers",
        "user_features": None if model.user_encoder is None else model.user_encoder.features.kinds,
        "item_features": None if model.item_encoder is None else model.item_encoder.features.kinds,
        "cold_items": len(model.items) - model.item_side.trained,
        "predicts_ratings": model.predicts_ratings,
        "mean": model.item_side.mean,
        "epochs": len(model.history),
        "history": model.history,
    }


def _state(extra: str, missing: list[str]) -> str:
    return f"lacks {', '.join(missing)}: pip install 'eckart[{extra}]'" if missing else "installed"

"""Adapters as files that peft reads and writes: adapter_config.json and adapter_model.safetensors.

    base_model.model.<layer>.lora_A.weight            (r, n), or (r, c, kh, kw) of a convolution
    base_model.model.<layer>.lora_B.weight            (m, r), or (m, r, 1, 1)
    base_model.model.<layer>.lora_embedding_A, _B     (r, tokens), (d, r)
    base_model.model.<layer>.lora_magnitude_vector    (m,), or (1, m, 1, 1); where use_dora is true

Nothing is believed: a setting that changes what is computed and that is not known here is refused, and so is a tensor
too many, too few or of a shape that the config denies.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import eckart
from eckart.core.lowrank import LowRank
from eckart.nn.adapters.adapter import Adapter, Update, is_target
from eckart.nn.output import replaced_whole, write_whole

__all__ = ["CONFIG", "load_adapter", "save_adapter"]

CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|base_layer\.weight)"
)
_A, _B, _BASE = ("lora_A.weight", "lora_embedding_A"), ("lora_B.weight", "lora_embedding_B"), "base_layer.weight"
# Settings that are read, or that say nothing of what is computed once the tensors are there.
_KNOWN = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern", "alpha_pattern"),
    *("fan_in_fan_out", "bias", "base_model_name_or_path", "task_type", "init_lora_weights", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "lora_dropout", "inference_mode", "auto_mapping", "revision"),
    *("peft_version", "loftq_config", "eva_config", "megatron_core", "qalora_group_size", "runtime_config"),
}
# Ways to begin that leave the base as it is; others change it again when peft loads the files.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
_PLAIN = re.compile(r"\^?(?:[\w-]|\\?\.|\\-|\.\*)+\$?")  # of the patterns that peft takes for regular expressions


def save_adapter(adapter: Adapter, out: str | os.PathLike[str], made: Mapping[str, Any] | None = None) -> None:
    """Write an adapter into a directory, whole or not at all; the same adapter gives the same bytes.

    Parameters
    ----------
    adapter : Adapter
    out : path
        Replaced if eckart wrote what is there.
    made : mapping, optional
        Where it comes from, kept in eckart.json.

    Raises
    ------
    FileExistsError, OSError
        The target is something else, or the disk is full; nothing is left behind.
    """
    tensors = {}
    for name, update in adapter.layers.items():
        A, B, g = update.factors.right.T, update.factors.left, update.magnitude
        if update.kernel:
            A, B, g = A.unflatten(1, update.kernel), B[:, :, None, None], None if g is None else g[None, :, None, None]
        tensors[f"{name}.{_A[update.embedding]}"] = A
        tensors[f"{name}.{_B[update.embedding]}"] = B
        tensors |= {} if g is None else {f"{name}.lora_magnitude_vector": g}
    tensors |= {f"{name}.{_BASE}": weight for name, weight in adapter.embeddings.items()}
    tensors = {
        _PREFIX + name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in sorted(tensors)
    }
    with replaced_whole(out, sum(x.nbytes for x in tensors.values())) as scratch:
        write_whole(scratch / _TENSORS, tensors, {"format": "pt"})
        (scratch / CONFIG).write_text(json.dumps(_config(adapter), indent=2, sort_keys=True) + "\n", "utf-8")
        facts = {"eckart": eckart.__version__, "adapter": True, **(made or {})}
        (scratch / "eckart.json").write_text(json.dumps(facts, indent=1) + "\n", "ascii")


def _config(adapter: Adapter) -> dict[str, Any]:
    ranks = {name: update.factors.rank for name, update in adapter.layers.items()}
    alphas = {name: _number(update.alpha) for name, update in adapter.layers.items()}
    r, alpha = (max(sorted(set(x.values())), key=list(x.values()).count) for x in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": adapter.task,
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": k for name, k in ranks.items() if k != r},
        "alpha_pattern": {f"^{re.escape(name)}": a for name, a in alphas.items() if a != alpha},
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "target_modules": sorted(adapter.layers),
        "bias": "none",
        "fan_in_fan_out": False,  # (peft itself sets it for layers whose weights are transposed)
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
    }


def _number(x: float) -> float | int:
    return int(x) if float(x).is_integer() else float(x)


def load_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter that eckart or peft wrote.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Adapter

    Raises
    ------
    FileNotFoundError, ValueError
        No adapter there, one that is damaged, or one of a kind that is not supported; a sentence says which.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no directory of an adapter: it has no {CONFIG}")
    if not (folder / _TENSORS).is_file():
        pickled = "its weights are pickled; save them as safetensors" if (folder / "adapter_model.bin").exists() else ""
        raise FileNotFoundError(f"{folder}: {pickled or f'it has no {_TENSORS}'}")
    config = _read_config(folder / CONFIG)
    parts = _read_tensors(folder / _TENSORS)
    dora, layers, embeddings = config["use_dora"], {}, {}
    for name, tensors in parts.items():
        where = f"{folder / _TENSORS}: {name}"
        if _BASE in tensors:
            embeddings[name] = tensors.pop(_BASE)
        embedding = any(part in tensors for part in (_A[1], _B[1]))
        wanted = {_A[embedding], _B[embedding], *(["lora_magnitude_vector"] if dora else [])}
        if set(tensors) != wanted:
            raise ValueError(
                f"{where} has {', '.join(sorted(tensors)) or 'no factors'}, expected {', '.join(sorted(wanted))}"
            )
        A, B = tensors[_A[embedding]], tensors[_B[embedding]]
        kernel = tuple(A.shape[1:]) if A.ndim == 4 else None
        fit = A.ndim in (2, 4) and B.ndim == A.ndim and 0 not in (*A.shape, *B.shape)
        if not fit or B.shape[1] != A.shape[0] or B[0, 0].numel() != 1:
            raise ValueError(
                f"{where} has factors of the shapes {tuple(A.shape)} and {tuple(B.shape)}, which do not fit"
            )
        factors = LowRank(B.flatten(1), A.flatten(1).T)
        magnitude = tensors.get("lora_magnitude_vector")
        if magnitude is not None:
            m = len(B)
            if tuple(magnitude.shape) != ((1, m, 1, 1) if kernel else (m,)):
                raise ValueError(f"{where} has magnitudes of the shape {tuple(magnitude.shape)}, expected {m} of them")
            magnitude = magnitude.flatten()
        r = _of_layer(config["rank_pattern"], name, config["r"])
        if factors.rank != r:
            raise ValueError(f"{where} has rank {factors.rank}, and {CONFIG} says {r}")
        alpha = _of_layer(config["alpha_pattern"], name, config["lora_alpha"])
        layers[name] = Update(factors, float(alpha), magnitude, kernel, embedding)
    targets = config["target_modules"]
    if isinstance(targets, list):
        for target in targets:
            if not any(is_target(name, target) for name in layers):
                raise ValueError(f"{folder}: {CONFIG} names the layers {target!r}, and there are no tensors for them")
        for name in layers:
            if not any(is_target(name, target) for target in targets):
                raise ValueError(f"{folder}: there are tensors for {name}, and {CONFIG} does not name it")
    partial = any(config.get(key) not in (None, [], "") for key in ("exclude_modules", "layers_to_transform"))
    claimed = tuple(targets) if isinstance(targets, list) and not partial else ()
    base, task = (config.get(key) for key in ("base_model_name_or_path", "task_type"))
    return Adapter(layers, config["use_rslora"], base, task, claimed, embeddings)


def _read_tensors(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    try:
        opened = safe_open(str(file), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    with opened as tensors:
        for key in tensors.keys():  # noqa: SIM118  (no mapping)
            found = _KEY.fullmatch(key)
            if found is None:
                raise ValueError(f"{file}: {key!r} is no part of an update of low rank: it is not supported")
            tensor = tensors.get_tensor(key)
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"{file}: {key} has values that are not finite numbers: it is damaged")
            parts[found[1]][found[2]] = tensor
    if not parts:
        raise ValueError(f"{file} has no tensors")
    return parts


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no JSON object")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    for key, off in (("bias", "none"), ("fan_in_fan_out", False), ("use_rslora", False), ("use_dora", False)):
        config.setdefault(key, off)
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = config.get(key) or {}
    if config["bias"] != "none":
        raise ValueError(f"{file}: bias is {config['bias']!r}, expected 'none': trained biases are not supported")
    for key, value in config.items():
        if key not in _KNOWN and value not in (None, False, [], {}, ""):
            raise ValueError(f"{file}: {key} is {str(value)[:60]!r}: this kind of adapter is not supported")
    init = config.get("init_lora_weights", True)
    if init not in _INITS and init is not None:
        raise ValueError(
            f"{file}: init_lora_weights is {str(init)[:60]!r}, which changes the base: convert it to plain LoRA"
        )
    for key in ("use_rslora", "use_dora", "fan_in_fan_out"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{file}: {key} is {str(config[key])[:60]!r}, expected true or false")
    for key in ("base_model_name_or_path", "task_type"):
        if not isinstance(config.get(key), str | None):
            raise ValueError(f"{file}: {key} is no text")
    numbers = {"r": config.get("r", 8), "lora_alpha": config.get("lora_alpha", 8)}
    config |= numbers
    if not _is_rank(config["r"]) or not _is_alpha(config["lora_alpha"]):
        raise ValueError(f"{file}: r and lora_alpha are {str(list(numbers.values()))[:60]}, expected numbers above 0")
    for key, fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        if not isinstance(config[key], dict) or not all(map(fits, config[key].values())):
            raise ValueError(f"{file}: {key} is not a number above 0 for each name")
        for pattern in config[key]:
            # Of any other, deciding what it matches can take for ever.
            if len(pattern) > 500 or pattern.count("*") > 3 or not _PLAIN.fullmatch(pattern):
                raise ValueError(f"{file}: {key} has {pattern[:60]!r}, expected names, and .* for anything")
    targets = config.get("target_modules")
    if not isinstance(targets, str) and not (
        isinstance(targets, list) and targets and all(isinstance(x, str) for x in targets)
    ):
        raise ValueError(f"{file}: target_modules is no list of names")
    config["target_modules"] = targets
    return config


def _is_rank(x: object) -> bool:
    return type(x) is int and x >= 1


def _is_alpha(x: object) -> bool:
    return type(x) in (int, float) and 0 < x < 1e12  # type: ignore[operator]


def _of_layer(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """What the first pattern that matches the end of a name says, as peft reads it."""
    return next((x for pattern, x in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)

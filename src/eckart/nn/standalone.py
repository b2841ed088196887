"""A compressed model with its code beside the weights: transformers loads it where eckart is not installed.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

config.json then names a kind of model that transformers does not know, and a Python file in the directory that does.
The file is the text of linear.py, which needs torch only, and a subclass of the original class that puts layers of low
rank in place before it is filled. Where the reader does not trust the file, transformers refuses the model: had it
kept its kind, it would be loaded with noise for what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import eckart
from eckart.core.extras import needed
from eckart.nn.weights import METHOD

__all__ = ["CODE", "standalone_code", "standalone_config"]

CODE = f"modeling_{METHOD}.py"

_MODEL = '''

# Below: {model} with such layers, for transformers.

from transformers import {config} as _Config  # noqa: E402
from transformers import {model} as _Model  # noqa: E402


class {config}(_Config):
    """As it was, and `low_rank`: the ranks."""

    model_type = "{method}"


class {model}(_Model):
    """As it was, with layers of low rank where config.low_rank["ranks"] says so."""

    config_class = {config}

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        stored = config.low_rank
        if stored["format_version"] != 1:
            raise ValueError(f"config.json: format_version is {{stored['format_version']!r}}, expected 1")
        modules = dict(self.named_modules())
        for name, rank in stored["ranks"].items():
            if name not in modules:
                raise ValueError(f"config.json gives {{name!r}} a rank, and the model has no such layer")
            old = modules[name]
            m, n = old.weight.shape if isinstance(old, nn.Linear) else reversed(old.weight.shape)  # GPT-2's Conv1D
            like = {{"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}}
            parent, _, last = name.rpartition(".")
            setattr(modules[parent], last, LowRankLinear(n, m, rank, pivoted=stored["pivoted"], **like))

    @classmethod
    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        model, found = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if found["missing_keys"]:  # transformers has filled them with noise
            names = ", ".join(sorted(found["missing_keys"])[:3])
            raise ValueError(f"{{len(found['missing_keys'])}} weights are not in the files: {{names}}, ...")
        for name, layer in model.named_modules():
            if isinstance(layer, LowRankLinear) and layer.pivoted:
                order = layer.order.cpu()
                if not torch.equal(order.sort().values, torch.arange(len(order), dtype=order.dtype)):
                    raise ValueError(f"{{name}}.order is no permutation: the model is damaged")
        return (model, found) if output_loading_info else model
'''


def standalone_code(config: Mapping[str, Any]) -> str:
    """Write the Python file for a model.

    Parameters
    ----------
    config : mapping
        config.json of the original.

    Raises
    ------
    ValueError
        transformers knows no causal language model of this kind.
    """
    config_class, model_class = _classes(config)
    layers = Path(__file__).with_name("linear.py").read_text("utf-8")
    head = f"# Written by eckart {eckart.__version__}, Apache License 2.0. {CODE} needs torch and transformers.\n\n"
    return head + layers + _MODEL.format(config=config_class, model=model_class, method=METHOD)


def standalone_config(config: Mapping[str, Any], ranks: Mapping[str, int], pivoted: bool) -> dict[str, Any]:
    """Give config.json of the compressed model.

    Parameters
    ----------
    config : mapping
        Of the original.
    ranks : mapping
        Of every layer that was replaced.
    pivoted : bool
    """
    config_class, model_class = _classes(config)
    stem = CODE.removesuffix(".py")
    return {
        **config,
        "model_type": METHOD,
        "architectures": [model_class],
        "auto_map": {"AutoConfig": f"{stem}.{config_class}", "AutoModelForCausalLM": f"{stem}.{model_class}"},
        "low_rank": {
            "format_version": 1,
            "model_type": config["model_type"],
            "pivoted": pivoted,
            "ranks": dict(ranks),
        },
    }


def _classes(config: Mapping[str, Any]) -> tuple[str, str]:
    transformers = needed("transformers", "hf")
    try:
        config_class = transformers.AutoConfig.for_model(str(config.get("model_type"))).__class__
        model_class = transformers.AutoModelForCausalLM._model_mapping[config_class]
    except (ValueError, KeyError):
        raise ValueError(
            f"transformers knows no causal language model of the kind {config.get('model_type')!r}"
        ) from None
    return config_class.__name__, model_class.__name__

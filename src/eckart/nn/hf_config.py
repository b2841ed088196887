"""Standalone models (standalone.py) where eckart is installed: read without running the code beside them.

config.json of such a model has the kind "eckart". Here it becomes the configuration of the original kind, with the
ranks where hf.py looks for them. What transformers then saves is a compressed model like any other.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

__all__ = ["StandaloneConfig"]

_METHOD = "eckart"  # that of weights.py, which imports torch


class StandaloneConfig(PretrainedConfig):
    """The kind "eckart": none of its own, but that of the original."""

    model_type = _METHOD

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read config.json: the configuration of the original kind.

        Raises
        ------
        ValueError
            It does not say which kind that is.
        """
        config = {name: x for name, x in config_dict.items() if name not in ("auto_map", "low_rank", "model_type")}
        stored = config_dict.get("low_rank")
        kind = stored.get("model_type") if isinstance(stored, dict) else None
        if not isinstance(stored, dict) or not isinstance(kind, str) or kind == _METHOD or kind not in CONFIG_MAPPING:
            raise ValueError(f"config.json: low_rank.model_type is {kind!r}, expected a kind that transformers knows")
        config["quantization_config"] = {"quant_method": _METHOD} | {k: stored[k] for k in stored if k != "model_type"}
        return CONFIG_MAPPING[kind].from_dict(config, **kwargs)


AutoConfig.register(_METHOD, StandaloneConfig)

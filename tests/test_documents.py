"""What the README and the examples show runs, as it stands there."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    rng = np.random.default_rng(0)
    films = ["Heat (1995)", "Alien (1979)", *(f"film {i}" for i in range(98))]
    drawn = rng.integers([0, 0, 1], [100, 100, 6], (4000, 3))
    lines = [f"u{u},{films[i]},{r}" for u, i, r in drawn.tolist()]
    (tmp_path / "ratings.csv").write_text("user,item,rating\n" + "\n".join(dict.fromkeys(lines)) + "\nu42,film 0,4\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "rmse" in capsys.readouterr().out
    assert (tmp_path / "model" / "config.json").is_file()


def test_the_page_on_cold_start_runs(capsys):
    pytest.importorskip("torch")
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cold-start.md").read_text(), re.S)
    assert len(code) == 4
    exec(compile("\n".join(code), "cold-start.md", "exec"), {})
    assert "cold users: popularity" in capsys.readouterr().out


def test_the_page_on_lora_runs(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "lora.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "lora.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_the_examples_run(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script)])  # without what pytest was called with
    runpy.run_path(str(script))
    assert capsys.readouterr().out


def test_every_link_between_the_pages_leads_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    assert len(pages) > 5
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_benchmark_answers_help():
    missing = [name for name in ("implicit", "PIL", "torch", "transformers") if not importlib.util.find_spec(name)]
    for script in (ROOT / "benchmarks").glob("*.py"):
        text = script.read_text()
        imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
        if "ArgumentParser" in text and "import implicit" not in text and not set(imported) & set(missing):
            subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True)

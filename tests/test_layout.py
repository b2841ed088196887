"""The walls of the house: who may import whom, and what `import eckart` must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eckart

PACKAGE = Path(eckart.__file__).parent
# core <- data <- recommend; core <- nn; all <- cli. A room may use itself and what is listed.
MAY_USE = {
    "core": set(),
    "data": {"core"},
    "recommend": {"core", "data"},
    "nn": {"core"},
    "plot": set(),
    "cli": {"core", "data", "recommend", "nn", "plot"},
}


def rooms_imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {n.split(".")[1] for n in names if n.startswith("eckart.") and n.split(".")[1] in MAY_USE}


def test_imports_point_one_way():
    files = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    assert len(files) > 10
    for path in files:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert room in MAY_USE, f"{path}: a room that the plan does not know; add it to docs/architecture.md and here"
        assert rooms_imported(path) <= MAY_USE[room] | {room}, path


def test_the_check_sees_a_wrong_import(tmp_path):
    wrong = tmp_path / "store.py"
    wrong.write_text("from eckart.recommend import als\nimport eckart.cli.main\n")
    assert rooms_imported(wrong) == {"recommend", "cli"}


@pytest.mark.parametrize(
    "statement, absent",
    [
        ("import eckart", ["numpy", "torch", "pyarrow", "matplotlib", "scipy"]),
        (
            "import eckart; eckart.read, eckart.ALS, eckart.evaluate",
            ["torch", "pyarrow.dataset", "matplotlib", "pandas"],
        ),
        ("import eckart; eckart.TwoTower(item=(eckart.Ids(), eckart.MLP()))", ["torch"]),
        ("import eckart.cli.main", ["numpy", "torch", "pyarrow", "matplotlib", "scipy"]),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_no_pickle_anywhere():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, path


def test_every_public_name_is_documented_and_found():
    for name in eckart.__all__:
        assert getattr(eckart, name).__doc__, name
    assert set(eckart.__all__) == set(eckart._HOME)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        eckart.nothing  # noqa: B018

"""Two processes under torchrun: the same weights in both, and one process's objective."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="two towers need torch: pip install 'eckart[torch]'")
WORKER = Path(__file__).with_name("worker.py")


def test_two_processes_train_as_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(WORKER), str(tmp_path)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    one = worker.fitted()
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in "01")
    for factors in ("W", "H"):
        assert first[factors].tobytes() == second[factors].tobytes()
        np.testing.assert_allclose(first[factors], getattr(one, factors), atol=1e-4)
    histories = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01"]
    assert histories[0] == histories[1]
    for mine, theirs in zip(one.history, histories[0], strict=True):
        assert mine["objective"] == pytest.approx(theirs["objective"], rel=1e-5)

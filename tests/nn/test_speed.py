"""Models take turns and are counted in bytes; what cannot be measured is said. (What is fast is no test's business.)"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from eckart.nn.directory import compress_model  # noqa: E402
from eckart.nn.language import load_model  # noqa: E402
from eckart.nn.speed import measure_speed  # noqa: E402


def test_models_take_turns(llama, windows, tmp_path):
    compress_model(llama, tmp_path / "small", windows, keep=0.5, gradients=1)
    told = []
    found = measure_speed(
        [llama, tmp_path / "small"], (2, 1), context=7, new=3, rounds=2, progress=lambda *x: told.append(x)
    )
    names = [str(llama), str(tmp_path / "small")]
    assert [(x.model, x.batch) for x in found] == [(name, batch) for batch in (1, 2) for name in names]
    assert [stage for stage, _, _ in told] == [f"{name}, batch {b}" for b in (1, 2) for _ in range(3) for name in names]
    assert told[-1][1:] == (12, 12)
    for x in found:
        model = load_model(x.model)
        assert x.weight_bytes == sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
        assert x.read > 0
        assert x.written > 0
        assert x.peak_bytes > x.weight_bytes
    assert found[1].weight_bytes < found[0].weight_bytes


def test_what_cannot_be_measured_is_said(llama, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no directory"):
        measure_speed([tmp_path / "no"])
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="transformers cannot load it"):  # from the process where it is loaded
        measure_speed([tmp_path])
    with pytest.raises(ValueError, match=r"new 1, .* expected at least 1, 2"):
        measure_speed([llama], new=1)
    with pytest.raises(ValueError, match="device is 'toaster'"):
        measure_speed([llama], device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda', which torch does not have here"):
            measure_speed([llama], device="cuda")

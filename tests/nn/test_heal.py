"""Training: steps are those of AdamW, a killed run goes on to the bit; healing brings a model nearer its original."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from eckart.nn.directory import compress_model  # noqa: E402
from eckart.nn.heal import heal_model  # noqa: E402
from eckart.nn.language import divergence, load_model  # noqa: E402
from eckart.nn.train import rate_at, train  # noqa: E402


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    A, b = torch.randn(20, 6, generator=generator), torch.randn(20, generator=generator)
    parameters = {"x": nn.Parameter(torch.zeros(6)), "bias": nn.Parameter(torch.zeros(1))}
    return parameters, lambda step: [(A @ parameters["x"] + parameters["bias"] - b).square().mean() * (1 + step % 3)]


def test_training_is_adamw_by_hand():
    mine, loss_at = problem()
    losses, _ = train(mine, loss_at, 30, 0.1, warmup=0.2, betas=(0.8, 0.9), weight_decay=0.1, clip=0.5)
    theirs, loss_at = problem()
    m = {name: torch.zeros_like(x) for name, x in theirs.items()}
    v = {name: torch.zeros_like(x) for name, x in theirs.items()}
    for t in range(30):
        (loss,) = loss_at(t)
        gradients = dict(zip(theirs, torch.autograd.grad(loss, list(theirs.values())), strict=True))
        length = sum(g.square().sum() for g in gradients.values()).sqrt()
        lr = rate_at(t, 30, 0.1, 0.2)
        for name, x in theirs.items():
            g = gradients[name] * min(1.0, 0.5 / float(length))
            m[name], v[name] = 0.8 * m[name] + 0.2 * g, 0.9 * v[name] + 0.1 * g * g
            step = (m[name] / (1 - 0.8 ** (t + 1))) / ((v[name] / (1 - 0.9 ** (t + 1))).sqrt() + 1e-8)
            x.data = x.data * (1 - lr * 0.1) - lr * step
        assert losses[t] == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(mine["x"], theirs["x"], rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    whole, loss_at = problem()
    expected = train(whole, loss_at, 20, 0.1)
    file = tmp_path / "state.safetensors"

    class Killed(Exception):
        pass

    def until(step):
        def stop(done, total, loss):
            if done == step:
                raise Killed

        return stop

    for step in (3, 4, 11):
        part, loss_at = problem()
        with pytest.raises(Killed):
            train(part, loss_at, 20, 0.1, checkpoint=file, run="a", every=0, progress=until(step))
    part, loss_at = problem()
    told = []
    found = train(part, loss_at, 20, 0.1, checkpoint=file, run="a", every=0, progress=lambda *x: told.append(x))
    assert told[0][0] == 11  # the eleventh step was killed before it was written down
    assert found == expected
    assert all(torch.equal(part[name], whole[name]) for name in whole)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_checkpoint_of_another_run_or_none_is_not_gone_on_with(tmp_path, content):
    file = tmp_path / "state.safetensors"
    parameters, loss_at = problem()
    expected = train(parameters, loss_at, 5, 0.1)
    if content is None:
        other, loss_at = problem(1)
        train(other, loss_at, 5, 0.1, checkpoint=file, run="another", every=0)
    else:
        file.write_bytes(content)
    parameters, loss_at = problem()
    assert train(parameters, loss_at, 5, 0.1, checkpoint=file, run="this", every=0) == expected


def test_gradients_that_were_left_are_not_stepped_along():
    fresh, parts_at = problem()
    expected = train(fresh, parts_at, 3, 0.1)
    left, parts_at = problem()
    left["x"].grad = torch.full((6,), -100.0)
    assert train(left, parts_at, 3, 0.1) == expected


def test_what_cannot_be_trained_is_said():
    parameters, loss_at = problem()
    with pytest.raises(ValueError, match="nothing to train"):
        train({}, loss_at, 5, 0.1)
    with pytest.raises(ValueError, match=r"steps is 0, lr 0\.1"):
        train(parameters, loss_at, 0, 0.1)
    with pytest.raises(ValueError, match="loss of step 2 is not finite"):
        train(parameters, lambda step: [x * (torch.nan if step == 2 else 1) for x in loss_at(step)], 5, 0.1)


# Healing


@pytest.fixture
def compressed(language_model, windows, tmp_path):
    compress_model(language_model, tmp_path / "out", windows, keep=0.5, gradients=2)
    return tmp_path / "out"


@torch.no_grad()
def distance(model, original, windows):
    return float(divergence(load_model(model)(windows).logits, load_model(original)(windows).logits))


def test_a_healed_model_is_nearer_also_on_text_it_has_not_read(language_model, compressed, windows, tmp_path):
    more = torch.randint(0, 64, (40, 60), generator=torch.Generator().manual_seed(3))
    made = heal_model(compressed, language_model, tmp_path / "healed", more, epochs=3, lr=1e-3)
    before, after = (distance(x, language_model, windows) for x in (compressed, tmp_path / "healed"))
    assert after < 0.95 * before
    assert made["healing"]["divergence"][1] < made["healing"]["divergence"][0]
    assert json.loads((tmp_path / "healed" / "eckart.json").read_text()) == made
    assert "Healed: the factors" in (tmp_path / "healed" / "README.md").read_text()


def test_only_layers_of_low_rank_are_trained(language_model, compressed, windows, tmp_path):
    heal_model(compressed, language_model, tmp_path / "healed", windows[:2], lr=3e-3)
    before, after = (load_file(x / "model.safetensors") for x in (compressed, tmp_path / "healed"))
    ranks = json.loads((compressed / "config.json").read_text())["quantization_config"]["ranks"]
    assert before.keys() == after.keys()
    for name, old in before.items():
        layer, _, part = name.rpartition(".")
        trained = layer in ranks and part != "order" and old.numel() > 0
        assert torch.equal(old, after[name]) != trained, name


def test_a_killed_healing_goes_on_to_the_same_bytes(llama, windows, tmp_path, monkeypatch):
    compress_model(llama, tmp_path / "out", windows, keep=0.5, gradients=1)
    heal_model(tmp_path / "out", llama, tmp_path / "a", windows[:4])
    monkeypatch.setattr("eckart.nn.train.time.monotonic", iter(range(0, 10**6, 100)).__next__)  # writes every step

    def kill(done, total, loss):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal_model(tmp_path / "out", llama, tmp_path / "b", windows[:4], progress=kill)
    assert not (tmp_path / "b").exists()
    told = []
    heal_model(tmp_path / "out", llama, tmp_path / "b", windows[:4], progress=lambda *x: told.append(x[0]))
    assert told == [3, 4]
    for file in ("model.safetensors", "eckart.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_healed_is_said(llama, gpt2, windows, tmp_path):
    compress_model(llama, tmp_path / "dense", windows, keep=0.5, gradients=1, dense=True)
    with pytest.raises(ValueError, match="has no layer of low rank"):
        heal_model(tmp_path / "dense", llama, tmp_path / "b", windows)
    compress_model(llama, tmp_path / "out", windows, keep=0.5, gradients=1)
    other = tmp_path / "other"
    shutil.copytree(gpt2, other)
    model = load_model(gpt2)
    model.resize_token_embeddings(70)
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="vocabularies of 64 and 70 tokens"):
        heal_model(tmp_path / "out", other, tmp_path / "b", windows)
    with pytest.raises(FileExistsError, match="holds something else"):
        heal_model(tmp_path / "out", llama, llama, windows)
    assert not (tmp_path / "b").exists()

"""Fine-tuning: losses are those of the whole softmax, steps do not depend on how they are divided, runs go on."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from eckart.nn.adapters.adapter import put_adapter  # noqa: E402
from eckart.nn.adapters.examples import UNCOUNTED, Example, pack  # noqa: E402
from eckart.nn.adapters.files import load_adapter  # noqa: E402
from eckart.nn.adapters.finetune import (  # noqa: E402
    answers,
    check_windows,
    choice_accuracy,
    counted_losses,
    finetune,
    mean_loss,
)
from eckart.nn.adapters.lora import add_lora, lora_parameters  # noqa: E402
from eckart.nn.adapters.ranks import gradients_of, moments_of, ranks_within  # noqa: E402
from eckart.nn.adapters.training import INITS, train_model  # noqa: E402
from eckart.nn.language import load_model  # noqa: E402
from eckart.nn.surgery import layers_of, matrix_of  # noqa: E402


def tasks(count, seed=0, longest=6):
    """Prompts of random tokens; the answer says whether their sum is odd."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        asked = generator.integers(10, 30, generator.integers(2, longest)).tolist()
        made.append(Example([*asked, 40 + sum(asked) % 2, 2], [False] * len(asked) + [True, True]))
    return made


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_losses_are_those_of_the_whole_softmax(llama_in_memory, data):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    examples = [Example(generator.integers(3, 60, n).tolist(), (generator.random(n) < 0.5).tolist()) for n in sizes]
    windows, _ = pack(examples, context=12)
    with torch.no_grad():
        losses, whose = counted_losses(llama_in_memory, windows)
        logits = llama_in_memory(windows.tokens, position_ids=windows.positions, use_cache=False).logits[:, :-1]
    labels = windows.labels[:, 1:]
    whole = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")[labels.flatten() != UNCOUNTED]
    torch.testing.assert_close(losses, whole, rtol=1e-4, atol=1e-5)
    assert whose.tolist() == windows.examples[:, 1:][labels != UNCOUNTED].tolist()


@pytest.fixture(scope="module")
def llama_in_memory(llama):
    return load_model(llama)


def test_a_model_without_partial_logits_gives_the_same(gpt2, monkeypatch):
    model = load_model(gpt2)
    windows, _ = pack(tasks(9), context=24)
    with torch.no_grad():
        expected = counted_losses(model, windows)
        whole = type(model).forward

        def forward(self, input_ids=None, position_ids=None, use_cache=None):
            return whole(self, input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

        monkeypatch.setattr(type(model), "forward", forward)
        found = counted_losses(model, windows)
    torch.testing.assert_close(found, expected)


def test_a_step_does_not_depend_on_how_it_is_divided(llama):
    windows, _ = pack(tasks(60), context=24)
    held, _ = pack(tasks(10, seed=1), context=24)
    runs = []
    for at_once in (1, 3, 7):
        model = load_model(llama)
        add_lora(model, 4)
        runs.append(finetune(model, lora_parameters(model), windows, 1e-2, held=held, batch=7, at_once=at_once))
    for run in runs[1:]:
        np.testing.assert_allclose(run.losses, runs[0].losses, rtol=2e-4)
        np.testing.assert_allclose(run.validated, runs[0].validated, rtol=2e-3)


def test_checkpointing_changes_nothing_but_memory(llama, tmp_path):
    a, b = (
        train_model(llama, tmp_path / str(again), tasks(30), rank=2, context=24, checkpointing=again)
        for again in (False, True)
    )
    np.testing.assert_allclose(a["losses"], b["losses"], rtol=1e-5)


@pytest.mark.parametrize("asked", [{"rank": 4}, {"rank": 4, "dora": True}, {"full": True, "lr": 1e-3}])
def test_sixteen_bits_are_enough_to_learn_with(llama, tmp_path, asked):
    losses = []
    for rounded in (False, True):
        given = {"lr": 1e-2, "batch": 2, "context": 24, "bfloat16": rounded, **asked}
        losses.append(train_model(llama, tmp_path / str(rounded), tasks(40), **given)["losses"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert losses[0] != losses[1]
    if "full" not in asked:
        kept = load_adapter(tmp_path / "True")
        assert {x.factors.left.dtype for x in kept.layers.values()} == {torch.float32}


@pytest.mark.parametrize("kind, full", [("gpt2", False), ("llama", True)])
def test_it_learns_and_what_it_writes_is_what_was_best(kind, full, request, tmp_path):
    base, held = request.getfixturevalue(kind), tasks(20, seed=1)
    asked = {"full": full, "rank": 8, "lr": 3e-3 if full else 2e-2, "epochs": 2, "batch": 2, "context": 24}
    made = train_model(base, tmp_path / "out", tasks(100), held, **asked)
    assert made["validated"][0][1] > 2 * min(loss for _, loss in made["validated"])
    if full:
        found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    else:
        found = load_model(base)
        put_adapter(found, load_adapter(tmp_path / "out"))
    best = dict(made["validated"])[made["best_step"]]
    assert mean_loss(found, pack(held, 24)[0]) == pytest.approx(best, rel=1e-4)
    assert best == min(loss for _, loss in made["validated"])


@pytest.mark.parametrize("full", [False, True])
def test_a_killed_run_goes_on_to_the_same_bytes(gpt2, tmp_path, monkeypatch, full):
    def run(name, progress=None):
        return train_model(
            gpt2, tmp_path / name, tasks(40), tasks(8, seed=1), full=full, rank=2, lr=1e-2, epochs=2, batch=2,
            context=24, progress=progress,
        )  # fmt: skip

    whole = run("a")
    monkeypatch.setattr("eckart.nn.train.time.monotonic", iter(range(0, 10**6, 100)).__next__)  # writes every step

    def kill(stage, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("b", kill)
    assert not (tmp_path / "b").exists()
    told = []
    again = run("b", lambda stage, done, total: told.append(done))
    assert told[0] == 5
    assert again["losses"] == whole["losses"]
    assert again["validated"] == whole["validated"]
    for file in ("model.safetensors" if full else "adapter_model.safetensors", "eckart.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_step_keeps_those_before_it(llama, tmp_path, monkeypatch):
    from eckart.nn.adapters import finetune as module

    calls = []

    def counted(network, windows):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return counted_losses(network, windows)

    monkeypatch.setattr(module, "counted_losses", counted)
    asked = {"rank": 2, "batch": 2, "context": 24}
    with pytest.raises(KeyboardInterrupt):
        train_model(llama, tmp_path / "a", tasks(40), **asked)  # in the third step
    told = []
    train_model(llama, tmp_path / "a", tasks(40), **asked, progress=lambda stage, done, total: told.append(done))
    assert told[0] == 3


def test_it_stops_when_there_is_no_more_gain(llama, tmp_path):
    made = train_model(
        llama, tmp_path / "out", tasks(20), tasks(10, seed=1), full=True, lr=3e-2, epochs=20, batch=2, context=24,
        validate_every=1, patience=2,
    )  # fmt: skip
    values = [loss for _, loss in made["validated"]]
    best = values.index(min(values))
    assert len(values) == best + 3, "two validations after the best"
    assert made["best_step"] == made["validated"][best][0]
    assert made["steps"] < 20


def test_two_processes_take_the_steps_of_one(llama, tmp_path):
    (tmp_path / "worker.py").write_text(
        "import sys\nfrom tests_finetune import tasks\nfrom eckart.nn.adapters.training import train_model\n"
        "train_model(sys.argv[1], sys.argv[2], tasks(40), tasks(9, seed=1), rank=2, lr=1e-2, batch=3, context=24)\n"
    )
    (tmp_path / "tests_finetune.py").write_text(
        "import numpy as np\nfrom eckart.nn.adapters.examples import Example\n" + inspect.getsource(tasks)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "worker.py"), str(llama), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    train_model(llama, tmp_path / "one", tasks(40), tasks(9, seed=1), rank=2, lr=1e-2, batch=3, context=24)
    one, two = (json.loads((tmp_path / x / "eckart.json").read_text()) for x in ("one", "two"))
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-3)
    np.testing.assert_allclose(two["validated"], one["validated"], rtol=1e-3)
    a, b = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_accuracy_is_that_of_the_most_probable_answer(llama_in_memory):
    examples = tasks(25)
    choices = answers(examples)
    assert choices == [(40, 2), (41, 2)]
    found = choice_accuracy(llama_in_memory, examples, 24, choices)
    right = 0
    for example in examples:
        asked = example.tokens[:-2]
        scores = []
        for choice in choices:
            ids = torch.tensor([[*asked, *choice]])
            logits = llama_in_memory(ids, use_cache=False).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(asked) - 1 + i, token]) for i, token in enumerate(choice)))
        right += choices[int(np.argmax(scores))] == tuple(example.tokens[-2:])
    assert found == right / len(examples)
    with pytest.raises(ValueError, match="longer than 9 tokens"):
        choice_accuracy(llama_in_memory, tasks(9, longest=20), 9, choices)


def test_a_model_that_mixes_examples_is_refused(llama, tmp_path, monkeypatch):
    model = load_model(llama)
    check_windows(model, 24)
    whole = type(model).forward

    def mixing(self, position_ids=None, **given):  # as a recurrent one does, or one that has its own positions
        return whole(self, **given)

    monkeypatch.setattr(type(model), "forward", mixing)
    with pytest.raises(ValueError, match="would see each other"):
        check_windows(model, 24)
    check_windows(model, 24, together=False)
    with pytest.raises(ValueError, match="would see each other in a model of the kind llama"):
        train_model(llama, tmp_path / "a", tasks(9), context=24)
    made = train_model(llama, tmp_path / "a", tasks(9), context=24, rank=2, together=False)
    assert made["windows"] == 9


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"context": 65}, "the model reads at most 64 tokens"),
        ({"init": "best"}, "init is 'best', expected one of zero-b"),
        ({"patterns": ("nothing",)}, "nothing"),
        ({"budget": 10}, "a budget of 10 numbers adapts no layer"),
        ({"budget": 9999, "ranks": {"q_proj": 2}}, "give one of the two"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"batch": 0}, "batch is 0"),
        ({"at_once": 0}, "at_once is 0"),
        ({"lr": 1e30, "full": True}, "not finite"),
        ({"context": 3}, "no example fits a window of 3"),
    ],
)
def test_what_cannot_be_trained_is_said(llama, tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        train_model(llama, tmp_path / "a", tasks(9), **{"context": 24, "rank": 2, "batch": 1, **asked})
    assert not (tmp_path / "a").exists()


# What examples say of layers


def small_network():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), transformers.pytorch_utils.Conv1D(5, 12), nn.Linear(5, 4)
    )
    return network, torch.randn(6, 2, 4, 4)


def test_gradients_are_those_of_the_matrices():
    network, x = small_network()
    layers = layers_of(network)
    network.requires_grad_(False)
    found = gradients_of(layers, (network(part).square().sum() for part in x.split(2)))
    assert not any(p.requires_grad for p in network.parameters())
    for name, layer in layers.items():
        W, h = matrix_of(layer), 1e-2
        direction = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            W += h * direction
            up = network(x).square().sum()
            W -= 2 * h * direction
            down = network(x).square().sum()
            W += h * direction
        assert float((found[name] * direction).sum()) == pytest.approx(float((up - down) / (2 * h)), rel=1e-2, abs=1e-2)


def test_moments_are_those_of_the_inputs():
    network, x = small_network()
    layers = layers_of(network)
    found = moments_of(layers, lambda: [network(part) for part in x.split(2)])
    inside = network[0](x).flatten(1)
    torch.testing.assert_close(found["2"], inside.T @ inside / len(x))
    patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found["0"], patches.T @ patches / len(patches))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3), st.integers(0, 60))
def test_ranks_stay_in_their_budget_and_are_nearly_the_best(shapes, numbers):
    import itertools

    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    gradients = {str(i): torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}

    def lacks(ranks):
        return sum(
            float(torch.linalg.svdvals(G)[k:].square().sum()) for G, k in zip(gradients.values(), ranks, strict=True)
        )

    def cost(ranks):
        return sum(k * sum(shape) for k, shape in zip(ranks, shapes, strict=True))

    possible = [r for r in itertools.product(*(range(min(s) + 1) for s in shapes)) if cost(r) <= numbers]
    if not any(any(r) for r in possible):
        with pytest.raises(ValueError, match="adapts no layer"):
            ranks_within(gradients, numbers)
        return
    found = tuple(ranks_within(gradients, numbers).values())
    assert cost(found) <= numbers
    most = max(float(torch.linalg.svdvals(G)[0]) ** 2 for G in gradients.values())
    assert lacks(found) <= min(map(lacks, possible)) + most + 1e-4


@pytest.mark.parametrize("init", INITS)
def test_a_budget_and_every_way_to_begin_train(llama, tmp_path, init):
    asked = {"budget": 2000, "init": init, "lr": 1e-2, "batch": 2, "epochs": 4, "context": 24}
    made = train_model(llama, tmp_path / "a", tasks(20), **asked)
    assert 1000 < made["trained_numbers"] <= 2000
    assert made["losses"][-1] < made["losses"][0] - 1
    assert len(load_adapter(tmp_path / "a").layers) < 21


def test_a_budget_counts_magnitudes(llama, tmp_path):
    made = train_model(llama, tmp_path / "a", tasks(20), budget=2000, dora=True, batch=2, context=24)
    assert 1000 < made["trained_numbers"] <= 2000


def test_a_tuned_model_of_sixteen_bits_is_written_as_it_was_measured(llama, tmp_path):
    load_model(llama).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    held = tasks(10, seed=1)
    made = train_model(tmp_path / "base", tmp_path / "out", tasks(20), held, full=True, context=24)
    found = mean_loss(load_model(tmp_path / "out"), pack(held, 24)[0])
    assert found == pytest.approx(min(loss for _, loss in made["validated"]), rel=1e-5)


def test_what_counts_nothing_is_refused(llama, tmp_path):
    nothing = [Example(x.tokens, [False] * len(x.tokens)) for x in tasks(5)]
    for examples, held in ((nothing, ()), (tasks(5), nothing)):
        with pytest.raises(ValueError, match="no token of the examples counts"):
            train_model(llama, tmp_path / "a", examples, held, rank=2, context=24)

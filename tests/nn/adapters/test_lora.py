"""Laws of LoRA layers, over every kind of layer and every way to begin."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from eckart.nn.adapters.init import data_aware, gauss_b, gradient_aligned, pissa, zero_b  # noqa: E402
from eckart.nn.adapters.lora import adapted_layers, add_lora, lora_parameters, merge_lora  # noqa: E402
from eckart.nn.surgery import is_conv1d, matrix_of  # noqa: E402
from eckart.nn.train import train  # noqa: E402

INITS = {f.__name__: f for f in (zero_b, gauss_b, pissa, data_aware, gradient_aligned)}
KINDS = {
    "linear": lambda: nn.Linear(12, 9),
    "linear without bias": lambda: nn.Linear(12, 9, bias=False),
    "conv1d": lambda: transformers.pytorch_utils.Conv1D(9, 12),
    "embedding": lambda: nn.Embedding(20, 12, padding_idx=3),
    "convolution": lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(3, 8, (2, 3), dilation=2, padding="same", bias=False),
}


def made(kind, seed=0):
    torch.manual_seed(seed)
    layer = KINDS[kind]()
    for parameter in layer.parameters():
        parameter.data.normal_()
    return nn.ModuleDict({"layer": layer})


def inputs(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "embedding":
        return torch.randint(0, 20, (4, 7), generator=generator)
    return torch.randn(
        (4, 3, 7, 6) if ("conv" in kind[:5] and kind != "conv1d") or kind == "dilated" else (4, 7, 12),
        generator=generator,
    )


def known_of(network, name):
    W = matrix_of(network["layer"])
    generator = torch.Generator().manual_seed(5)
    if name == "data_aware":
        x = torch.randn(50, W.shape[1], generator=generator)
        return {"layer": x.T @ x / 50}
    if name == "gradient_aligned":
        return {"layer": torch.randn(W.shape, generator=generator)}
    return None


def adapted(kind, init="zero_b", **settings):
    network = made(kind)
    add_lora(network, 3, 5.0, ["layer"], init=INITS[init], known=known_of(network, init), **settings)
    return network


def disturbed(network, seed=1):
    """Factors as after some training: far from where they began."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora_parameters(network).values():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return network


every_kind = pytest.mark.parametrize("kind", KINDS)
every_init = pytest.mark.parametrize("init", INITS)
forms = pytest.mark.parametrize("form", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])


@every_kind
@every_init
@forms
def test_at_first_it_computes_what_the_layer_did(kind, init, form):
    x, before = inputs(kind), made(kind)
    after = adapted(kind, init, **form)
    y, expected = after["layer"](x), before["layer"](x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    if init not in ("pissa", "data_aware"):
        assert torch.equal(y, expected)  # to the bit
        assert torch.equal(after["layer"].weight, before["layer"].weight) or "dora" in form
    assert not torch.allclose(disturbed(after)["layer"](x), expected, atol=0.1)


@every_kind
@every_init
@forms
def test_merging_computes_the_same(kind, init, form):
    network, x = disturbed(adapted(kind, init, **form)), inputs(kind)
    expected = network["layer"](x)
    held = network["layer"].weight
    assert merge_lora(network) == []
    assert type(network["layer"]) is type(made(kind)["layer"])
    torch.testing.assert_close(network["layer"](x), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(network["layer"].weight, held)
    assert not torch.allclose(made(kind)["layer"](x), expected, atol=0.1)


@every_kind
@pytest.mark.parametrize("dora", [False, True])
def test_it_is_the_equation(kind, dora):
    network = disturbed(adapted(kind, dora=dora))
    layer = network["layer"]
    W = matrix_of(layer.base) + 5.0 / 3 * layer.B @ layer.A
    if dora:
        W = layer.magnitude[:, None] * W / W.norm(dim=1, keepdim=True)
    weight = layer.weight
    found = weight.T if is_conv1d(layer.base) or kind == "embedding" else weight.flatten(1)
    torch.testing.assert_close(found, W, atol=1e-5, rtol=1e-5)


@every_kind
@pytest.mark.parametrize("dora", [False, True])
def test_only_the_update_is_trained_and_all_of_it(kind, dora):
    network, x = disturbed(adapted(kind, dora=dora)), inputs(kind)
    network["layer"](x).square().sum().backward()
    got = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got == set(lora_parameters(network)) == {f"layer.{x}" for x in ["A", "B", "magnitude"][: 2 + dora]}


def test_the_norms_of_dora_are_constants_in_gradients():
    network = disturbed(adapted("linear", dora=True))
    layer, x = network["layer"], inputs("linear")
    layer(x).square().sum().backward()
    A, B, g = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B, layer.magnitude))
    W = layer.base.weight + layer.scale * B @ A
    y = x @ (g[:, None] / W.detach().norm(dim=1, keepdim=True) * W).T + layer.base.bias
    y.square().sum().backward()
    for mine, theirs in ((layer.A, A), (layer.B, B), (layer.magnitude, g)):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3, rtol=1e-4)


def test_the_scale_is_that_of_lora_or_of_rslora():
    assert adapted("linear")["layer"].scale == pytest.approx(5 / 3)
    assert adapted("linear", rslora=True)["layer"].scale == pytest.approx(5 / 3**0.5)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_16_bits_stays_one(kind, dtype):
    network = made(kind).to(dtype)
    expected = copy.deepcopy(network)
    layer = add_lora(network, 3, patterns=["layer"])["layer"]
    x = inputs(kind)
    x = x if kind == "embedding" else x.to(dtype)
    assert layer.base.weight.dtype == layer.weight.dtype == dtype
    assert layer.A.dtype == layer.B.dtype == torch.float32
    assert torch.equal(layer(x), expected["layer"](x))
    assert layer(x).dtype == dtype
    layer(x).float().square().sum().backward()
    assert layer.B.grad.abs().sum() > 0


def test_the_first_step_along_a_gradient_is_its_best_approximation():
    network, x = made("linear"), inputs("linear")
    layer = network["layer"]
    layer(x).square().sum().backward()
    G = layer.weight.grad
    new = add_lora(network, 3, init=gradient_aligned, known={"layer": G})["layer"]
    new(x).square().sum().backward()
    U, s, Vt = torch.linalg.svd(G)
    step = new.B.grad @ new.A.detach() / new.scale
    torch.testing.assert_close(step, U[:, :3] * s[:3] @ Vt[:3], atol=1e-2, rtol=1e-3)


def test_what_is_data_aware_makes_most_of_the_output():
    network, plain = made("linear"), made("linear")
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 12)
    W = network["layer"].weight.detach().clone()
    ours = add_lora(network, 3, init=data_aware, known={"layer": x.T @ x / 300})["layer"]
    theirs = add_lora(plain, 3, init=pissa)["layer"]
    errors = [float((x @ (W - y.scale * y.B @ y.A).T).detach().norm()) for y in (ours, theirs)]
    _, s, _ = torch.linalg.svd(W @ x.T)
    assert errors[0] == pytest.approx(float(s[3:].norm()), rel=1e-4)  # the least there is
    assert errors[1] > 1.2 * errors[0]
    torch.testing.assert_close(ours.A.norm(dim=1), ours.B.norm(dim=0))


def test_updates_learn():
    network, x = adapted("linear"), inputs("linear")
    wanted = x @ torch.randn(12, 2) @ torch.randn(2, 9)
    base = made("linear")["layer"](x).detach()
    losses = train(
        lora_parameters(network), lambda t: [(network["layer"](x) - base - wanted).square().mean()], 150, 0.05
    )[0]
    assert losses[-1] < 0.01 * losses[0]


# Which layers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(10, 6), nn.LayerNorm(6)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6)}) for _ in range(2))
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.softmax = nn.Linear(6, 10, bias=False)
        self.softmax.weight = self.words.weight

    def get_output_embeddings(self):
        return self.softmax

    def forward(self, tokens):
        x = self.norm(self.words(tokens))
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return self.softmax(x)


def test_patterns_choose_layers_and_ranks():
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in ("up", "down")]
    assert list(add_lora(Net(), 2)) == blocks
    assert list(add_lora(Net(), 2, skip=["down"])) == blocks[::2]
    assert list(add_lora(Net(), 2, patterns=["*", "words"])) == ["words", *blocks]
    assert list(add_lora(Net(), 2, patterns=["softmax"])) == ["softmax"]
    found = add_lora(Net(), 2, ranks={"blocks.1.*": 3, "down": 4})
    assert [layer.rank for layer in found.values()] == [2, 4, 3, 3]
    assert [layer.scale for layer in found.values()] == [16, 8, 32 / 3, 32 / 3]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"patterns": ["dwon"]}, "no layer matches 'dwon': did you mean 'down'"),
        ({"patterns": ["up", "norm"]}, "norm is a layer of the kind LayerNorm, which cannot be adapted: skip it"),
        ({"patterns": ["grouped"]}, "grouped is a layer of the kind Conv2d, groups or other padding, which cannot"),
        ({"skip": ["up", "down"]}, "there is no layer to adapt"),
        ({"ranks": {"upp": 2}}, "ranks: no layer that is adapted matches 'upp'"),
        ({"rank": 7}, "the rank of blocks.0.up is 7, expected 1 to 6"),
        ({"ranks": {"*": 0}}, "the rank of blocks.0.up is 0"),
        ({"alpha": 0.0}, "rank is 2 and alpha 0.0, expected"),
        ({"init": data_aware}, "blocks.0.up: second moments of the inputs are not given, expected the shape"),
        ({"init": gradient_aligned, "known": {"blocks.0.up": torch.ones(2, 2)}}, "blocks.0.up: the gradient is of the"),
        ({"known": {"up": torch.ones(2, 2)}}, "something is known of 'up', which is not adapted"),
    ],
)
def test_what_cannot_be_adapted_is_said_and_nothing_is_changed(settings, sentence):
    network = Net()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(ValueError) as error:
        add_lora(network, **{"rank": 2, **settings})
    assert sentence in str(error.value)
    assert not adapted_layers(network)
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert network.softmax.weight is network.words.weight


def test_a_failure_half_way_gives_back_the_weights():
    network = Net()
    before, R = network.blocks[0]["up"].weight, {"blocks.0.up": torch.eye(6)}
    with pytest.raises(ValueError, match=r"blocks\.0\.down: second moments of the inputs are not given"):
        add_lora(network, 2, init=data_aware, known=R)
    assert network.blocks[0]["up"].weight is before
    assert before.requires_grad


def test_a_network_is_adapted_once_and_merged_once():
    network = Net()
    with pytest.raises(ValueError, match="no updates to merge"):
        merge_lora(network)
    add_lora(network, 2)
    with pytest.raises(ValueError, match="has updates already"):
        add_lora(network, 2)


@pytest.mark.parametrize("init", [zero_b, pissa])
@pytest.mark.parametrize("name, other", [("words", "softmax"), ("softmax", "words")])
def test_what_is_tied_is_adapted_apart(name, other, init):
    network, tokens = Net(), torch.arange(10)[None]
    old, expected = network.words.weight.clone(), network(tokens)
    add_lora(network, 2, patterns=[name], init=init)
    torch.testing.assert_close(network(tokens), expected, atol=1e-5, rtol=1e-5)
    disturbed(network)
    assert torch.equal(network.get_submodule(other).weight, old)
    expected = network(tokens)
    assert merge_lora(network) == ([name] if init is zero_b else [])  # PiSSA has untied it at once
    torch.testing.assert_close(network(tokens), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(network.get_submodule(other).weight, old)
    assert not torch.equal(network.get_submodule(name).weight, old)


def test_a_merged_model_knows_that_it_is_not_tied(llama, windows, tmp_path):
    from eckart.nn.language import load_model

    model = load_model(llama)
    add_lora(model, 2, patterns=["embed_tokens"])
    disturbed(model)
    with torch.no_grad():
        expected = model(windows).logits
        merge_lora(model)
        assert not model.config.tie_word_embeddings
        model.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(load_model(tmp_path / "merged")(windows).logits, expected, atol=1e-4, rtol=1e-4)


def test_draws_depend_on_the_seed_alone():
    one, two, other = (adapted("linear", seed=seed)["layer"].A for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
@pytest.mark.parametrize("shape", [(12,), (0, 12), (3, 12), (2, 3, 12)])
def test_the_product_in_one_has_the_gradients_of_its_parts(kind, shape):
    layer = disturbed(adapted(kind))["layer"].double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(2))

    def whole(x, A, B):
        return torch.func.functional_call(layer, {"A": A, "B": B}, (x,))

    def parts(x, A, B):
        return layer.base(x) + layer.scale * (x @ A.T @ B.T)

    given = (x, layer.A.detach().requires_grad_(), layer.B.detach().requires_grad_())
    assert type(whole(*given).grad_fn).__name__ == "_ProductBackward"
    torch.testing.assert_close(whole(*given), parts(*given))
    if x.numel():
        assert torch.autograd.gradcheck(whole, given)
    g = torch.randn(parts(*given).shape, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(f(*given), given, g) for f in (whole, parts)), strict=True):
        torch.testing.assert_close(a, b)


def test_who_watches_the_base_still_sees_it():
    network = adapted("linear")
    seen = []
    network["layer"].base.register_forward_hook(lambda *_: seen.append(1))
    network["layer"](torch.randn(2, 12))
    assert seen == [1]


def test_a_bias_that_is_trained_gets_its_gradient():
    network = adapted("linear")
    network["layer"].base.bias.requires_grad_(True)
    network["layer"](torch.randn(2, 12)).sum().backward()
    assert network["layer"].base.bias.grad.tolist() == [2.0] * 9

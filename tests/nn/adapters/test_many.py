"""Several adapters in one batch: every row gets what its adapter alone would give it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from eckart.nn.adapters.adapter import adapter_of, put_adapter  # noqa: E402
from eckart.nn.adapters.lora import add_lora, lora_parameters  # noqa: E402
from eckart.nn.adapters.many import adapters_by_row, put_adapters  # noqa: E402
from eckart.nn.language import load_model  # noqa: E402


def trained(network, seed, patterns, **form):
    add_lora(network, 2, 8.0, patterns, **form)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora_parameters(network).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return adapter_of(network)


def alone(network, adapter, x):
    if adapter is not None:
        put_adapter(network, adapter)
    with torch.no_grad():
        y = network(x)
    return getattr(y, "logits", y)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "picture"])
def test_every_row_gets_what_its_adapter_gives(request, windows, kind):
    if kind == "picture":
        torch.manual_seed(0)
        start = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 2 * 2, 5)).state_dict()

        def fresh():
            network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 2 * 2, 5))
            network.load_state_dict(start)
            return network

        x, which = torch.randn(6, 3, 4, 4), ["0"]
    else:
        folder = request.getfixturevalue(kind)
        x, which = windows[:6], ["embed_tokens"] if kind == "llama" else ["wte"]

        def fresh():
            return load_model(folder)

    adapters = {
        "a": trained(fresh(), 1, ("*",)),
        "b": trained(fresh(), 2, which, rslora=True),
        "c": trained(fresh(), 3, ("*",), dora=True),
    }
    network, rows = fresh(), ["b", None, "a", "c", "a", None]
    plain = alone(fresh(), None, x)
    put_adapters(network, adapters)
    assert torch.equal(alone(network, None, x), plain)
    with adapters_by_row(network, rows):
        found = alone(network, None, x)
    for i, name in enumerate(rows):
        expected = alone(fresh(), adapters.get(name), x)
        torch.testing.assert_close(found[i], expected[i], atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
        assert (name is None) == torch.allclose(found[i], plain[i], atol=1e-3)
    assert torch.equal(alone(network, None, x), plain)  # and then the base again


def test_what_cannot_be_is_said():
    network = nn.Sequential(nn.Linear(3, 3))
    adapter = trained(nn.Sequential(nn.Linear(3, 3)), 1, ("*",))
    with pytest.raises(ValueError, match=r"'a': there are none"), adapters_by_row(network, ["a"]):
        pass
    with pytest.raises(ValueError, match="the network has not"):
        put_adapters(network, {"a": adapter, "b": trained(nn.ModuleDict({"x": nn.Linear(3, 3)}), 1, ("x",))})
    assert type(network[0]) is nn.Linear
    put_adapters(network, {"a": adapter})
    with pytest.raises(ValueError, match="got 3 rows in a batch of 2"), adapters_by_row(network, ["a", None]):
        network(torch.ones(3, 3))
    assert network[0].rows is None
    with pytest.raises(ValueError, match="has updates already"):
        put_adapters(network, {"a": adapter})

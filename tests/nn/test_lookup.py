"""Laws of embeddings in memory: what is read often is kept, and what is predicted is what is measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from eckart.nn.blocks import WholeNetwork  # noqa: E402
from eckart.nn.calibrate import damped, decompose  # noqa: E402
from eckart.nn.compress import compress  # noqa: E402
from eckart.nn.embedding import LowRankEmbedding  # noqa: E402
from eckart.nn.heal import factors_of  # noqa: E402
from eckart.nn.lookup import decompose_lookups, lookups_of, low_rank_lookups  # noqa: E402
from eckart.nn.plan import RankPlan, plan_ranks  # noqa: E402

V, D = 60, 12


class Classifier(nn.Module):
    """Tokens and their places, added in place; a mean; a layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.token, self.place = nn.Embedding(V, D), nn.Embedding(8, D)
        self.token.weight.data = torch.randn(V, 5) @ torch.randn(5, D) + 0.1 * torch.randn(V, D)
        self.head = nn.Linear(D, 9)

    def forward(self, tokens):
        x = self.token(tokens)
        x += self.place(torch.arange(tokens.shape[1]))
        return self.head(x.tanh())


def batches_of(seed, count=4, rows=16):
    """Tokens whose frequencies fall."""
    rng = torch.Generator().manual_seed(seed)
    chances = 1 / torch.arange(1.0, V + 1)
    return [torch.multinomial(chances.expand(rows, V), 8, replacement=True, generator=rng) for _ in range(count)]


def decomposed(network, batches, folder, **more):
    gradients = more.pop("gradients", 2)
    decompose(WholeNetwork(network), batches, folder, gradients=gradients)
    return decompose_lookups(network, batches, folder, gradients=gradients, **more)


def spread(batches):
    """How often each token counts as read in a sample: a tenth is spread evenly."""
    f = torch.bincount(torch.cat(batches).flatten(), minlength=V).double() / sum(map(len, batches))
    return 0.9 * f + 0.1 * f.mean()


def cut_by(network, found, ranks, pivoted=True):
    """The token embedding with its groups at these ranks, and what was predicted to be lost."""
    layers, names = plan_ranks(found.layers, 1.0).layers, found.groups["token"].layers
    lost = 0.0
    for name, rank in zip(names, ranks, strict=True):
        layers[name] = type(layers[name])(layers[name].shape, rank, 0, 0.0)
        lost += 0.0 if rank is None else float(found.layers[name].losses[min(rank, len(found.layers[name].squares))])
    return low_rank_lookups(network, found, RankPlan(layers, pivoted))["token"], lost


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), ranks=st.tuples(*[st.integers(0, 12)] * 3), pivoted=st.booleans())
def test_the_predicted_error_is_the_measured_one(seed, ranks, pivoted, tmp_path_factory):
    network, batches = Classifier(seed), batches_of(seed)
    found = decomposed(network, batches, tmp_path_factory.mktemp("work"), gradients=0)
    layer, lost = cut_by(network, found, [None, *ranks], pivoted)
    W = network.token.weight.detach()
    assert found.groups["token"].layers == [f"token[{i}]" for i in range(4)]
    error = (layer.weight.detach() - W).double().square().sum(1)
    assert float((spread(batches) * error).sum() / 2) == pytest.approx(lost, rel=1e-3, abs=1e-6)


def test_gradients_are_those_at_what_was_looked_up(tmp_path):
    """The curvature at the output is 1: after a layer W and a tanh it is E[diag(t') W'W diag(t')]."""
    network, batches = Classifier(), batches_of(0, count=150)
    found = decomposed(network, batches, tmp_path, gradients=150, damping=0.1)
    tokens = torch.cat(batches)
    with torch.no_grad():
        slope = 1 - (network.token(tokens) + network.place(torch.arange(8))).tanh().flatten(0, 1).double().square()
    W, head = network.token.weight.detach().double(), network.head.weight.detach().double()
    G = damped((slope.T @ slope / len(slope)) * (head.T @ head), 0.1)
    wanted = float((spread(batches) * ((W @ G) * W).sum(1)).sum() / 2)
    assert sum(found.layers[name].losses[0] for name in found.groups["token"].layers) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_is_compressed_with_its_embeddings(frozen):
    network, batches = Classifier().requires_grad_(not frozen), batches_of(0)
    before = network(batches[0]).detach()
    dense = sum(x.numel() for x in network.parameters())
    plan = compress(network, batches, 0.75, embeddings=True)
    assert plan.keep <= 0.75
    assert type(network.token) is LowRankEmbedding
    assert sum(x.numel() for x in network.parameters()) < 0.8 * dense
    assert all(x.grad is None for x in network.token.parameters())
    after = network(batches[0])
    assert 0 < (after - before).square().mean() < 0.02 * before.square().mean()
    assert any(name.startswith("token.") for name in factors_of(network))
    ranks = {name: x.rank for name, x in plan.layers.items() if name.startswith("token")}
    assert len(ranks) == 4
    again = Classifier()
    assert compress(again, batches, 0.75, embeddings=True) == plan
    torch.testing.assert_close(again(batches[0]), after)


def test_frequent_tokens_keep_more():
    network, batches = Classifier(), batches_of(0)
    W = network.token.weight.detach().clone()
    compress(network, batches, 0.6, embeddings=True)
    error = (network.token.weight.detach() - W).square().mean(1)
    assert error[:10].mean() < 0.5 * error[-30:].mean()


def test_a_sequential_pass_is_refused_and_nothing_is_changed():
    network = Classifier()
    with pytest.raises(ValueError, match="a sequential pass knows nothing of embeddings"):
        compress(network, batches_of(0), 0.5, embeddings=True, sequential=True)
    assert type(network.token) is nn.Embedding
    assert type(network.head) is nn.Linear


def test_only_where_it_is_asked_for():
    network = Classifier()
    compress(network, batches_of(0), 0.75)
    assert type(network.token) is nn.Embedding


def test_what_computes_more_than_a_lookup_stays():
    network = nn.ModuleDict(
        {
            "plain": nn.Embedding(9, 4),
            "padded": nn.Embedding(9, 4, padding_idx=0),
            "scaled": nn.Embedding(9, 4, max_norm=1.0),
            "tied": nn.Embedding(9, 4),
            "head": nn.Linear(4, 9, bias=False),
            "bag": nn.EmbeddingBag(9, 4),
        }
    )
    network["head"].weight = network["tied"].weight
    assert list(lookups_of(network)) == ["plain"]


def test_an_embedding_that_nothing_reads_stays():
    network = Classifier()
    network.unread = nn.Embedding(V, D)
    plan = compress(network, batches_of(0), 0.75, embeddings=True)
    assert type(network.unread) is nn.Embedding
    assert not any(name.startswith("unread") for name in plan.layers)

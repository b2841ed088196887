"""Laws of embeddings and softmaxes in groups of low rank, as layers and in models on disk."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from eckart.core.svd import metric_svd  # noqa: E402
from eckart.nn.blocks import LanguageBlocks, drawn_label_loss  # noqa: E402
from eckart.nn.calibrate import decompose  # noqa: E402
from eckart.nn.directory import compress_model, decompose_directory, planned_bytes  # noqa: E402
from eckart.nn.embedding import LowRankEmbedding, LowRankSoftmax, TiedSoftmax  # noqa: E402
from eckart.nn.heal import divergence, factors_of, heal_model  # noqa: E402
from eckart.nn.language import load_model  # noqa: E402
from eckart.nn.plan import LayerPlan, RankPlan, plan_ranks  # noqa: E402
from eckart.nn.vocabulary import decompose_vocabulary, group_sizes, grouped_tensors  # noqa: E402

few = settings(max_examples=20, deadline=None)


@st.composite
def grouped(draw, kind=LowRankEmbedding):
    """A layer with random numbers, in either form; its groups may be empty of rank, or as they are."""
    width = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    ranks = [draw(st.one_of(st.integers(0, min(m, width)), st.just(m))) for m in sizes]
    layer = kind(width, sizes, ranks, draw(st.booleans()))
    torch.manual_seed(draw(st.integers(0, 99)))
    for parameter in layer.parameters():
        parameter.data.normal_()
    layer.order = torch.randperm(sum(sizes)).int()
    return layer.requires_grad_(False)


@few
@given(layer=grouped())
def test_lookup_and_logits_are_those_of_the_matrix(layer):
    W = layer.weight
    assert W.shape == (layer.num_embeddings, layer.embedding_dim)
    tokens = torch.randint(0, len(W), (2, 7))
    torch.testing.assert_close(layer(tokens), W[tokens])
    torch.testing.assert_close(layer(torch.tensor(0)), W[0])
    h = torch.randn(2, 3, W.shape[1])
    torch.testing.assert_close(TiedSoftmax(layer)(h), h @ W.T)
    for wrong in (-1, len(W)):
        with pytest.raises((IndexError, RuntimeError)):
            layer(torch.tensor([wrong]))


@few
@given(layer=grouped(LowRankSoftmax))
def test_it_takes_the_numbers_it_says(layer):
    W, h = layer.weight, torch.randn(5, layer.right[0].shape[1])
    torch.testing.assert_close(layer(h), h @ W.T)
    if layer.pivoted:
        d = W.shape[1]
        numbers = sum(m * d if k == m else k * (m + d - k) for m, k in zip(layer.sizes, layer.ranks, strict=True))
        assert sum(x.numel() for x in layer.parameters()) == numbers


def test_tied_tensors_are_listed_once_and_copied_together():
    network = torch.nn.ModuleDict({"a": LowRankEmbedding(4, [6], [2])})
    network["b"] = TiedSoftmax(network["a"])
    assert set(network.state_dict()) == {"a.order", "a.left.0", "a.right.0"}
    twin = copy.deepcopy(network)
    twin["a"].right[0].data.fill_(1)
    twin["a"].left[0].data.fill_(1)
    assert bool((twin["b"](torch.ones(4)) != 0).all())
    assert bool((network["b"](torch.ones(4)) == 0).all())


def test_a_group_has_a_rank_that_it_can_have():
    for sizes, ranks in ([(3, 9), (2, 5)], [(3,), (-1,)], [(0,), (0,)]):
        with pytest.raises(ValueError, match="tokens has rank"):
            LowRankEmbedding(4, sizes, ranks)


@few
@given(st.integers(1, 3000), st.integers(1, 100), st.none() | st.integers(1, 8))
def test_groups_are_all_of_the_vocabulary_and_alike(tokens, width, groups):
    sizes = group_sizes(tokens, width, groups)
    assert sum(sizes) == tokens
    assert max(sizes) - 1 <= min(sizes) >= 1
    assert len(sizes) <= (groups or 12)


# Decomposed


@pytest.fixture(scope="module", params=["llama", "gpt2", "untied"])
def model(request):
    return request.getfixturevalue(request.param)


def decomposed(model, windows, folder, **settings):
    blocks, batches = LanguageBlocks(model), list(windows[:, None])
    decompose(blocks, batches, folder, patterns=(), gradients=4, keep_ends=True)
    return decompose_vocabulary(blocks, batches, folder, **settings)


def matrix_of(model, name):
    return load_model(model).get_submodule(name).weight.detach()


def ranked(found, name, ranks):
    layers = {}
    for layer, rank in zip(found.groups[name].layers, ranks, strict=True):
        loss = 0.0 if rank is None else float(found.layers[layer].losses[rank])
        layers[layer] = LayerPlan(found.layers[layer].shape, rank, 0, loss)
    return RankPlan(layers)


def statistics(model, windows, gradients=4):
    """Frequencies, G and E[h h'] as defined, from the whole model at once."""
    network = load_model(model).requires_grad_(False)
    embedded, read, g = [], [], []

    def cut(layer, x, out):
        embedded.append(out.detach().requires_grad_())
        return embedded[-1]

    network.get_input_embeddings().register_forward_hook(cut)
    network.get_output_embeddings().register_forward_hook(lambda layer, x, out: read.append(x[0][0].detach()))
    p = 0
    for j, window in enumerate(windows):
        logits = network(window[None]).logits[0]
        p = p + logits.detach().softmax(-1).double().mean(0) / len(windows)
        if j < gradients:
            drawn_label_loss(logits, torch.Generator().manual_seed(j)).backward()
            g.append(embedded[-1].grad[0])
    h, g = torch.cat(read).double(), torch.cat(g).double()
    return p, g.T @ g / len(g), h.T @ h / len(h)


def test_the_predicted_loss_is_the_distance_in_the_metric(model, windows, tmp_path):
    found = decomposed(model, windows, tmp_path, damping=0.0)
    p, G, H = statistics(model, windows)
    f = 0.9 * p + 0.1 / len(p)
    metrics = dict(zip(found.groups, (G, H), strict=False))
    if len(metrics) == 1:
        metrics = dict.fromkeys(metrics, G + H)
    for name, R in metrics.items():
        W = matrix_of(model, name)
        plan = ranked(found, name, [min(3, x.shape[0]) for x in map(found.layers.get, found.groups[name].layers)])
        D = (W - grouped_tensors(W, found, plan, name, dense=True)["weight"]).double()
        assert float(torch.trace(torch.diag(f) @ D @ R @ D.T)) / 2 == pytest.approx(plan.loss, rel=1e-4)


def test_a_group_of_full_rank_is_exact_and_one_as_it_is_to_the_bit(model, windows, tmp_path):
    found = decomposed(model, windows, tmp_path)
    for name, groups in found.groups.items():
        W = matrix_of(model, name)
        ranks = [len(found.layers[layer].squares) for layer in groups.layers]
        full = grouped_tensors(W, found, ranked(found, name, ranks), name, dense=True)["weight"]
        torch.testing.assert_close(full, W, atol=1e-4, rtol=1e-4)
        part = grouped_tensors(W, found, ranked(found, name, [None, None, None, 1]), name, dense=True)["weight"]
        rare = groups.tokens[-found.layers[groups.layers[-1]].shape[0] :].long()
        same = (part == W).all(1)
        assert not bool(same[rare].any())
        assert int(same.sum()) == len(W) - len(rare)


def test_frequent_tokens_are_nearer_than_in_the_plain_svd(llama, windows, tmp_path):
    found = decomposed(llama, windows, tmp_path)
    (name,) = found.groups
    W = matrix_of(llama, name)
    plan = plan_ranks(found.layers, 0.5)
    ours = (W - grouped_tensors(W, found, plan, name, dense=True)["weight"]).square().sum(1)
    rank = max(k for k in range(32) if k * (64 + 32 - k) + 64 <= 0.5 * W.numel())
    plain = (W - metric_svd(W).cut(rank).dense()).square().sum(1)
    frequent = found.groups[name].tokens[:16].long()
    assert ours[frequent].sum() < plain[frequent].sum()
    assert ours.sum() > plain.sum()


def test_other_numbers_for_the_tokens_change_nothing_else(llama, windows, tmp_path):
    other, order = tmp_path / "other", torch.randperm(64, generator=torch.Generator().manual_seed(5))
    shutil.copytree(llama, other)
    tensors = load_file(llama / "model.safetensors")
    renamed = torch.empty_like(tensors["model.embed_tokens.weight"])
    renamed[order] = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"model.embed_tokens.weight": renamed}, other / "model.safetensors", {"format": "pt"})
    # (without gradients, which depend on how labels are drawn: two windows of them are a sample)
    found = {}
    for folder, read, work in ((llama, windows, "a"), (other, order[windows], "b")):
        blocks, batches = LanguageBlocks(folder), list(read[:, None])
        decompose(blocks, batches, tmp_path / work, patterns=(), gradients=4, keep_ends=True)
        gradients = load_file(tmp_path / work / "gradients-start.safetensors")["g"]
        save_file({"g": torch.zeros_like(gradients)}, tmp_path / work / "gradients-start.safetensors")
        found[work] = decompose_vocabulary(blocks, batches, tmp_path / work)
    name = "model.embed_tokens"
    assert torch.equal(order[found["a"].groups[name].tokens.long()], found["b"].groups[name].tokens.long())
    matrices = []
    for work, folder in (("a", llama), ("b", other)):
        plan, W = ranked(found[work], name, [None, 1, 3, 4]), matrix_of(folder, name)
        matrices.append(grouped_tensors(W, found[work], plan, name, dense=True)["weight"])
    torch.testing.assert_close(matrices[0], matrices[1][order], atol=1e-4, rtol=1e-4)


def test_one_group_without_a_metric_is_the_plain_svd():
    """What `metric_svd` is given is all that there is: a flat f and R = 1 are no metric."""
    W = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = metric_svd(W, torch.full((40,), 1 / 40), torch.eye(6))
    torch.testing.assert_close(ours.cut(3).dense(), metric_svd(W).cut(3).dense())


# On disk

DECOMPOSED = {"gradients": 3, "embeddings": True}


@pytest.fixture
def compressed(model, windows, tmp_path):
    plan_for(model, windows, tmp_path)
    compress_model(model, tmp_path / "out", windows, plan=tmp_path / "plan.json", gradients=3, embeddings=True)
    return tmp_path / "out"


def plan_for(model, windows, tmp_path):
    """A plan that cuts every group and a layer, whatever the budget's own would be."""
    found = decompose_directory(model, windows, tmp_path / "plan-work", gradients=3, embeddings=True)
    plan = plan_ranks(found.layers, 1.0).to_dict()
    for of in found.groups.values():
        for layer, rank in zip(of.layers, (None, 0, 3, 16), strict=True):
            plan["layers"][layer]["rank"] = rank
    next(iter(plan["layers"].values()))["rank"] = 9
    (tmp_path / "plan.json").write_text(json.dumps(plan))


@torch.no_grad()
def logits(folder, windows):
    return load_model(folder)(windows).logits


def test_a_model_is_written_loaded_saved_and_multiplied_out(model, compressed, windows, tmp_path):
    loaded, tied = load_model(compressed), model.name.startswith(("llama", "gpt2"))
    assert type(loaded.get_input_embeddings()) is LowRankEmbedding
    assert type(loaded.get_output_embeddings()) is (TiedSoftmax if tied else LowRankSoftmax)
    assert loaded.get_input_embeddings().ranks == (16, 0, 3, 16)
    there = logits(compressed, windows)
    loaded.tie_weights()
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again", windows), there)
    settings = {"plan": tmp_path / "plan.json", "gradients": 3, "embeddings": True}
    found = compress_model(model, tmp_path / "dense", windows, dense=True, **settings)
    torch.testing.assert_close(logits(tmp_path / "dense", windows), there, atol=1e-3, rtol=1e-3)
    numbers = sum(x.numel() for x in load_file(compressed / "model.safetensors").values())
    whole = sum(x.numel() for x in load_file(model / "model.safetensors").values())
    assert found["keep_of_model"] == pytest.approx(numbers / whole)
    again = decompose_directory(model, windows, tmp_path / "plan-work", **DECOMPOSED)
    plan = RankPlan.load(tmp_path / "plan.json", again.layers)
    assert abs(planned_bytes(model, again, plan) - (compressed / "model.safetensors").stat().st_size) < 3000  # headers


def test_a_tied_matrix_may_be_stored_under_the_name_of_the_softmax(llama, windows, tmp_path):
    shutil.copytree(llama, tmp_path / "other")
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    plan_for(llama, windows, tmp_path)
    sizes, outputs = [], []
    for name in ("llama", "other"):
        model, out = (llama if name == "llama" else tmp_path / name), tmp_path / f"out-{name}"
        found = decompose_directory(model, windows, tmp_path / f"work-{name}", **DECOMPOSED)
        compress_model(model, out, windows, plan=tmp_path / "plan.json", **DECOMPOSED)
        file, plan = out / "model.safetensors", RankPlan.load(out / "plan.json", found.layers)
        assert abs(planned_bytes(model, found, plan) - file.stat().st_size) < 3000  # headers
        sizes.append(file.stat().st_size)
        outputs.append(logits(out, windows))
    assert sizes[0] == sizes[1]
    assert torch.equal(*outputs)


def test_as_factors_it_computes_too(llama, windows, tmp_path):
    plan_for(llama, windows, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["pivoted"] = False
    plan["layers"]["model.embed_tokens[3]"]["rank"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    settings = {"plan": tmp_path / "plan.json", "gradients": 3, "embeddings": True}
    found = compress_model(llama, tmp_path / "factors", windows, **settings)
    compress_model(llama, tmp_path / "dense", windows, dense=True, **settings)
    assert not load_model(tmp_path / "factors").get_input_embeddings().pivoted
    there = logits(tmp_path / "factors", windows)
    torch.testing.assert_close(logits(tmp_path / "dense", windows), there, atol=1e-3, rtol=1e-3)
    numbers = sum(x.numel() for x in load_file(tmp_path / "factors" / "model.safetensors").values())
    whole = sum(x.numel() for x in load_file(llama / "model.safetensors").values())
    assert found["keep_of_model"] == pytest.approx(numbers / whole)


def test_layer_weights_are_measured_beside_groups(llama, windows, tmp_path):
    found = compress_model(llama, tmp_path / "out", windows, keep=0.5, gradients=1, embeddings=True, weigh=20)
    assert found["weighed"] == 20
    assert found["keep"] <= 0.5


def test_all_kept_is_the_original_to_the_bit(model, windows, tmp_path):
    compress_model(model, tmp_path / "out", windows, keep=1.0, gradients=1, embeddings=True)
    assert torch.equal(logits(model, windows), logits(tmp_path / "out", windows))


def test_a_cached_generation_is_that_of_the_whole(compressed):
    loaded, start = load_model(compressed), torch.tensor([[1, 5, 9]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        loaded.generate(start, use_cache=True, **settings), loaded.generate(start, use_cache=False, **settings)
    )


def test_healing_trains_the_groups_that_were_cut(llama, windows, tmp_path):
    plan_for(llama, windows, tmp_path)
    out = tmp_path / "out"
    compress_model(llama, out, windows, plan=tmp_path / "plan.json", gradients=3, embeddings=True)
    names = set(factors_of(load_model(out)))
    # The first group is as it was, the second has no numbers, in the last all 16 rows are pivots: as they were too.
    assert {name for name in names if "embed" in name} == {f"model.embed_tokens.{x}.2" for x in ("left", "right")}
    heal_model(out, llama, tmp_path / "healed", windows, lr=1e-2, epochs=3)
    wanted = logits(llama, windows)
    after, before = (float(divergence(logits(folder, windows), wanted)) for folder in (tmp_path / "healed", out))
    assert after < 0.9 * before
    old, new = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "healed"))
    assert torch.equal(old["model.embed_tokens.right.0"], new["model.embed_tokens.right.0"])
    assert not torch.equal(old["model.embed_tokens.right.2"], new["model.embed_tokens.right.2"])


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bytes(untied, windows, tmp_path):
    def run(folder, stop=None):
        calls = []

        def progress(*told):
            calls.append(told)
            if len(calls) == stop:
                raise Killed

        return decompose_directory(untied, windows, folder, gradients=3, embeddings=True, progress=progress), calls

    _, calls = run(tmp_path / "whole")
    assert [stage for stage, _, _ in calls[5:7]] == ["decomposing", "reading predictions"]
    for stop in (3, 6, 7):
        with pytest.raises(Killed):
            run(tmp_path / "killed", stop)
        run(tmp_path / "killed")
        for file in sorted((tmp_path / "whole").iterdir()):
            assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), (stop, file)
        shutil.rmtree(tmp_path / "killed")


# What is wrong is said


def edited(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config["quantization_config"], tensors)
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "wrong" / "model.safetensors", {"format": "pt"})
    return tmp_path / "wrong"


@pytest.fixture(scope="module")
def compressed_llama(llama, windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed")
    plan_for(llama, windows, folder)
    compress_model(llama, folder / "out", windows, plan=folder / "plan.json", gradients=3, embeddings=True)
    return folder / "out"


EMBEDDING = "model.embed_tokens"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c, t: c["groups"][EMBEDDING]["sizes"].append(5), "have sizes .*, expected 64 together"),
        (lambda c, t: c["groups"][EMBEDDING]["sizes"].__setitem__(3, 10**12), "expected 64 together"),
        (lambda c, t: c["groups"][EMBEDDING]["ranks"].pop(), "3 groups of .* have sizes"),
        (lambda c, t: c["groups"][EMBEDDING]["ranks"].__setitem__(2, 17), "has rank 17, expected 0 to 16, or 16"),
        (lambda c, t: c["groups"][EMBEDDING]["ranks"].__setitem__(2, -1), "is not sizes and ranks"),
        (lambda c, t: c["groups"][EMBEDDING]["ranks"].__setitem__(2, True), "is not sizes and ranks"),
        (lambda c, t: c["groups"].update({EMBEDDING: [3]}), "is not sizes and ranks"),
        (lambda c, t: c.update(groups=[1]), "is not sizes and ranks"),
        (lambda c, t: c["groups"].update({"model.norm": c["groups"][EMBEDDING]}), "no such embedding or softmax"),
        (lambda c, t: c["groups"].update({"lm_head": c["groups"].pop(EMBEDDING)}), "expected an embedding tied to"),
        (lambda c, t: c["groups"][EMBEDDING]["ranks"].__setitem__(2, 7), "is .* in the files, expected the shape"),
        (lambda c, t: t.pop(f"{EMBEDDING}.right.3"), r"right\.3 is not there in the files"),
        (lambda c, t: t[f"{EMBEDDING}.order"].fill_(0), "is no permutation"),
    ],
)
def test_a_model_that_is_wrong_is_refused(compressed_llama, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_model(edited(compressed_llama, tmp_path, change))


def test_what_cannot_be_compressed_is_refused_before_the_calibration(llama, windows, tmp_path):
    with pytest.raises(ValueError, match="gradients is 0, expected at least 1"):
        compress_model(llama, tmp_path / "out", windows, gradients=0, embeddings=True)
    with pytest.raises(ValueError, match="standalone model cannot have its embeddings compressed"):
        compress_model(llama, tmp_path / "out", windows, gradients=1, embeddings=True, standalone=True)
    config = transformers.PhiConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.PhiForCausalLM(config).save_pretrained(tmp_path / "phi")
    with pytest.raises(ValueError, match="softmax has a bias: compress it without its embeddings"):
        compress_model(tmp_path / "phi", tmp_path / "out", windows, gradients=1, embeddings=True)

"""Laws of experts as layers: they compute what their stack does, and are compressed, written and loaded like others."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from eckart.nn.blocks import LanguageBlocks  # noqa: E402
from eckart.nn.calibrate import Decomposition, damped, decompose  # noqa: E402
from eckart.nn.compress import compress, low_rank_layers  # noqa: E402
from eckart.nn.directory import compress_model, decompose_directory, planned_bytes  # noqa: E402
from eckart.nn.experts import Experts, UnstackedWeights, share_evenly, stacks_in, unstack  # noqa: E402
from eckart.nn.heal import factors_of, heal_model  # noqa: E402
from eckart.nn.language import divergence, load_model  # noqa: E402
from eckart.nn.linear import LowRankLinear  # noqa: E402
from eckart.nn.plan import RankPlan, plan_ranks  # noqa: E402
from eckart.nn.surgery import replace_layer  # noqa: E402
from eckart.nn.weigh import measured_weights  # noqa: E402
from eckart.nn.weights import Weights  # noqa: E402

KINDS = ("Mixtral", "Olmoe", "Qwen3Moe")
STACK = "model.layers.0.mlp.experts"


def config_of(kind, experts=4, top=2, **more):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes |= {"num_experts_per_tok": top, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
    sizes["num_local_experts" if kind == "Mixtral" else "num_experts"] = experts
    sizes |= {"moe_intermediate_size": 12, "head_dim": 8} if kind == "Qwen3Moe" else {}
    return getattr(transformers, f"{kind}Config")(**{"pad_token_id": 0, **sizes, **more})


def write_mixture(folder, kind, gate=None, **more):
    """Write a random model whose routers do choose."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config_of(kind, **more))
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data.normal_()
            if gate is not None:
                parameter.data.copy_(gate(parameter.data))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def mixture(request, tmp_path_factory):
    """Directory of a random mixture; its files have experts one by one."""
    return write_mixture(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return write_mixture(tmp_path_factory.mktemp("mixtral"), "Mixtral")


def stacked_files(folder, out):
    """The same model with its experts as stacks in the file."""
    shutil.copytree(folder, out)
    tensors = {name: x.contiguous() for name, x in load_model(folder).state_dict().items()}
    assert tensors[f"{STACK}.down_proj"].ndim == 3
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def numbers(folder):
    """Bytes of the tensors in a file."""
    return sum(x.nbytes for x in load_file(folder / "model.safetensors").values())


def header(folder):
    return (folder / "model.safetensors").stat().st_size - numbers(folder)


@torch.no_grad()
def logits(folder, windows):
    return load_model(folder)(windows).logits


# The module


def stack_of(kind, **more):
    """Random experts of a class of transformers, which run one after another."""
    config = config_of(kind, **more)
    config._experts_implementation = "eager"
    module = sys.modules[getattr(transformers, f"{kind}ForCausalLM").__module__]
    network = nn.Module()
    network.experts = getattr(module, f"{kind}Experts")(config)
    for parameter in network.parameters():
        parameter.data.normal_()
    return network


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(0, 9),
    experts=st.integers(1, 5),
    top=st.integers(1, 5),
    activation=st.sampled_from(["silu", "gelu_pytorch_tanh", "relu"]),
    seed=st.integers(0, 99),
)
def test_they_compute_what_their_stack_does(kind, tokens, experts, top, activation, seed):
    torch.manual_seed(seed)
    top = min(top, experts)
    network = stack_of(kind, experts=experts, hidden_act=activation)
    x = torch.randn(tokens, 16, requires_grad=True)
    weight, index = torch.rand(tokens, experts).topk(top)
    seen, gradient = [], torch.randn(tokens, 16)
    for _ in range(2):
        y = network.experts(x, index, weight)
        seen.append((y.detach(), torch.autograd.grad(y, x, gradient, allow_unused=True)[0] if tokens else x))
        unstack(network)
    assert type(network.experts) is Experts
    assert stacks_in(network) == {"experts": experts}
    assert torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-4, rtol=1e-4)


def changed(kind):
    """Experts that compute something else, or hold more."""
    network = stack_of("Mixtral")
    base = type(network.experts)

    class Changed(base):
        def forward(self, hidden_states, top_k_index, top_k_weights):
            if kind == "clipped":
                out = base.forward(self, hidden_states, top_k_index, top_k_weights)
                return out.clamp(-1000, 1000)
            if kind == "reversed":
                return base.forward(self, hidden_states, top_k_index, 1 - top_k_weights)
            return base.forward(self, hidden_states, top_k_index, top_k_weights)

    class Other(base):
        def forward(self, hidden_states):
            return hidden_states

    network.experts.__class__ = Other if kind == "other arguments" else Changed
    if kind == "a bias":
        network.experts.bias = nn.Parameter(torch.zeros(4))
    if kind == "transposed":
        for name in ("gate_up_proj", "down_proj"):
            setattr(network.experts, name, nn.Parameter(getattr(network.experts, name).transpose(1, 2)))
    return network


@pytest.mark.parametrize("kind", ["clipped", "reversed", "other arguments", "a bias", "transposed"])
def test_what_computes_something_else_stays(kind):
    network = changed(kind)
    assert unstack(network) == {}
    assert type(network.experts) is not Experts


def test_what_computes_the_same_under_another_name_does_not():
    assert unstack(changed("the same")) == {"experts": 4}


# What is known of experts


def reached_by_hand(folder, windows):
    """Inputs that each expert of the first block gets, from the router's choices: {expert: (tokens, d)}."""
    model, seen = load_model(folder), {}
    experts = model.model.layers[0].mlp.experts
    experts.register_forward_pre_hook(lambda module, given: seen.update(zip("xiw", given, strict=True)))
    inputs = {e: [] for e in range(experts.num_experts)}
    with torch.no_grad():
        for window in windows:
            model(window[None])
            for e in inputs:
                inputs[e].append(seen["x"][(seen["i"] == e).any(1)])
    return {e: torch.cat(x).double() for e, x in inputs.items()}


def test_moments_are_those_of_the_tokens_that_the_router_sends(mixture, windows, tmp_path):
    found = decompose_directory(mixture, windows, tmp_path, gradients=0, keep_moments=True)
    inputs = reached_by_hand(mixture, windows)
    rows = {e: float(len(x)) for e, x in inputs.items()}
    assert sum(rows.values()) == 2 * windows.numel()
    mean = sum(rows.values()) / len(rows)
    weights = UnstackedWeights(mixture, found.stacks)
    for e, x in inputs.items():
        name = f"{STACK}.{e}.gate_up_proj"
        torch.testing.assert_close(found.moments(name), x.T @ x / len(x), atol=1e-5, rtol=1e-4)
        share = (0.9 * rows[e] + 0.1 * mean) / windows.numel()
        R, W = damped(x.T @ x / len(x) * share, 0.1), weights.read(f"{name}.weight").double()
        assert found.layers[name].losses[0] == pytest.approx(float(torch.trace(W @ R @ W.T)) / 2, rel=1e-4)


def test_one_expert_is_a_network_without_a_mixture(windows, tmp_path):
    mixture = write_mixture(tmp_path / "mixture", "Mixtral", experts=1, top=1)
    config = config_of("Mixtral").to_dict()
    same = {name: config[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    same |= {name: config[name] for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")}
    same |= {name: config[name] for name in ("rms_norm_eps", "rope_parameters", "bos_token_id", "eos_token_id")}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**same, tie_word_embeddings=False))
    tensors = {}
    for name, x in load_model(mixture).state_dict().items():
        if name.endswith("gate_up_proj"):
            halves = zip(("gate_proj", "up_proj"), x[0].chunk(2), strict=True)
            tensors |= {name.replace("experts.gate_up_proj", f"{part}.weight"): half for part, half in halves}
        elif name.endswith("experts.down_proj"):
            tensors[name.replace("experts.down_proj", "down_proj.weight")] = x[0]
        elif not name.endswith("mlp.gate.weight"):
            tensors[name] = x
    plain.load_state_dict(tensors)
    plain.save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(tmp_path / "plain", windows), logits(mixture, windows))
    ours, theirs = (
        decompose_directory(tmp_path / name, windows, tmp_path / f"{name}-work", gradients=3).layers
        for name in ("mixture", "plain")
    )
    common = {name: name.replace("experts.0.", "") for name in ours if "gate_up" not in name}
    assert len(common) == 2 * 5
    for name, other in common.items():
        assert ours[name].losses == pytest.approx(theirs[other].losses, rel=1e-3, abs=1e-6), name


def test_what_is_predicted_of_experts_is_what_is_measured(tmp_path):
    model = write_mixture(tmp_path / "model", "Qwen3Moe")
    windows = torch.randint(0, 64, (20, 60), generator=torch.Generator().manual_seed(1))
    blocks, chosen = LanguageBlocks(model), {"patterns": ["experts.*"], "damping": (0, 0)}
    found = decompose(blocks, list(windows[:, None]), tmp_path / "work", gradients=20, **chosen)
    network = load_model(model)
    unstack(network)
    measured = [measured_weights(network, found, window, keep=0.9) for window in windows[:8]]
    ratios = torch.tensor([[weights[name] for name in found.layers] for weights in measured]).mean(0)
    assert len(ratios) == 16
    assert bool(((ratios > 0.3) & (ratios < 3)).all())
    assert 0.7 < float(ratios.log().mean().exp()) < 1.5


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_tokens_are_spread_and_none_is_lost(counts):
    rows = {str(i): float(n) for i, n in enumerate(counts)}
    share_evenly(list(rows), rows)
    assert sum(rows.values()) == pytest.approx(sum(counts))
    assert all((n > 0) == (sum(counts) > 0) for n in rows.values())
    assert sorted(rows.values()) == [x for _, x in sorted(zip(counts, rows.values(), strict=True))]


def unreached(rows):
    """A router that sends no token to the last of four experts, one each."""
    return torch.stack([rows[0], -rows[0], rows[1], 0.5 * rows[0]])


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_an_expert_without_tokens_is_judged_by_the_others(windows, tmp_path, activation):
    model = write_mixture(tmp_path / "model", "Mixtral", unreached, top=1, hidden_act=activation)
    assert not len(reached_by_hand(model, windows)[3])
    found = decompose_directory(model, windows, tmp_path / "work", gradients=2, keep_moments=True)
    for kind in ("gate_up_proj", "down_proj"):
        *others, mean = (found.moments(f"{STACK}.{e}.{kind}") for e in range(4))
        torch.testing.assert_close(mean, sum(others) / 3)
        losses = [found.layers[f"{STACK}.{e}.{kind}"].losses for e in range(4)]
        assert 0 < losses[3][0] < max(x[0] for x in losses)
        assert losses[3][1] < losses[3][0]
    made = compress_model(model, tmp_path / "out", windows, keep=0.5, gradients=2)
    assert made["keep"] <= 0.5
    assert logits(tmp_path / "out", windows).isfinite().all()


def test_a_text_that_reaches_no_expert_twice_is_enough(windows, mixture, tmp_path):
    """One window of two tokens for the gradients, and few experts reached at all."""
    made = compress_model(mixture, tmp_path / "out", windows[:2, :2], keep=0.6, gradients=1)
    assert made["keep"] <= 0.6
    assert logits(tmp_path / "out", windows).isfinite().all()


# Directories


@pytest.fixture(scope="module")
def compressed(mixture, windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed")
    compress_model(mixture, folder / "out", windows, keep=0.6, gradients=3, work=folder / "work")
    return folder


def ranks_of(folder):
    return {name: layer["rank"] for name, layer in json.loads((folder / "plan.json").read_text())["layers"].items()}


def test_what_is_loaded_is_what_was_computed(mixture, compressed, windows):
    found = Decomposition(compressed / "work")
    assert found.stacks == {STACK: 4, STACK.replace("0", "1"): 4}
    plan = RankPlan.load(compressed / "out" / "plan.json", found.layers)
    assert plan.keep <= 0.6
    assert len(plan.layers) == 2 * (4 + 8)
    network = load_model(mixture)
    unstack(network)
    for name, layer in low_rank_layers(network, found, plan).items():
        replace_layer(network, name, layer)
    loaded = load_model(compressed / "out")
    low = {name for name, layer in loaded.named_modules() if isinstance(layer, LowRankLinear)}
    assert low == {name for name, layer in plan.layers.items() if layer.rank is not None}
    assert any(name.startswith(STACK) for name in low)
    with torch.no_grad():
        there = loaded(windows).logits
        assert torch.equal(network(windows).logits, there)
    assert planned_bytes(mixture, found, plan) - header(mixture) == numbers(compressed / "out")
    loaded.save_pretrained(compressed / "again")
    assert torch.equal(logits(compressed / "again", windows), there)


def test_plain_transformers_loads_it_and_writes_texts(compressed):
    model = transformers.AutoModelForCausalLM.from_pretrained(compressed / "out")
    assert sum(isinstance(x, LowRankLinear) for x in model.get_submodule(STACK).modules()) > 3
    start = {"inputs": torch.tensor([[1, 5, 9]]), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**start), model.generate(**start, use_cache=False))


def test_multiplied_out_files_are_laid_out_as_the_original(mixture, compressed, windows, tmp_path):
    for model in (mixture, stacked_files(mixture, tmp_path / "stacked")):
        out = tmp_path / f"dense-{model.name}"
        compress_model(model, out, windows, keep=0.6, gradients=3, dense=True)
        before, after = (load_file(folder / "model.safetensors") for folder in (model, out))
        assert {name: x.shape for name, x in before.items()} == {name: x.shape for name, x in after.items()}
        assert "quantization_config" not in json.loads((out / "config.json").read_text())
        torch.testing.assert_close(logits(out, windows), logits(compressed / "out", windows), atol=1e-3, rtol=1e-3)
        whole = [name for name, rank in ranks_of(out).items() if rank is None]
        assert whole
        read = [UnstackedWeights(folder, {STACK: 4, STACK.replace("0", "1"): 4}) for folder in (model, out)]
        for name in whole:
            assert torch.equal(*(weights.read(f"{name}.weight") for weights in read))


def test_stacks_and_single_experts_in_files_are_one_model(mixture, compressed, windows, tmp_path):
    stacked = stacked_files(mixture, tmp_path / "stacked")
    compress_model(stacked, tmp_path / "out", windows, keep=0.6, gradients=3, work=tmp_path / "work")
    one, other = (load_file(folder / "out" / "model.safetensors") for folder in (compressed, tmp_path))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    found = Decomposition(tmp_path / "work")
    plan = RankPlan.load(tmp_path / "out" / "plan.json", found.layers)
    assert planned_bytes(stacked, found, plan) - header(stacked) == numbers(tmp_path / "out")


def test_all_kept_is_the_original_in_its_layout(mixture, windows, tmp_path):
    compress_model(mixture, tmp_path / "out", windows, keep=1.0, gradients=0)
    before, after = (load_file(folder / "model.safetensors") for folder in (mixture, tmp_path / "out"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_almost_all_kept_loses_almost_nothing(mixtral, windows, tmp_path):
    made = compress_model(mixtral, tmp_path / "out", windows, keep=0.97, gradients=3)
    lost = float(divergence(logits(tmp_path / "out", windows), logits(mixtral, windows)))
    half = compress_model(mixtral, tmp_path / "half", windows, keep=0.5, gradients=3)
    more = float(divergence(logits(tmp_path / "half", windows), logits(mixtral, windows)))
    assert lost < 0.1 * more
    assert made["predicted_loss"] < 0.1 * half["predicted_loss"]


def test_names_choose_layers_of_experts(mixtral, windows, tmp_path):
    def layers(**chosen):
        return list(decompose_directory(mixtral, windows[:2], tmp_path / "work", gradients=0, **chosen).layers)

    one = f"{STACK}.3.down_proj"
    assert layers(patterns=(one,)) == [one]
    assert layers(patterns=("experts.*.down_proj",)) == [
        f"model.layers.{i}.mlp.experts.{e}.down_proj" for i in range(2) for e in range(4)
    ]
    assert layers(skip=("experts.*",)) == [name for name in layers() if "self_attn" in name]
    with pytest.raises(ValueError, match=r"no layer matches 'experts\.9\.\*'"):
        layers(patterns=("experts.9.*",))
    compress_model(mixtral, tmp_path / "one", windows[:2], keep=0.5, gradients=0, patterns=(one,))
    assert isinstance(load_model(tmp_path / "one").get_submodule(one), LowRankLinear)
    compress_model(mixtral, tmp_path / "others", windows[:2], keep=0.5, gradients=0, skip=("experts.*",))
    assert [n for n in Weights(tmp_path / "others") if "experts" in n] == [
        n for n in Weights(mixtral) if "experts" in n
    ]
    assert logits(tmp_path / "others", windows).isfinite().all()


def test_blocks_may_be_without_a_mixture(windows, tmp_path):
    model = write_mixture(tmp_path / "model", "Qwen3Moe", mlp_only_layers=[0])
    chosen = {"gradients": 2, "patterns": ("experts.*",)}
    compress_model(model, tmp_path / "out", windows, keep=0.5, work=tmp_path / "work", weigh=8, **chosen)
    assert set(Decomposition(tmp_path / "work").stacks) == {"model.layers.1.mlp.experts"}
    assert logits(tmp_path / "out", windows).isfinite().all()


def test_embeddings_may_be_compressed_too(mixtral, windows, tmp_path):
    given = {"keep": 0.4, "gradients": 2, "embeddings": True, "work": tmp_path / "work"}
    compress_model(mixtral, tmp_path / "out", windows, **given)
    compress_model(mixtral, tmp_path / "dense", windows, dense=True, **given)
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["groups"]
    assert groups
    assert set(Weights(tmp_path / "dense")) == set(Weights(mixtral))
    there = logits(tmp_path / "out", windows)
    torch.testing.assert_close(logits(tmp_path / "dense", windows), there, atol=1e-3, rtol=1e-3)


def test_a_network_in_memory_is_compressed_once_taken_apart(mixtral, windows):
    network = load_model(mixtral)
    before = network(windows).logits.detach()
    unstack(network)
    plan = compress(network, [{"input_ids": windows, "use_cache": False}], 0.95, skip=("lm_head",), gradients=1)
    assert any(layer.rank is not None for name, layer in plan.layers.items() if name.startswith(STACK))
    assert (network(windows).logits - before).square().mean() < 0.1 * before.square().mean()


def test_a_block_at_a_time_is_in_memory(mixtral):
    blocks = LanguageBlocks(mixtral)
    held = [p for name, p in blocks.model.named_parameters() if name.startswith("model.layers")]
    assert len(held) > 20
    assert all(p.is_meta for p in held)
    assert not any(p.is_meta for p in blocks.load(0).parameters())


def test_weights_of_16_bits_stay_so(mixtral, windows, tmp_path):
    load_model(mixtral).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    compress_model(tmp_path / "half", tmp_path / "out", windows, keep=0.6, gradients=1)
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype for x in kept.values()} == {torch.bfloat16, torch.int32}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(windows).logits.dtype == torch.bfloat16


def test_a_plan_is_edited_and_passed_back(mixtral, windows, tmp_path):
    work = decompose_directory(mixtral, windows, tmp_path / "work", gradients=1)
    plan = plan_ranks(work.layers, 0.6).to_dict()
    for name, rank in ((f"{STACK}.1.gate_up_proj", 2), (f"{STACK}.2.down_proj", 0), (f"{STACK}.0.down_proj", None)):
        plan["layers"][name]["rank"] = rank
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    given = {"plan": tmp_path / "plan.json", "work": tmp_path / "work", "gradients": 1}
    compress_model(mixtral, tmp_path / "out", windows, **given)
    experts = load_model(tmp_path / "out").get_submodule(STACK)
    assert (experts[1].gate_up_proj.rank, experts[2].down_proj.rank) == (2, 0)
    assert type(experts[0].down_proj) is nn.Linear
    whole = UnstackedWeights(mixtral, {STACK: 4}).read(f"{STACK}.0.down_proj.weight")
    assert torch.equal(experts[0].down_proj.weight, whole)


def test_healing_trains_experts(mixtral, windows, tmp_path):
    compress_model(mixtral, tmp_path / "out", windows, keep=0.5, gradients=1)
    assert any(name.startswith(STACK) for name in factors_of(load_model(tmp_path / "out")))
    heal_model(tmp_path / "out", mixtral, tmp_path / "healed", windows, lr=1e-2, epochs=3)
    wanted = logits(mixtral, windows)
    after, before = (float(divergence(logits(tmp_path / name, windows), wanted)) for name in ("healed", "out"))
    assert after < 0.9 * before


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bytes(mixtral, windows, tmp_path):
    def run(folder, stop=None):
        calls = []

        def progress(*told):
            calls.append(told)
            if len(calls) == stop:
                raise Killed

        decompose_directory(mixtral, windows, folder, gradients=2, progress=progress)

    run(tmp_path / "whole")
    for stop in (1, 2, 3):
        with pytest.raises(Killed):
            run(tmp_path / "killed", stop)
        run(tmp_path / "killed")
        for file in sorted((tmp_path / "whole").iterdir()):
            assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), (stop, file)
        shutil.rmtree(tmp_path / "killed")


# What is wrong is said


def edited(folder, out, change):
    shutil.copytree(folder, out)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, tensors)
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def first(tensors, end):
    return next(name for name in sorted(tensors) if name.startswith(STACK) and name.endswith(end))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c, t: t.pop(first(t, ".left")), "left is not there in the files"),
        (lambda c, t: t.pop(first(t, "_proj.weight")), r"proj\.weight is not there in the files"),
        (lambda c, t: t.update({first(t, "_proj.weight"): torch.ones(2, 2)}), r"is \(2, 2\) in the files"),
        (lambda c, t: t[first(t, ".order")].fill_(0), "is no permutation"),
        (lambda c, t: c["quantization_config"]["ranks"].update({f"{STACK}.9.down_proj": 1}), "no such layer"),
        (lambda c, t: c["quantization_config"]["ranks"].update({f"{STACK}.0.down_proj": 13}), "expected at most 12"),
        (lambda c, t: c.pop("quantization_config"), "weights are not in the files|cannot load it"),
    ],
)
def test_a_compressed_model_that_is_wrong_is_refused(compressed, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_model(edited(compressed / "out", tmp_path / "wrong", change))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_model_that_is_wrong_is_refused(mixtral, windows, tmp_path, stacked):
    def of(end):
        return lambda tensors: next(name for name in sorted(tensors) if "experts" in name and name.endswith(end))

    down, gate = (of("down_proj"), of("gate_up_proj")) if stacked else (of("w2.weight"), of("w1.weight"))
    model = stacked_files(mixtral, tmp_path / "stacked") if stacked else mixtral
    changes = [
        (lambda c, t: t.pop(down(t)), "the weights have no"),
        (lambda c, t: t[down(t)].fill_(torch.nan), "has a value that is not finite"),
        (lambda c, t: t.update({down(t): torch.ones(5, 3, 3)[: 5 if stacked else 0]}), "have no|has the shape"),
        (lambda c, t: t.pop(gate(t)), "have no" if stacked else r"has the shape \(12, 16\), expected \(24, 16\)"),
    ]
    for i, (change, message) in enumerate(changes):
        with pytest.raises(ValueError, match=message):
            compress_model(edited(model, tmp_path / str(i), change), tmp_path / "out", windows[:2], gradients=0)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_and_nothing_is_left(mixtral, windows, tmp_path):
    given = {"keep": 0.5, "gradients": 0, "standalone": True, "work": tmp_path / "work"}
    with pytest.raises(ValueError, match="standalone model cannot have its experts compressed"):
        compress_model(mixtral, tmp_path / "out", windows[:2], **given)
    assert [x.name for x in tmp_path.iterdir()] == ["work"]
    compress_model(mixtral, tmp_path / "out", windows[:2], skip=("experts.*",), **given)  # of them is nothing cut
    assert logits(tmp_path / "out", windows).isfinite().all()


def test_an_export_is_refused_and_nothing_is_left(mixtral, windows, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'eckart[onnx]'")
    from eckart.nn.export import export_model

    compress_model(mixtral, tmp_path / "out", windows[:2], keep=0.5, gradients=0)
    with pytest.raises(ValueError, match="its experts were compressed, and torch cannot trace"):
        export_model(tmp_path / "out", tmp_path / "onnx")
    assert [x.name for x in tmp_path.iterdir()] == ["out"]

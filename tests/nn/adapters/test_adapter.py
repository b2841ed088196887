"""Adapters: in and out of networks, resized and added; files that peft reads, and that peft wrote."""

from __future__ import annotations

import copy
import json
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from eckart.nn.adapters.adapter import adapter_of, add_adapters, put_adapter, resize_adapter  # noqa: E402
from eckart.nn.adapters.files import CONFIG, load_adapter, save_adapter  # noqa: E402
from eckart.nn.adapters.init import pissa  # noqa: E402
from eckart.nn.adapters.lora import adapted_layers, add_lora, lora_parameters  # noqa: E402
from eckart.nn.language import load_model  # noqa: E402


class Picture(nn.Module):
    """Every kind of layer in one: tokens, convolutions, linear layers of both layouts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.wide = nn.Embedding(11, 48), nn.Linear(5, 7)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, (1, 2), stride=2, bias=False))
        self.turned = transformers.pytorch_utils.Conv1D(5, 4)

    def forward(self, tokens):
        x = self.words(tokens).reshape(len(tokens), 3, 4, -1)
        return self.wide(torch.relu(self.turned(torch.tanh(self.first(x)).mean((2, 3)))))


TOKENS = torch.arange(12).reshape(3, 4) % 11
FORMS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "ranks": {"ranks": {"first.*": 3, "wide": 2}},
    "pissa": {"init": pissa},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def trained(network, patterns=("*", "words"), seed=1, **form):
    add_lora(network, form.pop("rank", 4), 6.0, patterns, **form)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora_parameters(network).values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


@forms
def test_an_adapter_taken_out_and_put_in_computes_the_same(form, tmp_path):
    network, fresh = trained(Picture(), **form), Picture()
    plain = fresh(TOKENS)
    save_adapter(adapter_of(network, "a base", "CAUSAL_LM"), tmp_path / "a")
    read = load_adapter(tmp_path / "a")
    assert (read.base, read.task) == ("a base", "CAUSAL_LM")
    layers = put_adapter(fresh, read)
    assert layers.keys() == adapted_layers(network).keys()
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == set(lora_parameters(fresh))
    torch.testing.assert_close(fresh(TOKENS), network(TOKENS), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fresh(TOKENS), plain, atol=0.01)
    save_adapter(read, tmp_path / "b")
    for file in (CONFIG, "adapter_model.safetensors", "eckart.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("peft")


@forms
def test_peft_computes_the_same_with_our_files(peft, form, tmp_path):
    network = trained(Picture(), **form)
    save_adapter(adapter_of(network), tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that fan_in_fan_out is set for us
        theirs = peft.PeftModel.from_pretrained(Picture(), tmp_path / "a").eval()
    torch.testing.assert_close(theirs(TOKENS), network(TOKENS), atol=1e-5, rtol=1e-5)


SETTINGS = {
    "lora": {"r": 4},
    "rslora": {"r": 4, "use_rslora": True},
    "dora": {"r": 3, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"first.0": 2, "^words": 3},
        "alpha_pattern": {"wide": 5, "0": 3, "first.*": 12},
    },
    "rslora patterns": {"r": 4, "use_rslora": True, "rank_pattern": {"wide": 5}, "alpha_pattern": {"words": 1}},
}


def of_peft(peft, network, folder, targets, **settings):
    """peft's own files of random updates, and the network with them."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(network, peft.LoraConfig(target_modules=targets, **settings)).eval()
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape)
        theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    "targets", [["words", "wide", "0", "1", "turned"], "words|wide|first\\.\\d|turned"], ids=["list", "regex"]
)
def test_we_compute_what_peft_does_with_its_files(peft, settings, targets, tmp_path):
    theirs, ours = of_peft(peft, Picture(), tmp_path / "a", targets, **settings), Picture()
    plain = ours(TOKENS)
    put_adapter(ours, load_adapter(tmp_path / "a"))
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(TOKENS), plain, atol=0.01)


LANGUAGE = [
    ("llama", ["q_proj", "v_proj", "down_proj"], "lora"),
    ("llama", ["embed_tokens", "up_proj"], "dora"),
    ("llama", ["lm_head", "k_proj"], "rslora"),
    ("gpt2", ["c_attn", "c_fc"], "dora"),
    ("gpt2", ["wte", "c_proj"], "rslora"),
]


@pytest.mark.parametrize("kind, targets, form", LANGUAGE)
def test_language_models_give_the_same_logits_both_ways(peft, request, windows, kind, targets, form, tmp_path):
    folder = request.getfixturevalue(kind)
    theirs = of_peft(peft, load_model(folder), tmp_path / "a", targets, task_type="CAUSAL_LM", **SETTINGS[form])
    ours, again = load_model(folder), load_model(folder)
    put_adapter(ours, load_adapter(tmp_path / "a"))
    save_adapter(adapter_of(ours, task="CAUSAL_LM"), tmp_path / "b")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(again, tmp_path / "b").eval()
        expected = theirs(windows).logits
        for logits in (ours(windows).logits, again(windows).logits):
            assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
        assert not torch.allclose(load_model(folder)(windows).logits, expected, atol=0.01)


# Resizing and adding


@forms
def test_the_full_rank_changes_nothing(form):
    network, fresh = trained(Picture(), **form), Picture()
    resized, kept = resize_adapter(adapter_of(network), rank=99)
    assert set(kept.values()) == {1.0}
    put_adapter(fresh, resized)
    torch.testing.assert_close(fresh(TOKENS), network(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_smaller_rank_is_the_truncated_svd(rslora):
    adapter = adapter_of(trained(Picture(), rslora=rslora))
    resized, kept = resize_adapter(adapter, rank=2)
    by_energy, enough = resize_adapter(adapter, energy=0.9)
    for name in adapter.layers:
        U, s, Vt = torch.linalg.svd(adapter.delta(name).dense(), full_matrices=False)
        torch.testing.assert_close(resized.delta(name).dense(), U[:, :2] * s[:2] @ Vt[:2], atol=1e-5, rtol=1e-4)
        assert kept[name] == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()), rel=1e-4)
        k = by_energy.layers[name].factors.rank
        assert enough[name] >= 0.9 > float((s[: k - 1] ** 2).sum() / (s**2).sum())


def test_a_sum_of_adapters_is_the_sum_of_their_updates():
    one = adapter_of(trained(Picture(), rank=2))
    two = adapter_of(trained(Picture(), ("wide", "first.0"), seed=2, rslora=True))
    total, kept = add_adapters([one, two], [0.5, -2.0])
    assert total.layers.keys() == one.layers.keys()
    assert set(kept.values()) == {1.0}
    for name in total.layers:
        expected = 0.5 * one.delta(name).dense() + (-2.0 * two.delta(name).dense() if name in two.layers else 0)
        torch.testing.assert_close(total.delta(name).dense(), expected, atol=1e-5, rtol=1e-5)
    least, kept = add_adapters([one, two], rank=1)
    U, s, Vt = torch.linalg.svd(one.delta("wide").dense() + two.delta("wide").dense())
    torch.testing.assert_close(least.delta("wide").dense(), s[0] * U[:, :1] @ Vt[:1], atol=1e-5, rtol=1e-4)
    assert kept["wide"] == pytest.approx(float(s[0] ** 2 / (s**2).sum()), rel=1e-4)


def test_what_cannot_be_resized_or_added_is_said():
    lora, dora = (adapter_of(trained(Picture(), dora=dora)) for dora in (False, True))
    with pytest.raises(ValueError, match="give one of rank and energy"):
        resize_adapter(lora)
    with pytest.raises(ValueError, match="rank is 0"):
        resize_adapter(lora, rank=0)
    with pytest.raises(ValueError, match=r"energy is 1\.5"):
        resize_adapter(lora, energy=1.5)
    with pytest.raises(ValueError, match="magnitudes \\(DoRA\\) is no sum"):
        add_adapters([lora, dora])
    with pytest.raises(ValueError, match="1 adapters and 2 weights"):
        add_adapters([lora], [1.0, 2.0])
    other = nn.ModuleDict({"wide": nn.Linear(6, 7)})
    with pytest.raises(ValueError, match=r"updates of wide have the shapes \(7, 5\) and \(7, 6\)"):
        add_adapters([lora, adapter_of(trained(other, ("wide",)))])


# Files that are not believed


@pytest.fixture
def files(tmp_path):
    """A good adapter, and what writes a spoilt one beside it."""
    save_adapter(adapter_of(trained(Picture(), ("wide", "0", "words"))), tmp_path / "good")
    config, tensors = (
        json.loads((tmp_path / "good" / CONFIG).read_text()),
        load_file(tmp_path / "good" / "adapter_model.safetensors"),
    )

    def spoilt(config_changes=None, tensor_changes=None):
        folder = tmp_path / "bad"
        folder.mkdir(exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config | (config_changes or {})))
        changed = {
            ("base_model.model." + name if "." in name else name): x for name, x in (tensor_changes or {}).items()
        }
        save_file(
            {name: x for name, x in (tensors | changed).items() if x is not None}, folder / "adapter_model.safetensors"
        )
        return folder

    return spoilt


CONFIGS = [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
    ({"bias": "all"}, "bias is 'all', expected 'none'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is \"['lm_head']\": this kind of adapter is not supported"),
    ({"lora_bias": True}, "lora_bias is 'True'"),
    ({"layer_replication": [[0, 4]]}, "layer_replication is"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
    ({"something_new": 7}, "something_new is '7': this kind of adapter is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base"),
    ({"use_dora": 1}, "use_dora is '1', expected true or false"),
    ({"use_dora": True}, "expected lora_A.weight, lora_B.weight, lora_magnitude_vector"),
    ({"r": 5}, "has rank 4, and adapter_config.json says 5"),
    ({"r": -1}, "r and lora_alpha are [-1, 6], expected numbers above 0"),
    ({"r": True}, "r and lora_alpha are"),
    ({"lora_alpha": 10**400}, "r and lora_alpha are"),
    ({"lora_alpha": float("nan")}, "r and lora_alpha are"),
    ({"rank_pattern": {"wide": 3}}, "wide has rank 4, and adapter_config.json says 3"),
    ({"rank_pattern": ["wide"]}, "rank_pattern is not a number above 0 for each name"),
    ({"alpha_pattern": {"wide": "6"}}, "alpha_pattern is not a number above 0"),
    ({"alpha_pattern": {"(a+)+b": 6}}, "alpha_pattern has '(a+)+b', expected names"),
    ({"target_modules": None}, "target_modules is no list of names"),
    ({"target_modules": ["wide", "words"]}, "there are tensors for first.0, and adapter_config.json does not name it"),
    ({"target_modules": ["wide", "words", "0", "q_proj"]}, "names the layers 'q_proj', and there are no tensors"),
    ({"task_type": {}}, "task_type is no text"),
]


@pytest.mark.parametrize("change, sentence", CONFIGS)
def test_a_config_that_says_something_else_is_refused(files, change, sentence):
    with pytest.raises(ValueError) as error:
        load_adapter(files(change))
    assert sentence in str(error.value)


TENSORS = [
    ({"wide.lora_A.weight": None}, "wide has lora_B.weight, expected lora_A.weight, lora_B.weight"),
    ({"words.lora_embedding_B": None}, "words has lora_embedding_A, expected lora_embedding_A, lora_embedding_B"),
    (
        {"words.lora_B.weight": torch.ones(2, 2)},
        "words has lora_B.weight, lora_embedding_A, lora_embedding_B, expected",
    ),
    ({"wide.lora_magnitude_vector": torch.ones(7)}, "wide has lora_A.weight, lora_B.weight, lora_magnitude_vector"),
    ({"wide.weight": torch.ones(7, 5)}, "'base_model.model.wide.weight' is no part of an update"),
    ({"stray": torch.ones(2)}, "'stray' is no part of an update"),
    ({"wide.lora_A.weight": torch.ones(3, 5)}, "factors of the shapes (3, 5) and (7, 4), which do not fit"),
    ({"wide.lora_A.weight": torch.ones(4, 5, 1)}, "factors of the shapes (4, 5, 1)"),
    ({"wide.lora_B.weight": torch.ones(7)}, "(7,), which do not fit"),
    ({"wide.lora_B.weight": torch.ones(0, 4)}, "(0, 4), which do not fit"),
    ({"first.0.lora_B.weight": torch.ones(6, 4, 2, 1)}, "(6, 4, 2, 1), which do not fit"),
    ({"wide.lora_A.weight": torch.full((4, 5), torch.nan)}, "values that are not finite numbers"),
    ({"wide.lora_A.weight": torch.ones(4, 5, dtype=torch.int64)}, "values that are not finite numbers"),
]


@pytest.mark.parametrize("change, sentence", TENSORS)
def test_tensors_that_do_not_belong_are_refused(files, change, sentence):
    with pytest.raises(ValueError) as error:
        load_adapter(files(None, change))
    assert sentence in str(error.value)


def test_files_that_are_none_are_refused(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no adapter_config\.json"):
        load_adapter(tmp_path)
    folder = files()
    load_adapter(folder)
    (folder / CONFIG).write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no JSON object"):
        load_adapter(folder)
    files()
    (folder / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="is damaged"):
        load_adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled"):
        load_adapter(folder)


def change_wide(network):
    network.wide = nn.Linear(6, 7)


def change_kernel(network):
    network.first[0] = nn.Conv2d(9, 6, (3, 1))


def change_kind(network):
    network.words = nn.Linear(11, 48)


def change_name(network):
    network.wider = network.wide
    del network.wide


def change_class(network):
    network.wide = nn.Bilinear(5, 5, 7)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (change_wide, "the update of wide has the shape (7, 5), and the layer (7, 6): another network"),
        (change_kernel, "the update of first.0 has the shape (3, 3, 3), and the layer (9, 3, 1): another network"),
        (change_kind, "the update of words is of an embedding, and the layer is of the kind Linear"),
        (change_name, "the adapter has an update for 'wide', which the network has not: is it 'wider' there?"),
        (change_class, "wide is a layer of the kind Bilinear, which cannot be adapted"),
        (trained, "the network has updates already"),
    ],
)
def test_an_adapter_of_another_network_is_refused(files, change, sentence):
    network = Picture()
    change(network)
    before = copy.deepcopy(network)
    with pytest.raises(ValueError) as error:
        put_adapter(network, load_adapter(files()))
    assert sentence in str(error.value)
    assert adapted_layers(network).keys() == adapted_layers(before).keys()


def test_an_adapter_that_lacks_a_layer_it_claims_is_refused(files):
    tensors = {"first.0.lora_A.weight": None, "first.0.lora_B.weight": None}
    tensors |= {"first.1.lora_A.weight": torch.ones(4, 6, 1, 2), "first.1.lora_B.weight": torch.ones(4, 4, 1, 1)}
    adapter = load_adapter(files({"target_modules": ["1", "wide", "words"]}, tensors))
    put_adapter(Picture(), adapter)
    network = Picture()
    network.second = nn.ModuleList([nn.ReLU(), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"for layers like second\.1, and has no update for this one"):
        put_adapter(network, adapter)


def test_an_adapter_trained_on_another_embedding_is_refused(files):
    base = Picture().words.weight.detach()
    adapter = load_adapter(files(None, {"words.base_layer.weight": base}))
    put_adapter(Picture(), adapter)
    with pytest.raises(ValueError, match="trained on another weight of words"):
        put_adapter(Picture(), load_adapter(files(None, {"words.base_layer.weight": base + 1})))


def test_what_stands_there_is_not_replaced(files, tmp_path):
    adapter = load_adapter(files())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        save_adapter(adapter, tmp_path / "mine")
    save_adapter(adapter, tmp_path / "out")
    save_adapter(adapter, tmp_path / "out")  # its own is

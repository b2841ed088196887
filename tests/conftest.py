"""Hypothesis draws fresh cases on a developer's machine and the same ones in CI; language models of a few numbers."""

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Directory of a random Llama: layers that share inputs, tied embeddings."""
    return small_language_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """Directory of a random GPT-2: biases, transposed weights."""
    return small_language_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def untied(tmp_path_factory):
    """Directory of a random Llama whose softmax is a matrix of its own."""
    return small_language_model("untied", tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def language_model(request):
    """Both, one after the other."""
    return request.getfixturevalue(request.param)


def small_language_model(kind, folder):
    """Write a language model over 64 tokens, with a tokenizer of 64 words."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    if kind in ("llama", "untied"):
        config = transformers.LlamaConfig(
            **sizes,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=kind == "llama",
            initializer_range=0.3,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(**sizes, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3)
        model = transformers.GPT2LMHeadModel(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def windows():
    """Windows of tokens to calibrate with."""
    torch = pytest.importorskip("torch")
    return torch.randint(0, 64, (12, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def text(windows):
    """The same tokens as words, and some more."""
    torch = pytest.importorskip("torch")
    more = torch.randint(0, 64, (100,), generator=torch.Generator().manual_seed(2))
    return " ".join(f"w{i}" for i in [*windows.flatten().tolist(), *more.tolist()])

"""Texts and images as vectors; a tiny random transformer is made on the spot."""

import json
import os
import shutil
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.data.features import read_features
from eckart.data.image import image_encoder
from eckart.data.sentence import sentence_encoder

WORDS = ["ship", "space", "love", "paris", "the", "a", "##s"]
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS[:-1], "ships", "unknown"]), max_size=40).map(" ".join), max_size=9)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'eckart[torch]'")


@pytest.fixture(scope="module")
def model_directory(torch, tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'eckart[hf]'")
    tokenizers = pytest.importorskip("tokenizers", reason="needs transformers: pip install 'eckart[hf]'")
    folder = tmp_path_factory.mktemp("model")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rows = {word: n for n, word in enumerate([*special, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(rows, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=24, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(rows), max_position_embeddings=24, initializer_range=1.0, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(torch, model_directory):
    """The readable twin: a text at a time, so that nothing is padded."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_directory)
    model = transformers.AutoModel.from_pretrained(model_directory).eval()

    def encode_one(text):
        with torch.no_grad():
            hidden = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(dim=0).numpy()
        return mean / np.linalg.norm(mean)

    return encode_one


@pytest.fixture(scope="module")
def encode(model_directory):
    return sentence_encoder(model_directory, batch=3)


@pytest.fixture
def copied(model_directory, tmp_path):
    return shutil.copytree(model_directory, tmp_path / "copy")


# --- texts ---


@settings(deadline=None, max_examples=20)
@given(texts=TEXTS)
def test_a_vector_is_the_mean_over_the_tokens_whatever_stands_beside(alone, encode, texts):
    vectors = encode(texts)
    assert vectors.shape == (len(texts), 8)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, alone(text), atol=1e-5)


def test_progress_and_the_length_that_the_directory_states(copied):
    steps = []
    long = ["ship " * 3, "ship " * 30 + "love"]
    assert not np.array_equal(*sentence_encoder(copied)(long))
    (copied / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    short = sentence_encoder(copied, batch=1, progress=lambda *step: steps.append(step))(long)
    assert steps == [(1, 2), (2, 2)]
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)


def test_films_are_encoded_and_the_missing_stay_missing(encode):
    films = read_features({"item": [3, 1, 2], "plot": ["ships", None, "love paris"]}, kinds={"plot": "text"})
    column = films.encoded("plot", encode).columns["plot"]
    assert column.kind == "vector"
    assert column.missing().tolist() == [True, False, False]
    np.testing.assert_allclose(np.linalg.norm(column.values[1:], axis=1), 1, rtol=1e-5)


def test_nothing_is_printed_and_no_setting_stays_changed(model_directory, capfd):
    import transformers

    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    sentence_encoder(model_directory)(["ship"])
    assert (transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_a_directory_that_is_no_model_is_one_sentence(model_directory, copied, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no such directory: give one that holds a model, nothing is downloaded"
    ):
        sentence_encoder("sentence-transformers/all-MiniLM-L6-v2")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        sentence_encoder(tmp_path)
    (copied / "1_Pooling").mkdir()
    (copied / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    with pytest.raises(ValueError, match="does not pool by the mean"):
        sentence_encoder(copied)
    (copied / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": ')
    with pytest.raises(ValueError, match=r"config\.json: is damaged"):
        sentence_encoder(copied)
    (copied / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}')
    assert sentence_encoder(copied)([]).shape == (0, 8)
    with pytest.raises(ValueError, match="batch=0"):
        sentence_encoder(copied, batch=0)


def test_neither_code_nor_pickles_of_the_directory_are_run(torch, copied):
    config = json.loads((copied / "config.json").read_text())
    other = {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    (copied / "evil.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\n")
    (copied / "config.json").write_text(json.dumps(config | other))
    with pytest.raises(ValueError, match="cannot be loaded as a sentence encoder") as error:
        sentence_encoder(copied)
    assert "\n" not in str(error.value)
    (copied / "config.json").write_text(json.dumps(config))
    weights = copied / "model.safetensors"
    torch.save({}, copied / "pytorch_model.bin")
    weights.rename(copied / "gone")
    with pytest.raises(ValueError, match="cannot be loaded as a sentence encoder"):
        sentence_encoder(copied)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="cannot be loaded as a sentence encoder"):
        sentence_encoder(copied)
    assert not (copied / "ran").exists()


# --- images ---


@pytest.fixture
def pictures(torch, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'eckart[images]'")
    rng = np.random.default_rng(0)
    for name, mode in [("a.png", "RGB"), ("b.png", "L"), ("c.png", "RGBA"), ("d.gif", "P"), ("e.jpg", "RGB")]:
        image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).convert(mode).save(tmp_path / name)
    image.new("RGB", (6, 4), (255, 0, 51)).save(tmp_path / "red.png")
    return tmp_path


def channels(torch):
    class Channels(torch.nn.Module):
        def forward(self, x):
            assert not self.training
            return x.mean(dim=(2, 3))

    return Channels().train()


def test_images_reach_the_module_as_its_training_had_them(torch, pictures):
    module = channels(torch)
    plain = image_encoder(module, (2, 3), folder=pictures, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(plain(["red.png"]), [[1, 0, 0.2]], atol=1e-6)
    scaled = image_encoder(module, 4, folder=pictures, mean=(0.5, 0, 0), std=(0.5, 1, 2))
    np.testing.assert_allclose(scaled([str(pictures / "red.png")]), [[1, 0, 0.1]], atol=1e-6)
    assert module.training  # as it was found
    names = ["a.png", "b.png", "c.png", "d.gif", "e.jpg"]
    together = image_encoder(module, 8, folder=pictures, batch=2)(names)
    alone = [image_encoder(module, 8, folder=pictures)([name])[0] for name in names]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_posters_are_encoded(torch, pictures):
    films = read_features({"item": [1, 2, 3], "poster": ["a.png", None, "red.png"]})
    column = films.encoded("poster", image_encoder(channels(torch), 4, folder=pictures)).columns["poster"]
    assert column.values.shape == (3, 3)
    assert column.missing().tolist() == [False, True, False]


def test_an_image_that_will_not_do_is_one_sentence_with_its_path(torch, pictures, monkeypatch):
    encode = image_encoder(channels(torch), 4, folder=pictures)
    (pictures / "text.png").write_text("no image")
    (pictures / "cut.jpg").write_bytes((pictures / "e.jpg").read_bytes()[:200])
    (pictures / "other.png").write_bytes(b"P6 1 1 255\nabc")  # Pillow reads some forty formats, we six
    os.mkfifo(pictures / "pipe.png")
    for name, kind, message in [
        ("none.png", FileNotFoundError, "none.png: no such image: mend the path"),
        ("pipe.png", FileNotFoundError, "pipe.png: no such image"),
        (".", FileNotFoundError, "no such image"),
        ("nul\0.png", (FileNotFoundError, ValueError), "no such image|cannot be read"),
        ("text.png", ValueError, "text.png: cannot be read as an image"),
        ("cut.jpg", ValueError, "cut.jpg: cannot be read as an image"),
        ("other.png", ValueError, "other.png: cannot be read as an image"),
    ]:
        with pytest.raises(kind, match=message) as error:
            encode(["a.png", name])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])  # ours, where Pillow warns, where it refuses
def test_a_decompression_bomb_is_not_decoded(torch, pictures, side):
    from PIL import Image

    file = pictures / "bomb.png"
    Image.new("1", (1, 1)).save(file)
    data = bytearray(file.read_bytes())
    data[16:24] = side.to_bytes(4, "big") * 2  # the size in the header; the checksum is looked at before
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"bomb\.png: cannot be read as an image \(.*(pixels)"):
            image_encoder(channels(torch), 4, folder=pictures)(["bomb.png"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "size=0: expected 1 to 8192 pixels a side"),
        ({"size": (4, 9000)}, "expected 1 to 8192 pixels"),
        ({"size": 4, "std": (1, 0, 1)}, "expected three numbers each, those of std positive"),
        ({"size": 4, "mean": (1, 0)}, "expected three numbers each"),
        ({"size": 4, "batch": 0}, "batch=0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        image_encoder(None, **options)


def test_a_module_that_answers_wrongly_is_one_sentence(torch, pictures):
    for module, got in [(torch.nn.Identity(), r"shape \(1, 3, 4, 4\)"), (torch.nn.Flatten(0), r"shape \(48,\)")]:
        with pytest.raises(ValueError, match=f"the module gave {got} for 1 images, expected"):
            image_encoder(module, 4, folder=pictures)(["a.png"])


# --- what is not installed ---


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_one_sentence_that_says_what_to_install(package, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    if package == "transformers":
        monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{package} is not installed: pip install 'eckart\[hf\]'$") as error:
        sentence_encoder(tmp_path)
    assert error.value.name == package


def test_image_encoder_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image", raising=False)
    with pytest.raises(ImportError, match=r"^PIL is not installed: pip install 'eckart\[images\]'$"):
        image_encoder(None, 4)

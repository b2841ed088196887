"""Perplexity is what its definition says, and windows are what was asked for."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from types import SimpleNamespace  # noqa: E402

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from eckart.nn.language import needed_tokens, perplexity, read_text, tokens_of, windows_of  # noqa: E402

few = settings(max_examples=50, deadline=None)


class Bigram:
    """Predicts from the last token and how many stand before it: a twin can do the same with a loop."""

    def __init__(self, size=11):
        self.table = torch.randn(40, size, size, generator=torch.Generator().manual_seed(0))

    def __call__(self, ids, use_cache):
        places = torch.arange(ids.shape[1])
        return SimpleNamespace(logits=self.table[places, ids[0]][None])


def by_definition(model, tokens, context, stride, bos):
    """Loop over tokens: each counted once, in the first window that predicts it."""
    own = context - (bos is not None)
    losses, counted = [], set()
    for start in range(0, len(tokens) - own + 1, stride):
        window = ([] if bos is None else [bos]) + tokens[start : start + own].tolist()
        first = start - (bos is not None)
        for place in range(1, len(window)):
            position = first + place
            if position in counted:
                continue
            logits = model.table[place - 1, window[place - 1]]
            losses.append(-float(torch.log_softmax(logits, -1)[window[place]]))
            counted.add(position)
    return math.exp(sum(losses) / len(losses)), len(losses)


@few
@given(
    length=st.integers(8, 60),
    context=st.integers(2, 8),
    bos=st.sampled_from([None, 3]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_it_is_the_definition(length, context, bos, seed, data):
    own = context - (bos is not None)
    stride = data.draw(st.integers(1, own))
    model, tokens = Bigram(), torch.randint(0, 11, (length,), generator=torch.Generator().manual_seed(seed))
    found = perplexity(model, tokens, context, stride, bos)
    value, count = by_definition(model, tokens, context, stride, bos)
    assert found.perplexity == pytest.approx(value, rel=1e-5)
    assert (found.tokens, found.context, found.stride, found.bos) == (count, context, stride, bos is not None)


def test_windows_that_do_not_overlap_lose_their_first_token():
    found = perplexity(Bigram(), torch.zeros(20, dtype=torch.int64), context=5)
    assert found.tokens == 4 + 3 * 5 - 3  # 4 windows of 4 predictions
    assert found.stride == 5


@pytest.mark.parametrize("windows, stride, bos", [(3, None, False), (3, 2, False), (2, None, True)])
def test_so_many_tokens_are_so_many_windows(windows, stride, bos):
    tokens, seen = torch.zeros(needed_tokens(windows, 8, stride, bos), dtype=torch.int64), []
    perplexity(Bigram(), tokens, 8, stride, 1 if bos else None, lambda done, total: seen.append(total))
    assert seen == [windows] * windows


def test_a_text_that_is_too_short_is_refused():
    for call in (windows_of, lambda tokens, context: perplexity(Bigram(), tokens, context)):
        with pytest.raises(ValueError, match="the text has 5 tokens, expected at least 8, one context"):
            call(torch.zeros(5, dtype=torch.int64), 8)
        with pytest.raises(ValueError, match="context is 1, expected at least 2"):
            call(torch.zeros(5, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="stride is 9, expected 1 to 8"):
        perplexity(Bigram(), torch.zeros(50, dtype=torch.int64), 8, 9)


def test_texts_are_read_plain_and_packed(tmp_path):
    import gzip
    import lzma

    for name, opener in [("a.txt", open), ("a.gz", gzip.open), ("a.xz", lzma.open)]:
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write("größer\n")
        assert read_text(tmp_path / name) == "größer\n"
    for name, content, message in [
        ("empty.txt", b" \n", "the text is empty"),
        ("latin.txt", "größer".encode("latin-1"), "byte 2 is not UTF-8"),
        ("wrong.xz", b"junk", "cannot be unpacked"),
        ("wrong.gz", b"junk", "cannot be unpacked"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_text(tmp_path / name)


def test_tokens_get_nothing_added():
    def tokenizer(text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}

    assert tokens_of(tokenizer, "ab").tolist() == [97, 98]

"""Examples keep all their tokens, count what they say, and are to a model what they are alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from eckart.nn.adapters.examples import UNCOUNTED, Example, encode, pack, read_rows  # noqa: E402

lists = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=20), min_size=1, max_size=30
)


def examples_of(drawn):
    return [Example([token for token, _ in x], [counted for _, counted in x]) for x in drawn]


@settings(max_examples=100, deadline=None)
@given(lists, st.integers(2, 30))
def test_every_example_that_fits_is_there_once_and_whole(drawn, context):
    examples = examples_of(drawn)
    fitting = [x for x in examples if len(x.tokens) <= context]
    if not fitting:
        with pytest.raises(ValueError, match="no example fits"):
            pack(examples, context)
        return
    packed, left_out = pack(examples, context)
    assert left_out == len(examples) - len(fitting)
    assert all(x.shape == (len(packed.tokens), context) for x in packed)
    found = []
    for tokens, labels, positions, owners in zip(*(x.tolist() for x in packed), strict=True):
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, stop in zip(starts, [*starts[1:], context], strict=True):
            assert positions[start:stop] == list(range(stop - start))
            assert labels[start] == UNCOUNTED
            assert all(a in (b, UNCOUNTED) for a, b in zip(labels[start:stop], tokens[start:stop], strict=True))
            assert len(set(owners[start:stop])) == 1
            if tokens[start] == 0:
                assert owners[start] == -1  # what fills up
            else:
                assert examples[owners[start]].tokens == tokens[start:stop]
                found.append((tokens[start:stop], [x != UNCOUNTED for x in labels[start:stop]]))
    expected = [(x.tokens, [False, *x.counted[1:]]) for x in fitting]
    assert sorted(found) == sorted(expected)


@torch.no_grad()
def test_packed_examples_are_to_a_model_what_they_are_alone(language_model):
    from eckart.nn.language import load_model

    model = load_model(language_model)
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(torch.randint(1, 60, (size,), generator=generator).tolist(), [True] * size) for size in (5, 9, 7, 3, 12)
    ]
    packed, _ = pack(examples, context=24)
    assert len(packed.tokens) == 2
    logits = model(packed.tokens, position_ids=packed.positions, use_cache=False).logits
    together = F.cross_entropy(logits[:, :-1].flatten(0, 1), packed.labels[:, 1:].flatten(), reduction="sum")
    alone = sum(
        F.cross_entropy(model(tokens[None], use_cache=False).logits[0, :-1], tokens[1:], reduction="sum")
        for tokens in (torch.tensor(x.tokens) for x in examples)
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.fixture
def tokenizer(llama):
    from eckart.nn.language import load_tokenizer

    return load_tokenizer(llama)


def test_only_what_is_to_be_learned_counts(tokenizer):
    end = tokenizer.eos_token_id
    assert encode([{"text": "w3 w4"}], tokenizer) == [Example([3, 4, end], [True] * 3)]
    row = {"prompt": "w3 w4", "completion": "w5"}
    assert encode([row], tokenizer) == [Example([3, 4, 5, end], [False, False, True, True])]
    row = {"a": "w3", "b": 7}
    assert encode([row], tokenizer, "w9 {a}", "w{b}") == [Example([9, 3, 7, end], [False, False, True, True])]


def test_only_the_assistant_counts_in_a_chat(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ {'user': 'w30', 'assistant': 'w40'}[m.role] }} {{ m.content }} w50 {% endfor %}"
        "{% if add_generation_prompt %}w40 {% endif %}"
    )
    chat = [("user", "w3"), ("assistant", "w4 w5"), ("user", "w6"), ("assistant", "w7"), ("user", "w8")]
    (found,) = encode([{"messages": [{"role": role, "content": text} for role, text in chat]}], tokenizer)
    assert found.tokens == [30, 3, 50, 40, 4, 5, 50, 30, 6, 50, 40, 7, 50]  # what nobody answers teaches nothing
    assert [token for token, counted in zip(*found, strict=True) if counted] == [4, 5, 50, 7, 50]
    with pytest.raises(ValueError, match="nobody is the assistant"):
        encode([{"messages": [{"role": "user", "content": "w3"}]}], tokenizer)
    with pytest.raises(ValueError, match="messages is 'w3'"):
        encode([{"messages": "w3"}], tokenizer)
    tokenizer.chat_template = "w3{{ messages | length }}"
    with pytest.raises(ValueError, match="rewrites what was said"):
        encode([{"messages": [{"role": role, "content": text} for role, text in chat]}], tokenizer)


@pytest.mark.parametrize(
    "row, patterns, message",
    [
        ({"a": "b"}, {}, "the rows have a, expected text"),
        ({"a": "b"}, {"prompt": "{a}"}, "for both"),
        ({"a": "b"}, {"prompt": "{c}", "completion": "x"}, "names 'c', and the rows have a"),
        ({"a": None}, {"prompt": "{a}", "completion": "x"}, "a row has nothing in 'a'"),
        ({"a": "b"}, {"prompt": "{a.upper}", "completion": "x"}, r"names 'a\.upper'"),
        ({"a": "b"}, {"prompt": "{}", "completion": "x"}, "names ''"),
        ({"a": "b"}, {"prompt": "{a", "completion": "x"}, "expected '}'"),
        ({"text": None}, {}, "a row has the text None"),
        ({"prompt": "", "completion": "w3"}, {}, "a row has the prompt ''"),
    ],
)
def test_rows_that_are_no_examples_are_refused(tokenizer, row, patterns, message):
    with pytest.raises(ValueError, match=message):
        encode([row], tokenizer, **patterns)


def test_files_are_read_and_what_is_wrong_is_said(tmp_path):
    import pyarrow as pa
    from pyarrow import csv, parquet

    rows = [{"split": "train", "text": "w3"}, {"split": "test", "text": "w4"}]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    csv.write_csv(table, tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("parquet", "csv", "jsonl"):
        assert read_rows(tmp_path / f"a.{kind}") == rows
        assert read_rows(tmp_path / f"a.{kind}", "test") == rows[1:]
        with pytest.raises(ValueError, match="no rows of the split 'dev'"):
            read_rows(tmp_path / f"a.{kind}", "dev")
    for name, content, message in [
        ("b.parquet", b"junk", "b.parquet: "),
        ("b.jsonl", b"{", "b.jsonl: "),
        ("b.csv", b"text\n", "has no rows"),
        ("b.pickle", b"", r"not from '\.pickle'"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_rows(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("text\nw3\n")
    with pytest.raises(ValueError, match="has no column 'split'"):
        read_rows(tmp_path / "d.csv", "train")


def test_cells_are_text_as_they_stand(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,completion\n"two\nlines, and a comma",007\ntrue,2020-01-02\n')
    rows = read_rows(tmp_path / "a.csv")
    assert rows == [
        {"prompt": "two\nlines, and a comma", "completion": "007"},
        {"prompt": "true", "completion": "2020-01-02"},
    ]
    (tmp_path / "long.csv").write_text("text\n" + '"one\ntwo\nthree"\n' * 100_000)
    assert len(read_rows(tmp_path / "long.csv")) == 100_000
    (tmp_path / "b.jsonl").write_text('{"a": "2020-01-02", "b": 1}\n{"a": "x", "b": "y"}\n')
    assert read_rows(tmp_path / "b.jsonl") == [{"a": "2020-01-02", "b": 1}, {"a": "x", "b": "y"}]
    for content, message in (("a,b\n1\n", "row 1 has more or fewer"), ("a\n1,2\n", "row 1 has more or fewer")):
        (tmp_path / "c.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / "c.csv")
    (tmp_path / "c.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is no object"):
        read_rows(tmp_path / "c.jsonl")


def test_a_text_begins_as_the_tokenizer_begins_it(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="w1 $A", special_tokens=[("w1", begin)])
    (example,) = encode([{"prompt": "w3", "completion": "w4"}], tokenizer)
    assert example == Example([begin, 3, 4, tokenizer.eos_token_id], [False, False, True, True])
    assert encode([{"text": "w3"}], tokenizer)[0].tokens[:2] == [begin, 3]


def test_a_template_that_refuses_is_one_sentence(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ValueError, match=r"the chat template refuses .* no system here"):
        encode([{"messages": [{"role": role, "content": "w3"} for role in ("system", "assistant")]}], tokenizer)

"""``eckart prepare``: a store in the place of a file of ratings."""


def test_a_fit_to_the_store_is_the_fit_to_the_file(eckart, folder, tmp_path):
    told = eckart("prepare", folder / "ratings.csv", "-o", tmp_path / "store", "--json").json()
    assert (told["users"], told["items"], told["entries"], told["rated"]) == (120, 80, 3000, True)
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "store").iterdir())
    for source in (folder / "ratings.csv", tmp_path / "store"):
        assert eckart("fit", source, "-o", tmp_path / f"of-{source.name}", "--rank", 3, "--epochs", 2).status == 0
    for file in (tmp_path / "of-store").iterdir():
        assert file.read_bytes() == (tmp_path / "of-ratings.csv" / file.name).read_bytes()
    assert "rmse" in eckart("evaluate", tmp_path / "of-store", tmp_path / "store").out


def test_what_it_refuses_it_refuses_in_one_line(eckart, folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert (
        "is a file, expected a directory" in eckart("prepare", folder / "test.csv", "-o", tmp_path / "file").mistake()
    )
    assert "no such file" in eckart("prepare", "nowhere.csv", "-o", tmp_path / "store").mistake()
    assert "not a 'ratings'" in eckart("prepare", folder / "test.csv", "-o", folder / "model").mistake()
    eckart("prepare", folder / "test.csv", "-o", tmp_path / "store")
    refused = eckart("fit", tmp_path / "store", "-o", tmp_path / "m", "--duplicates", "mean")
    assert "is prepared already" in refused.mistake()

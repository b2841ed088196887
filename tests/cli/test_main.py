"""What holds for every command: help, exit status, one line for a mistake, clean streams."""

from __future__ import annotations

import subprocess
import sys

import pytest

import eckart as ek
from eckart.cli.main import as_options
from eckart.cli.terminal import safe

COMMANDS = ("fit", "evaluate", "recommend", "similar", "info", "demo")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_help_and_loads_nothing_heavy(arguments):
    code = (
        "import sys\nfrom eckart.cli.main import main\nstatus = main(sys.argv[1:])\n"
        "heavy = {'numpy', 'scipy', 'pyarrow', 'matplotlib', 'rich.table', 'eckart.core.kernels'} & set(sys.modules)\n"
        "print(heavy or 'light', file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: eckart")
    assert done.stderr == "light\n"


def test_the_version(eckart):
    assert eckart("--version") == (0, f"eckart {ek.__version__}\n", "")


def test_without_a_command_there_is_help_and_status_2(eckart):
    answer = eckart()
    assert (answer.status, answer.out) == (2, "")
    assert all(name in answer.err for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["fot"], "Did you mean 'fit'"),
        (["fit"], "RATINGS"),
        (["fit", "ratings.csv"], "--output"),
        (["fit", "ratings.csv", "-o", "new", "--rank", "many"], "--rank"),
        (["fit", "ratings.csv", "-o", "new", "--rank", "0"], "rank is 0"),
        (["fit", "ratings.csv", "-o", "new", "--reg", "nan"], "reg is nan"),
        (["fit", "ratings.csv", "-o", "new", "--solver", "magic"], "als, implicit-als"),
        (["fit", "ratings.csv", "-o", "new", "-s", "exponnet=1"], "exponent"),
        (["fit", "ratings.csv", "-o", "new", "-s", "exponent"], "name=value"),
        (["fit", "ratings.csv", "-o", "new", "-s", "exponent=high"], "expected a number"),
        (["fit", "ratings.csv", "-o", "new", "-s", "rank=3", "--rank", "4"], "twice"),
        (["fit", "ratings.csv", "-o", "new", "--test", "1.5"], "--test is 1.5"),
        (["fit", "ratings.csv", "-o", "new", "--by", "luck"], "leave_one_out"),
        (["fit", "ratings.csv", "-o", "new", "--resume"], "--checkpoint"),
        (["fit", "ratings.csv", "-o", "new", "--checkpoint", "new"], "each its own"),
        (["evaluate", "model", "test.csv", "--k", "0"], "--k"),
        (["evaluate", "model", "test.csv", "--fold-in", "2"], "--fold-in is 2"),
        (["recommend", "model"], "--history"),
        (["recommend", "model", "3", "--history", "4=5"], "either"),
        (["similar", "model"], "ITEM"),
        (["info", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(eckart, folder, monkeypatch, arguments, told):
    monkeypatch.chdir(folder)
    assert told in eckart(*arguments).mistake(status=2)
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["fit", "nothing.csv", "-o", "new"], "nothing.csv: no such file"),
        (["fit", "bad.csv", "-o", "new"], "line 3: rating is 'five', expected a number"),
        (["fit", "bad.csv", "-o", "new"], "pass --bad-lines skip"),
        (["fit", "ratings.csv", "-o", "new", "--user", "who"], "give --user one of these"),
        (["fit", "ratings.csv", "-o", "new", "--rank", "500"], "choose at most"),
        (["fit", "ratings.csv", "-o", "new", "--by", "time"], "--by time"),
        (["fit", "pairs.csv", "-o", "new", "--solver", "als"], "--solver implicit-als"),
        (["fit", "ratings.csv", "-o", "ratings.csv"], "ratings.csv is a file"),
        (["fit", "ratings.csv", "-o", "ratings.csv/new"], "cannot be written"),
        (["fit", "ratings.csv", "-o", "."], "choose another path"),
        (["fit", "nothing.csv", "-o", "."], "choose another path"),  # refused before the file is even looked at
        (["evaluate", "nothing", "test.csv"], "nothing does not exist"),
        (["evaluate", "ratings.csv", "test.csv"], "is a file"),
        (["evaluate", "model", "test.csv", "--relevant", "9"], "relevant"),
        (["evaluate", "model", "strangers.csv"], "none of the 2 items"),
        (["evaluate", "model", "text.csv"], "item ids are integers in the model, the test has 'x'"),
        (["recommend", "model", "--history", "3"], "ITEM=RATING"),
        (["recommend", "model", "--history", "3=good"], "'good'"),
        (["recommend", "model", "--history", "3=nan"], "rating"),
        (["recommend", "model", "--history", "3=5", "--history", "3=4"], "twice"),
        (["recommend", "model", "--history", "777=5"], "item 777 is not in the model"),
        (["similar", "model", "Heat"], "item 'Heat' is not in the model"),
        (["info", "nothing"], "nothing does not exist"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_1(eckart, folder, monkeypatch, arguments, told):
    (folder / "bad.csv").write_text("user,item,rating\n1,2,3\n1,3,five\n")
    (folder / "strangers.csv").write_text("user,item,rating\n1,9001,3\n1,9002,5\n")
    (folder / "text.csv").write_text("user,item,rating\n1,x,3\n1,4,5\n")
    monkeypatch.chdir(folder)
    assert told in eckart(*arguments).mistake()
    assert not (folder / "new").exists()


def test_a_mistake_in_its_own_process_too(process, folder):
    process("fit", folder / "nothing.csv", "-o", folder / "new").mistake(1)
    process("fit", folder / "ratings.csv").mistake(2)


def test_an_absent_extra_is_named(eckart, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(folder)
    assert "pip install 'eckart[plot]'" in eckart("demo", "-o", "new").mistake()
    assert not (folder / "new").exists()


def test_the_traceback_is_there_for_those_who_ask(process, folder):
    answer = process("info", folder / "nothing", env={"ECKART_TRACEBACK": "1"})
    assert answer.status == 1
    assert "Traceback" in answer.err


def test_a_defect_of_ours_is_not_hidden(monkeypatch, folder):
    from eckart.cli.main import main

    def broken(path):
        raise KeyError("a defect")

    monkeypatch.setitem(vars(ek), "load", broken)
    with pytest.raises(KeyError):
        main(["info", str(folder / "model")])


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    code = "import sys; from eckart.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "similar", folder / "model", *map(str, range(80)), "-k", "79"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 0


def test_a_full_disk_is_one_line(folder):
    code = "import sys; from eckart.cli.main import main; sys.exit(main())"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "info", folder / "model"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "a\tb", "\u202egnp", "\x9b31m", "\udc80", "\u2028"])
def test_text_that_could_steer_a_terminal_is_spelt_out(text):
    assert safe(text).isprintable()
    assert safe("Amélie – 東京 [bold]") == "Amélie – 東京 [bold]"


def test_messages_name_options_and_leave_the_rest_alone():
    assert as_options("pass bad_lines='skip'.") == "pass --bad-lines skip."
    assert as_options("(else pass delimiter=).") == "(else pass --delimiter)."
    assert as_options("change test=0.1.") == "change --test 0.1."
    assert as_options("standby=4, x = 3, e=mc2") == "standby=4, x = 3, e=mc2"

"""Progress where there is no terminal: plain lines, now and then."""

import re

import pytest

from bdia_exp import console, dist
from bdia_exp.errors import UserError, nearest


def test_a_log_gets_a_line_with_rate_and_time_left(capsys, monkeypatch):
    clock = iter([0.0, 30.0, 61.0, 90.0, 121.0, 150.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress(1000, "img") as bar:
        for _ in range(5):
            bar.update(100)
        console.say("a sentence between the lines")
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "200 of 1,000 img, 3.28 img/s, 4 min left",
        "400 of 1,000 img, 3.31 img/s, 3 min left",
    ]
    assert shown.out == "a sentence between the lines\n"
    assert not re.search(r"[\r\x1b]", shown.err + shown.out)


@pytest.mark.parametrize(
    ("total", "told"),
    [(3 * 10**9, "1.50GB of 3.00GB, 16.4MB/s, 2 min left"), (None, "1.50GB, 16.4MB/s")],
)
def test_a_download_is_counted_in_bytes_without_those_of_an_earlier_start(
    capsys, monkeypatch, total, told
):
    clock = iter([0.0, 61.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress(total, "B", 5 * 10**8) as bar:
        bar.update(10**9)
    assert capsys.readouterr().err == told + "\n"


def test_a_short_run_and_other_ranks_say_nothing(capsys, monkeypatch):
    with console.progress(10, "img") as bar:
        bar.update(10)
    assert bar.n == 10
    monkeypatch.setattr(dist, "rank", lambda: 1)
    monkeypatch.setattr(console, "INTERVAL", 0.0)
    with console.progress(10, "img") as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with console.progress(10, "img") as bar:
        assert not isinstance(bar, console._Lines)


@pytest.mark.parametrize("text", ["x", "1.5", "-1", "²", "9" * 5000])
def test_a_launcher_s_environment_is_checked(text, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UserError, match="the environment variable WORLD_SIZE="):
        dist.in_torchrun()


def test_a_process_without_a_rank_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(UserError, match=r"the processes cannot meet .*: use torchrun or -p"):
        dist.start()


@pytest.mark.parametrize("number", ["", "x", "-1", "²", "9" * 5000])
def test_a_gpu_has_a_whole_number(number):
    with pytest.raises(UserError, match="give the number of a GPU, such as cuda:0"):
        dist.device(f"cuda:{number}")


def test_each_of_several_processes_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert dist.device("cuda:1") == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert dist.device("cuda") == dist.device("auto") == "cuda:1"
    for name in ("cuda:0", "auto:1"):
        with pytest.raises(UserError, match=f"device={name} is for one process: give device=cuda"):
            dist.device(name)


def test_names_that_contain_the_word_come_first():
    known = ["cbdia", "bdia_edm", "bdia_ddim", "ddim"]
    assert nearest("bdia", known) == "; did you mean 'bdia_ddim', 'bdia_edm' or 'cbdia'?"
    assert nearest("ddmi", known) == "; did you mean 'ddim'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"
    assert nearest("x", []) == ""

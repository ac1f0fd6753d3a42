"""The progress line: plain lines, a bar on a terminal, and bytes."""

from grm_jax import progress as progress_module
from grm_jax.progress import byte_progress, progress


def test_progress_in_plain_lines(capsys, monkeypatch):
    """A stage of 20 s with one step a second, resumed at step 10 of 30: no line before 5 s, then
    one each 15 s, and the last.
    """
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("rl", total=30, done=10) as advance:
        for step in range(20):
            now[0] += 1.0
            advance(reward=0.5 + step)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rl: 15/30 steps  0:00:05 elapsed  1 steps/s  ETA 0:00:15  reward 4.5"
    assert lines[1] == "rl: 30/30 steps  0:00:20 elapsed  1 steps/s  ETA 0:00:00  reward 19.5"
    assert len(lines) == 2
    with progress("quick", total=2) as advance:
        advance()
        advance()
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_draws_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("rft", total=2) as advance:
        advance(loss=1.5)
        advance(loss=0.5)
    out = capsys.readouterr().err
    assert "rft" in out and "2/2 steps" in out and "loss 0.5" in out


def test_a_total_that_no_one_knows_is_left_out(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("judge", None, "records") as advance:
        for _ in range(10):
            now[0] += 1.0
            advance(2)
    assert capsys.readouterr().err == "judge: 10 records  0:00:05 elapsed  2 records/s\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("judge", None, "records") as advance:
        advance(2)
        print("a result")
    out, err = capsys.readouterr()
    assert out == "a result\n" and "2 records" in err and "result" not in err


def test_bytes_are_shown_as_whole_megabytes(capsys, monkeypatch):
    """7 pieces of 0.9 MB in 7 s: the last line says that all is done."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with byte_progress("load", 7 * 900_000) as advance:
        for _ in range(7):
            now[0] += 1.0
            advance(900_000)
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "load: 5/7 MB",
        "load: 7/7 MB",
    ]

"""The command `grm`: what goes in and comes out, and what it does when something is wrong."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import grm_jax
from grm_jax import cli
from grm_jax.data.world import make_records
from grm_jax.judgment.records import read_records, write_records
from tests import fabricated_judge

GRM = [sys.executable, "-m", "grm_jax"]
# the command with a model of the tests behind it, in blocks of two records
DRIVER = """
import sys
from grm_jax import cli, judge
def load(name, **kwargs):
    return judge.load({"kind": "tests.fabricated_judge:" + name}, rows=1)
judge.QUESTIONS["tests.fabricated_judge:slow"] = lambda n, k: 4
cli.load = load
sys.exit(cli.main())
"""
SLOW = [sys.executable, "-c", DRIVER]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("GRM_JAX_CACHE", "0")


@pytest.fixture
def grm(monkeypatch, capfdbinary):
    """`grm` in this process, asking the honest judge of the tests: (status, lines, stderr)."""
    fabricated_judge.CALLS.clear()
    monkeypatch.setattr(
        cli, "load", lambda name, **_: grm_jax.load({"kind": f"tests.fabricated_judge:{name}"})
    )

    def run(*words, model="honest"):
        capfdbinary.readouterr()
        status = cli.main([*map(str, words), "--model", model])
        out, err = capfdbinary.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err.decode()

    return run


def lines(*responses, **fields):
    return [
        {"id": f"r{i}", "conversation": f"question {i}", "responses": list(texts), **fields}
        for i, texts in enumerate(responses)
    ]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "in.jsonl", lines("37", "92", ("5", "8", "6"), ("4", "fails"), "1"))


def test_judge_writes_a_verdict_for_each_record(grm, file):
    status, verdicts, said = grm("judge", file, "--k", 4)
    assert status == 0 and [v["id"] for v in verdicts] == ["r0", "r1", "r2", "r3", "r4"]
    first, _, three, failed, single = verdicts
    assert first["scores"] == [12, 28] and first["best"] == 1 and first["margin"] == 4.0
    assert (first["k"], first["valid"], first["failed"]) == (4, 4, 0) and "failure" not in first
    assert three["best"] == 1 and three["margin"] == 2.0
    assert failed["failure"] == "no_box" and failed["failed"] == 4
    assert failed["scores"] is failed["best"] is failed["margin"] is None
    assert single["best"] == 0 and single["margin"] is None
    assert "judgments" not in first and first["seed"] == 0 and first["temperature"] == 0.5
    assert re.fullmatch("[0-9a-f]{16}", first["model"])
    assert "grm: 5 records judged" in said and "1 without a verdict" in said
    _, verdicts, _ = grm("judge", file, "--k", 4, "--judgments", "--seed", 3)
    assert verdicts[0]["seed"] == 3 and len(verdicts[0]["judgments"]) == 4
    assert verdicts[0]["judgments"][2] == {
        "sample": 2,
        "order": verdicts[0]["judgments"][2]["order"],
        "scores": [3, 7],
        "failure": None,
        "kept": True,
        "meta_logit": 2.0,
        "principles": [["worth", 1.0], ["x", None]],
        "critique": "",
        "text": "sample 2",
        "tokens": 3,
    }


@pytest.mark.parametrize("command", ["judge", "rank"])
def test_the_status_says_where_nothing_was_judged(grm, tmp_path, command):
    silent = write(tmp_path / "silent.jsonl", lines(("4", "fails"), ("fails", "2")))
    out = tmp_path / "out.jsonl"
    for _ in range(2):  # asked, and on file
        status, _, said = grm(command, silent, "--k", 2, "--out", out)
        assert status == 1 and "not one record has a verdict, so nothing was judged" in said
    assert len(out.read_text().splitlines()) == 2, "what failed is kept, with its reason"
    first = grm(command, silent, "--k", 2)
    assert "; 2 of 2 failed as 'no_box'" in first[2]
    # one verdict among them, and it is a result
    write(silent, lines(("4", "fails"), ("fails", "2"), "37"))
    assert grm(command, silent, "--k", 2, "--out", out)[0] == 0
    assert grm(command, silent, "--k", 2, "--out", out)[0] == 0, "all on file"


def test_rank_sorts_the_responses_of_records(grm, tmp_path):
    records = lines(("5", "8", "6"), ("2", "9"), ("4", "fails"), metadata={"mine": 1})
    records[0] |= {"rewards": [0.5, 0.1, 0.9], "domain": "d", "reference": "8"}
    records[1]["best"] = 1
    path = write(tmp_path / "in.jsonl", records)
    status, ranked, said = grm("rank", path, "--k", 2)
    assert status == 0 and "1 without a verdict" in said
    assert [record["responses"] for record in ranked] == [
        ["8", "6", "5"],
        ["9", "2"],
        ["4", "fails"],
    ]
    assert [record.get("rewards") for record in ranked] == [[0.1, 0.9, 0.5], [1.0, 0.0], None]
    assert ranked[0]["domain"] == "d" and ranked[0]["reference"] == "8"
    assert ranked[0]["metadata"]["mine"] == 1
    about = ranked[0]["metadata"]["grm"]
    assert (
        about["order"] == [1, 2, 0] and about["scores"] == [16, 12, 10] and about["margin"] == 2.0
    )
    assert ranked[2]["metadata"]["grm"]["failure"] == "no_box"
    assert ranked[2]["metadata"]["grm"]["order"] == [0, 1]
    again = write(tmp_path / "ranked.jsonl", ranked)
    assert len(read_records(again)) == 3  # records, for whatever reads records
    _, ranked, _ = grm("rank", path, "--k", 2, "--top", 1)
    assert [record["responses"] for record in ranked] == [["8"], ["9"], ["4", "fails"]]
    # gold of one response must be 0 or 1 in a record
    assert "rewards" not in ranked[0] and ranked[0]["metadata"]["grm"]["rewards"] == [0.1]
    assert ranked[1]["rewards"] == [1.0]
    assert len(read_records(write(tmp_path / "top.jsonl", ranked))) == 3
    _, ranked, _ = grm("rank", path, "--k", 2, "--top", 2)
    assert [len(record["responses"]) for record in ranked] == [2, 2, 2]


def test_ties_rank_as_the_verdict_has_them(grm, tmp_path):
    path = write(tmp_path / "in.jsonl", lines(*[("4", "4", "4")] * 20))
    _, verdicts, _ = grm("judge", path)
    _, ranked, _ = grm("rank", path)
    orders = [record["metadata"]["grm"]["order"] for record in ranked]
    assert [order[0] for order in orders] == [verdict["best"] for verdict in verdicts]
    assert len({order[0] for order in orders}) > 1


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_or_an_indented_object_is_one_error_not_one_a_line(grm, tmp_path, indent):
    records = lines("12", "34")
    for name, what in (("list", records), ("object", records[0])):
        if indent or name == "list":
            path = tmp_path / name
            path.write_text(json.dumps(what, indent=indent))
            status, verdicts, said = grm("judge", path)
            assert (status, verdicts) == (2, []) and said.count("error") == 1
            assert f"{path}:1: one record a line is expected" in said


def test_a_bad_line_is_an_error_by_number_and_voids_nothing(grm, tmp_path):
    path = tmp_path / "in.jsonl"
    good = [json.dumps(line) for line in lines("12", "34", "5")]
    nameless = json.dumps({"conversation": "q", "responses": ["6", "7"]})
    path.write_bytes(
        "\n".join(
            ["\ufeff" + good[0], "", '{"id": "x"', '{"id": "y", "responses": ["1"]}', "[]", good[1]]
            + [good[0], nameless, '{"id": "z", "conversation": "q", "responses": "1"}', good[2]]
        ).encode()
        + b'\n{"id": "\xff"}'
    )
    status, verdicts, said = grm("judge", path)
    assert status == 1 and [v["best"] for v in verdicts] == [1, 1, 1, 0]
    assert re.fullmatch("[0-9a-f]{16}", verdicts[2]["id"])
    errors = re.findall(r"^grm: error: (.*)$", said, re.M)
    assert [error.split(": ")[0].split(" ")[0] for error in errors] == [
        f"{path}:{number}" for number in (3, 4, 5, 7, 9, 11)
    ]
    assert 'field "conversation"' in errors[1] and "used on line 1 already" in errors[3]
    assert "not UTF-8 JSON" in errors[5]
    assert "grm: 6 of 10 lines could not be used" in said
    status, verdicts, said = grm("judge", path, model="pairs")
    assert status == 1 and [v["best"] for v in verdicts] == [1, 1, 1]
    assert f"{path}:10: a tests.fabricated_judge:pairs cannot judge 1 response" in said


def test_an_empty_file_and_a_compressed_one(grm, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    status, verdicts, said = grm("judge", empty)
    assert (status, verdicts) == (0, []) and said == "grm: 0 records judged\n"
    assert fabricated_judge.CALLS == []
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write(json.dumps(lines("12")[0]) + "\n")
    assert grm("judge", tmp_path / "in.jsonl.gz")[1][0]["best"] == 1


def test_a_file_of_results_is_continued(grm, file, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert grm("judge", file, "--out", whole)[:2] == (0, [])
    judged = whole.read_bytes().splitlines(keepends=True)
    assert len(judged) == 5
    out.write_bytes(b"".join(judged[:2]) + judged[2][:30])  # torn by a kill
    fabricated_judge.CALLS.clear()
    status, _, said = grm("judge", file, "--out", out)
    assert status == 0 and out.read_bytes() == whole.read_bytes()
    assert "3 records judged, 2 were done before" in said
    assert [name for names, *_ in fabricated_judge.CALLS for name in names] == ["r2", "r3", "r4"]
    fabricated_judge.CALLS.clear()
    assert grm("judge", file, "--out", out)[0] == 0 and fabricated_judge.CALLS == []
    # another text under the same id is another record
    changed = [json.loads(line) for line in file.read_text().splitlines()]
    changed[0]["responses"] = ["9", "1"]
    write(file, changed)
    assert grm("judge", file, "--out", out)[0] == 0
    assert [names for names, *_ in fabricated_judge.CALLS] == [("r0",)]


@pytest.mark.parametrize("command", ["judge", "rank"])
def test_auto_draws_as_many_as_each_record_needs(grm, file, tmp_path, command):
    words = (command, file, "--k", "auto", "--out", tmp_path / "out.jsonl")
    assert grm(*words, model="bounded")[0] == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    about = [line["metadata"]["grm"] if command == "rank" else line for line in written]
    assert {one["k"] for one in about} == {"auto, at most 32, error 0.05"}
    assert about[1]["drawn"] == 8 < about[2]["drawn"] and about[1]["stopped"] == "test"
    assert (about[3]["drawn"], about[3]["stopped"]) == (32, None), "all failed"
    fabricated_judge.CALLS.clear()
    assert grm(*words, model="bounded")[0] == 0 and not fabricated_judge.CALLS
    words = (command, file, "--k", 32, "--out", tmp_path / "out.jsonl")
    status, _, said = grm(*words, model="bounded")
    assert status == 2 and "\"k\": 'auto, at most 32, error 0.05', but 32 is asked" in said


def test_two_commands_never_write_one_file(grm, file, tmp_path):
    """Nor through a link; what is no file has no lock."""
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(out)
    hold = (
        "import pathlib, sys, time; from grm_jax import locks; "
        "locks.hold(pathlib.Path(sys.argv[1]), ''); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / ".out.jsonl.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for command in ("judge", "rank"):
            for path in (out, link):
                status, lines, said = grm(command, file, "--k", 2, "--out", path)
                assert status == 2 and lines == [] and not out.exists()
                who = rf"--out {path} is in use by process {other.pid} on \S+, for \d+ s"
                assert re.search(rf"{who} .*; wait for it, or choose another --out\n$", said)
        other.kill()
    assert grm("judge", file, "--k", 2, "--out", link)[0] == 0 and out.is_file()
    assert grm("judge", file, "--k", 2, "--out", "/dev/null")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "link.jsonl",
        "out.jsonl",
    ], "no lock is left"


def test_results_of_another_question_are_refused_by_name(grm, file, tmp_path):
    out = tmp_path / "out.jsonl"
    grm("judge", file, "--out", out)
    before = out.read_bytes()
    for words, message in (
        (("--k", 4), f'{out}:1: field "k": 8, but 4 is asked for now; choose another --out'),
        (("--seed", 1), f'{out}:1: field "seed": 0, but 1'),
        (("--temperature", 0.7), f'{out}:1: field "temperature": 0.5, but 0.7'),
    ):
        status, _, said = grm("judge", file, "--out", out, *words)
        assert status == 2 and f"grm: error: {message}" in said
    status, _, said = grm("judge", file, "--out", out, model="slow")
    assert status == 2 and f'{out}:1: field "model": ' in said
    status, _, said = grm("rank", file, "--out", out)
    assert status == 2 and f"{out}:1: not a result of grm rank; choose another --out" in said
    status, _, said = grm("judge", file, "--out", file)
    assert status == 2 and "--out: expected another file than the records" in said
    assert out.read_bytes() == before
    ranked = tmp_path / "ranked.jsonl"
    grm("rank", file, "--out", ranked, "--top", 1)
    status, _, said = grm("rank", file, "--out", ranked, "--top", 2)
    assert status == 2 and f'{ranked}:1: field "top": 1, but 2' in said


def test_what_cannot_begin_is_said_in_a_line(tmp_path, file, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for words, message in (
        (["judge", tmp_path / "gone.jsonl"], "gone.jsonl: no such file"),
        (["judge", tmp_path], ": is a folder; expected a file of records"),
        (["rank", pipe], "pipe: is a pipe; give it as -: COMMAND | grm rank -"),
        (
            ["judge", file, "--model", "tinny"],
            "model 'tinny': no such folder; did you mean 'tiny'?",
        ),
        (
            ["rank", file, "--model", "tiny", "--template", "pointwise=pointwise"],
            "was trained with",
        ),
        (["judge", file, "--k", "2", "--k-meta", "3"], "k_meta: expected 1 to k = 2, got 3"),
    ):
        assert cli.main([*map(str, words)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("grm: error: ") and message in said and "Traceback" not in said


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "arguments are required: COMMAND"),
        (["jugde"], "invalid choice: 'jugde'"),
        (["judge"], "arguments are required: FILE"),
        (["judge", "x", "--k", "0"], "--k: expected a positive integer, or auto, got '0'"),
        (["judge", "x", "--k", "many"], "expected a positive integer, or auto, got 'many'"),
        (["judge", "x", "--template", "list=a"], "ROLE=NAME with a role of pointwise, single"),
        (["judge", "x", "--meta", "a", "--no-meta"], "not allowed with argument"),
        (["judge", "x", "--top", "1"], "unrecognized arguments: --top 1"),
    ],
)
def test_wrong_arguments(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_help_and_wrong_arguments_take_no_jax():
    code = (
        "import sys, grm_jax.cli as c\n"
        "try: c.main(sys.argv[1:])\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules, file=sys.stderr)"
    )
    for words in (["--help"], ["judge", "--help"], ["rank", "x", "--k", "0"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.stderr.splitlines()[-1].endswith("False")
    text = subprocess.run([*GRM, "judge", "--help"], capture_output=True, text=True).stdout
    for word in ("conversation", "responses", "--model", "--out", "examples:", "margin", "failure"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def start(words, **kwargs):
    return subprocess.Popen(
        [*SLOW, *map(str, words), "--model", "slow", "--k", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done_and_the_same_command_goes_on(number, tmp_path):
    path = write(tmp_path / "in.jsonl", lines(*["12"] * 40))
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    words = ["judge", path, "--out"]
    process = start([*words, out])
    while not out.is_file() or not out.stat().st_size:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in said
    done = out.read_text().count("\n")
    assert 2 <= done < 40 and done % 2 == 0  # whole blocks
    assert f"stopped by {number.name}. {done} records are in {out}; the same command" in said
    for target in (out, whole):
        assert start([*words, target]).wait(timeout=60) == 0
    assert out.read_bytes() == whole.read_bytes() and whole.read_text().count("\n") == 40


def test_a_second_signal_ends_it_at_once(tmp_path):
    path = write(tmp_path / "in.jsonl", lines(*["12"] * 1000))
    process = start(["judge", path])
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said and "once more" in said


def test_a_signal_while_it_waits_for_input_ends_it_at_once(tmp_path):
    process = start(["judge", "-"], stdin=subprocess.PIPE)
    for line in lines("12", "34", "56"):
        process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()
    judged = [json.loads(process.stdout.readline())["id"] for _ in range(2)]  # the third waits
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    said = process.stderr.read()
    assert judged == ["r0", "r1"] and process.returncode == 130 and "Traceback" not in said
    assert "stopped by SIGINT. 2 records are done; with --out FILE a run can go on later" in said


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path):
    path = write(tmp_path / "in.jsonl", lines(*["12"] * 200))
    process = start(["judge", path])
    assert json.loads(process.stdout.readline())["id"] == "r0"
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert "Traceback" not in (said := process.stderr.read()) and "Broken" not in said


@pytest.mark.parametrize(
    "closed, words, status, said",
    [
        ("<&-", ["-", "--out", "out"], 2, "stdin is closed; name a file of records"),
        (">&-", ["in"], 2, "stdout is closed; name a file for the results with --out"),
        (">&- 2>&- <&-", ["in", "--out", "out"], 0, ""),
    ],
)
def test_a_closed_stream_is_said_or_does_not_matter(tmp_path, closed, words, status, said):
    write(tmp_path / "in", lines("12", "34"))
    command = [*SLOW, "judge", *words, "--model", "honest"]
    shell = ["bash", "-c", f'cd {tmp_path}; "$@" {closed}', "bash", *command]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == bool(said)
    if not status:
        assert [json.loads(line)["id"] for line in (tmp_path / "out").open()] == ["r0", "r1"]


def test_tiny_through_a_pipe(tmp_path):
    """The whole command, as a newcomer types it."""
    write_records(tmp_path / "in.jsonl", make_records("test", 2, 0))
    with open(tmp_path / "in.jsonl") as file:
        done = subprocess.run(
            [*GRM, "rank", "-", "--top", "1", "--k", "4"],
            stdin=file,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    ranked = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(record["responses"]) for record in ranked] == [1, 1]
    assert all(record["metadata"]["grm"]["k_meta"] == 2 for record in ranked)


def test_a_file_that_is_not_ours_is_never_changed(grm, tmp_path):
    records = tmp_path / "one.jsonl"
    records.write_text(json.dumps(lines("37")[0]))  # no line end
    before = records.read_bytes()
    status, _, said = grm("judge", records, "--out", records)
    assert status == 2 and "--out: expected another file than the records" in said
    notes = tmp_path / "notes.txt"
    notes.write_text("do not lose me")
    status, _, said = grm("judge", records, "--out", notes)
    assert status == 2 and "notes.txt:1: not a result of grm judge" in said
    assert (records.read_bytes(), notes.read_text()) == (before, "do not lose me")
    status, _, said = grm("judge", records, "--out", tmp_path / "x.jsonl.gz")
    assert status == 2 and "--out: results are plain JSON lines" in said


def test_a_result_torn_in_its_first_line_is_made_anew(grm, file, tmp_path):
    out = tmp_path / "out.jsonl"
    assert grm("judge", file, "--out", out)[0] == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:30])
    assert grm("judge", file, "--out", out)[0] == 0
    assert out.read_bytes() == whole


def test_results_with_and_without_judgments_are_not_mixed(grm, file, tmp_path):
    out = tmp_path / "out.jsonl"
    assert grm("judge", file, "--out", out)[0] == 0
    status, _, said = grm("judge", file, "--judgments", "--out", out)
    assert status == 2 and "out.jsonl:1: made without --judgments" in said


def test_gzip_is_known_by_its_bytes_and_a_damaged_file_is_named(grm, file, tmp_path):
    whole = gzip.compress(file.read_bytes())
    for name in ("torn.jsonl.gz", "torn.jsonl"):
        (tmp_path / name).write_bytes(whole[:40])
        status, _, said = grm("judge", tmp_path / name)
        assert status == 2 and f"{tmp_path / name}: damaged gzip file" in said
    want = grm("judge", file)[:2]
    (tmp_path / "zipped.jsonl").write_bytes(whole)
    (tmp_path / "plain.jsonl.gz").write_bytes(file.read_bytes())
    for name in ("zipped.jsonl", "plain.jsonl.gz"):
        assert grm("judge", tmp_path / name)[:2] == want


def test_equal_records_without_ids_are_judged_each(grm, tmp_path):
    record = {"conversation": "q", "responses": ["3", "7"]}
    gold = [record | {"rewards": [1.0, 0.0]}, record | {"rewards": [0.0, 1.0]}, record]
    status, verdicts, _ = grm("judge", write(tmp_path / "in.jsonl", gold))
    assert status == 0 and [verdict["best"] for verdict in verdicts] == [1, 1, 1]


def test_records_are_judged_by_their_rubric_or_by_that_of_the_command(grm, tmp_path):
    own = [{"name": "brevity", "weight": 2}, {"name": "truth", "weight": 1}]
    file = write(tmp_path / "in.jsonl", lines(("8 2", "4 10")))
    more = lines(("8 2", "4 9"), rubric=own)
    bad = lines(("8 2", "4 10"), rubric=[{"name": "truth", "weight": -1}])
    more[0]["id"], bad[0]["id"] = "own", "bad"
    with open(file, "a") as lines_of:
        lines_of.write("".join(json.dumps(record) + "\n" for record in more + bad))
    rubric = tmp_path / "rubric.json"
    rubric.write_text(
        json.dumps([{"name": "truth", "weight": 1}, {"name": "brevity", "weight": 3}])
    )
    status, verdicts, said = grm("judge", file, "--k", 2, "--rubric", rubric)
    assert status == 1 and [v["id"] for v in verdicts] == ["r0", "own"]
    assert f"{file}:3 (id 'bad'): field \"rubric[0].weight\": expected a number > 0" in said
    assert verdicts[0]["criteria"] == {"truth": [16, 8], "brevity": [4, 20]}
    assert [v["best"] for v in verdicts] == [1, 0] and verdicts[0]["scores"] == [7.0, 17.0]
    null = write(tmp_path / "null.jsonl", lines(("8 2", "4 10"), rubric=None))
    _, (as_told,), _ = grm("judge", null, "--k", 2, "--rubric", rubric)
    assert as_told == verdicts[0]  # null is what a field has that is left out
    for other in ({}, {"rubric": None}):
        both = lines(("8 2", "4 10"), principles="Principles: a (9)", **other)
        given = write(tmp_path / "given.jsonl", both)
        status, _, said = grm("judge", given, "--rubric", rubric)
        assert status == 1 and f'{given}:1: field "principles": it says what to judge by' in said
    _, ranked, _ = grm("rank", file, "--k", 2, "--rubric", rubric)
    assert ranked[0]["metadata"]["grm"]["criteria"] == {"truth": [8, 16], "brevity": [20, 4]}
    assert ranked[0]["rubric"][1] == {"name": "brevity", "weight": 3}
    for empty in ("[]", "null"):
        rubric.write_text(empty)
        status, _, said = grm("judge", file, "--rubric", rubric)
        assert status == 2 and f'error: {rubric}: field "rubric": expected a non-empty list' in said

"""The evaluator as a whole, with fabricated reward models: what it asks for, keeps, and says."""

import dataclasses
import html
import json
import pathlib
import re
import shutil
import subprocess

import ml_collections
import pytest

from experiments import run_config
from experiments.configs import tiny_evaluate
from experiments.stages import evaluation
from grm_jax.data.world import make_records
from grm_jax.evaluation import judging
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.judgment.records import Record, Turn, write_records
from grm_jax.reward_models.load import describe
from grm_jax.reward_models.replies import RemoteError
from tests.evaluation import schema
from tests.experiments import fabricated_models

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def records(count=8):
    """i = 0 has one response, the next three, then pairs; the first prompt is full of markup."""
    found = []
    for i in range(count):
        n = {0: 1, 1: 3}.get(i, 2)
        rewards = (1.0,) if n == 1 else tuple(float(j == i % n) for j in range(n))
        texts = tuple(
            f"answer {j}" + "!" * ((7 * j + i) % 5) + (HOSTILE if i == 2 else "") for j in range(n)
        )
        found.append(
            Record(
                f"r{i}",
                (Turn("user", f"question {i}" + (HOSTILE if i == 2 else "")),),
                texts,
                rewards,
                domain="even" if i % 2 == 0 else "odd",
            )
        )
    return found


@pytest.fixture
def config(tmp_path) -> ml_collections.ConfigDict:
    config = tiny_evaluate.get_config()
    write_records(tmp_path / "mixed.jsonl", records())
    config.benchmarks = (
        {"kind": "records", "name": "mixed", "path": str(tmp_path / "mixed.jsonl")},
    )
    config.systems = tuple(
        {"name": name, "kind": f"tests.experiments.fabricated_models:{name}"}
        for name in ("perfect", "pairwise", "sampled", "failing")
    )
    config.eval.update(ks=(1, 2), bootstrap=200, report_items=5, swap=True)
    for memory in (
        fabricated_models.ASKED,
        fabricated_models.LOADED,
        fabricated_models.BREAK_AFTER,
    ):
        memory.clear()
    return config


def evaluate(config, workdir):
    """What experiments.evaluate does with a config."""
    config = run_config.finish(config)
    return evaluation.evaluate(
        evaluation.systems(config),
        evaluation.benchmarks(config, workdir / "records"),
        workdir,
        run_config.section(config, "eval"),
        config,
    )


def asked():
    found = list(fabricated_models.ASKED)
    fabricated_models.ASKED.clear()
    fabricated_models.LOADED.clear()
    return found


def files(workdir):
    return {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in sorted((workdir / "judgments").rglob("*.jsonl"))
    }


def test_items_are_left_once_their_verdict_stands(config, tmp_path):
    config.systems = tuple(spec for spec in config.systems if spec["name"] != "pairwise")
    config.eval.update(ks=(1, 2, 4, 8, 16), anytime=0.2, samples_per_order=1)
    results = evaluate(config, tmp_path / "run")
    schema.check(results)
    drawn = [(item, s) for name, item, s, t, _ in asked() if (name, t) == ("sampled", 1.0)]
    assert results["ks"] == [1, 2, 4, 16] and 8 * 4 < len(drawn) < 8 * 16
    of_way = {
        (row["aggregation"], row["k"], row["k_meta"]): row
        for row in results["rows"]
        if row["system"] == "sampled" and row["benchmark"] == "mixed"
    }
    assert ("meta", 16, 8) in of_way and ("meta", 16, 16) not in of_way
    row = of_way["vote", 16, None]
    assert (
        row["samples_per_item"] == len(drawn) / 8 and row["tokens_per_item"] == 7 * len(drawn) / 8
    )
    assert of_way["vote", 4, None]["samples_per_item"] == 4
    words = f"{len(drawn) / 8:.1f} judgments, {100 - 100 * len(drawn) / 128:.0f} % saved"
    for name in ("table.md", "report.html"):
        assert words in (tmp_path / "run" / name).read_text()
    failing = [r for r in results["rows"] if (r["system"], r["k"]) == ("failing", 16)]
    assert {row["samples_per_item"] for row in failing} == {16.0}, "it says no bound of its scores"
    evaluate(config, tmp_path / "run")
    assert asked() == []


def test_everything_is_asked_once_and_a_rerun_asks_nothing_and_loads_nothing(config, tmp_path):
    results = evaluate(config, tmp_path / "run")
    schema.check(results)
    first = asked()
    assert len(first) == len(set(first))
    # perfect: 8 greedy + 7 swapped (one response has no order); pairwise accepts 7: 7 + 7; sampled
    # and failing: 8 + 7 + 8 x 2
    assert [
        sum(name == system for name, *_ in first)
        for system in ("perfect", "pairwise", "sampled", "failing")
    ] == [15, 14, 31, 31]
    before = files(tmp_path / "run")
    assert set(before) >= {
        "judgments/perfect/mixed/greedy-seed0.jsonl",
        "judgments/sampled/mixed/sampled-seed0.jsonl",
    }
    again = evaluate(config, tmp_path / "run")
    assert asked() == [] and fabricated_models.LOADED == [] and files(tmp_path / "run") == before
    assert (
        json.dumps(again)
        == json.dumps(results)
        == json.dumps(json.loads((tmp_path / "run" / "results.json").read_text()))
    )


def test_figures_are_the_ones_counted_by_hand(config, tmp_path):
    results = evaluate(config, tmp_path / "run")
    rows = {(r["system"], r["aggregation"], r["k"], r["k_meta"]): r for r in results["rows"]}
    assert (
        rows["perfect", "greedy", 1, None]["value"] == 1
        and rows["perfect", "vote", 2, None]["flat_by_construction"]
    )
    pairwise = rows["pairwise", "greedy", 1, None]
    assert (pairwise["value"], pairwise["items"], pairwise["not_applicable"]) == (1, 7, 1)
    swap = {d["system"]: d["position_swap"] for d in results["diagnostics"]}
    assert (
        swap["perfect"]["consistent"] == 1
        and swap["pairwise"]["consistent"] == 0
        and swap["pairwise"]["both_right"] == 0
    )
    failing = rows["failing", "vote", 1, None]
    # of the two samples of an item one, both or none of "no_box", "request_failed" and the gold
    # occur: each in a third of (sample + i) mod 3
    parsed = [(s + i) % 3 == 2 for i in range(8) for s in range(2)]
    chance = [1 / 2, 1 / 3] + [1 / 2] * 6
    assert failing["parse_failure_rate"] == pytest.approx(1 - sum(parsed) / 16)
    assert failing["value"] == pytest.approx(
        sum(1 if parsed[2 * i + s] else chance[i] for i in range(8) for s in range(2)) / 16
    )
    failures = next(d for d in results["diagnostics"] if d["system"] == "failing")["failures"]
    assert (
        set(failures) == {"no_box", "request_failed:timeout"}
        and sum(failures.values()) == sum(not p for p in parsed) + 2 * 3 + 2 * 2 + 1
    )
    can = {c["system"]: c for c in results["capabilities"]}
    assert (
        can["perfect"]["input_flexible"]
        and not can["pairwise"]["input_flexible"]
        and can["sampled"]["input_flexible"]
    )
    assert (
        can["pairwise"]["one"] == {"items": 1, "accepted": 0, "verdicts": 0}
        and can["pairwise"]["many"]["verdicts"] == 1
    )
    table = (tmp_path / "run" / "table.md").read_text()
    assert (
        "| pairwise | one judgment | **100.0** [100.0, 100.0] (7 items) | 0.00 |" in table
        and "no, flat by construction" in table
        and "does not accept" in table
    )


def test_a_run_that_was_killed_in_a_line_goes_on_where_it_was(config, tmp_path):
    whole = evaluate(config, tmp_path / "whole")
    expected, order = files(tmp_path / "whole"), asked()
    fabricated_models.BREAK_AFTER.append(50)  # among the samples of "sampled"
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "run")
    fabricated_models.BREAK_AFTER.clear()
    done = asked()
    path = tmp_path / "run" / "judgments" / "sampled" / "mixed" / "sampled-seed0.jsonl"
    torn = path.read_bytes()
    assert torn.endswith(b"\n")
    path.write_bytes(torn + torn.splitlines()[0][:40])
    resumed = evaluate(config, tmp_path / "run")
    later = asked()
    kept = [json.loads(line) for of in (path,) for line in torn.splitlines()]
    assert not {("sampled", row["id"], row["sample"], 1.0, False) for row in kept} & set(later), (
        "what is on file is not asked again"
    )
    assert set(done) | set(later) == set(order) and len(done) + len(later) <= len(order) + 2

    def evidence(found):  # all but wall times
        return {name: re.sub(rb'"seconds": [^,}]*', b"", text) for name, text in found.items()}

    assert evidence(files(tmp_path / "run")) == evidence(expected)
    assert resumed["rows"] == whole["rows"]


def test_more_k_systems_seeds_and_benchmarks_ask_for_the_new_part_alone(config, tmp_path):
    evaluate(config, tmp_path / "run")
    asked()
    config.eval.ks = (1, 2, 4)
    evaluate(config, tmp_path / "run")
    assert {(name, sample) for name, _, sample, *_ in asked()} == {
        (name, s) for name in ("sampled", "failing") for s in (2, 3)
    }
    config.systems += (
        {"name": "constant", "kind": "tests.experiments.fabricated_models:constant"},
    )
    results = evaluate(config, tmp_path / "run")
    assert {name for name, *_ in asked()} == {"constant"}
    constant = next(
        r for r in results["rows"] if r["system"] == "constant" and r["aggregation"] == "greedy"
    )
    assert (
        constant["value"] == pytest.approx((1 + 1 / 3 + 6 / 2) / 8) and constant["strict"] == 1 / 8
    )
    write_records(tmp_path / "more.jsonl", records(3)[2:])
    config.benchmarks += (
        {"kind": "records", "name": "more", "path": str(tmp_path / "more.jsonl")},
    )
    evaluate(config, tmp_path / "run")
    assert {item for _, item, *_ in asked()} == {"r2"}
    config.eval.seeds = (0, 1)
    results = evaluate(config, tmp_path / "run")
    assert len([1 for name, *_ in asked() if name == "sampled"]) == (8 + 7 + 32) + (1 + 1 + 4)
    one = next(
        r
        for r in results["rows"]
        if (r["system"], r["benchmark"], r["aggregation"], r["k"])
        == ("sampled", "mixed", "vote", 1)
    )
    assert len(one["seed_means"]) == 2 and one["item_mean"] == pytest.approx(
        sum(one["seed_means"]) / 2
    )


def test_failures_that_are_named_are_asked_again_and_the_last_answer_counts(config, tmp_path):
    config.systems = ({"name": "failing", "kind": "tests.experiments.fabricated_models:failing"},)
    evaluate(config, tmp_path / "run")
    asked()
    config.eval.retry = ("request_failed",)
    config.systems = ({"name": "failing", "kind": "tests.experiments.fabricated_models:failing"},)
    evaluate(config, tmp_path / "run")
    repeated = asked()
    assert repeated and all(
        (sample + int(item[1:])) % 3 == 1 for _, item, sample, *_ in repeated
    ), "no_box is an answer, and stays"
    path = tmp_path / "run" / "judgments" / "failing" / "mixed" / "greedy-seed0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines.append(
        next(line for line in lines if line["failure"] == "request_failed:timeout")
        | {"failure": None, "scores": [0.0, 1.0, 0.0], "id": "r1"}
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = evaluate(config, tmp_path / "run")
    greedy = next(r for r in results["rows"] if r["aggregation"] == "greedy")
    assert greedy["parse_failure_rate"] == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda c: c.eval.update(ks=(2, 4)), "eval.ks: expected growing integers from 1"),
        (lambda c: c.eval.update(seeds=(0, 0)), "eval.seeds: expected different integers"),
        (
            lambda c: c.eval.update(retry=("request_faild",)),
            "eval.retry: .request_faild. names no fail",
        ),
        (lambda c: c.eval.update(retry=("refused", "nobox")), "did you mean no_box"),
        (lambda c: c.eval.update(greedy=False), "eval.swap: expected False, as it compares with"),
        (
            lambda c: c.update(systems=({"name": "a/b", "kind": "random"},)),
            r'systems: \[0\]: field "name"',
        ),
        (
            lambda c: c.update(systems=({"name": "a", "kind": "llm"},)),
            "expected one of pointwise_grm, llm_judge",
        ),
        (
            lambda c: c.update(systems=({"name": "a", "kind": "pair_rm", "path": "/no"},)),
            "field .path.: model ./no.: no such folder",
        ),
        (
            lambda c: c.update(systems=({"name": "a", "kind": "remote", "model": "m"},)),
            "kind 'remote' needs the field base_url",
        ),
        (
            lambda c: c.update(systems=({"name": "a", "kind": "length", "path": "tiny"},)),
            "unknown field 'path'; kind 'length' has no fields",
        ),
    ],
)
def test_a_config_that_cannot_be_right_is_refused_at_once(config, tmp_path, change, message):
    change(config)
    with pytest.raises(ValueError, match=message):
        evaluate(config, tmp_path / "run")
    assert asked() == []


def test_rows_of_another_text_temperature_or_system_are_refused(config, tmp_path):
    config.systems = ({"name": "sampled", "kind": "tests.experiments.fabricated_models:sampled"},)
    evaluate(config, tmp_path / "run")
    config.eval.temperature = 0.25
    with pytest.raises(
        ValueError,
        match=r'sampled-seed0.jsonl:1: field "temperature": '
        r"1.0, but 0.25 is asked for now",
    ):
        evaluate(config, tmp_path / "run")
    config.eval.temperature = 1.0
    changed = records()
    changed[4] = Record("r4", (Turn("user", "another question"),), ("x", "y"), (1.0, 0.0))
    write_records(tmp_path / "mixed.jsonl", changed)
    with pytest.raises(ValueError, match=r'greedy-seed0.jsonl:5: field "record"'):
        evaluate(config, tmp_path / "run")
    write_records(tmp_path / "mixed.jsonl", records())
    config.systems = ({"name": "sampled", "kind": "tests.experiments.fabricated_models:perfect"},)
    with pytest.raises(
        ValueError, match="judgments of another system of this name; it differs in kind"
    ):
        evaluate(config, tmp_path / "run")


def test_a_model_that_breaks_its_word_is_named(config, tmp_path):
    with pytest.raises(
        ValueError, match="sampled on mixed, greedy: record 'r9', sample 0: not asked for"
    ):
        _judge_with([{"id": "r9", "sample": 0, "scores": [1], "failure": None}], tmp_path)
    with pytest.raises(ValueError, match="expected 2 finite scores, got .1.0, nan."):
        _judge_with(
            [{"id": "r2", "sample": 0, "scores": [1.0, float("nan")], "failure": None}], tmp_path
        )
    with pytest.raises(ValueError, match="no judgment of 1 that were asked for, first record 'r2'"):
        _judge_with([], tmp_path)


def _judge_with(rows, folder):
    from grm_jax.evaluation.store import judge_missing

    judge_missing(
        folder / "rows.jsonl",
        lambda *_: iter([rows]),
        [((0,), [records()[2]])],
        0.0,
        False,
        "sampled on mixed, greedy",
        0,
    )


def test_report_escapes_every_text_and_caps_its_items_visibly(config, tmp_path):
    evaluate(config, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        "owned'</script>" not in page
        and "<img src=x" not in page
        and "<b>r2</b>" not in page
        and ("5 of 8 items are in this page") in page
    )
    (data,) = re.findall(
        r'<script type="application/json" '
        r'id="examples-data">(.*?)</script>',
        page,
        re.DOTALL,
    )
    items = json.loads(data)
    assert len(items) == 5 and any(
        item["systems"]["pairwise"].get("not_applicable") == 1 for item in items
    ) == any(item["id"] == "r0" for item in items)
    assert page.count("<svg") == 6 and "http://" not in re.sub(
        r"http://www\.w3\.org/\S+", "", page.split("Resolved config")[0]
    )


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_address_sets_the_filters_and_nothing_of_the_items_runs(config, tmp_path):
    config.eval.report_items = 8
    evaluate(config, tmp_path / "run")

    def text_of(state):
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--virtual-time-budget=3000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            f"{(tmp_path / 'run' / 'report.html').as_uri()}#{state}",
        ]
        dom = subprocess.run(
            command, capture_output=True, text=True, timeout=240, check=True
        ).stdout
        assert "<title>run: how well reward models judge</title>" in dom, (
            "a script of the data did not run"
        )
        return html.unescape(
            re.sub(r"<[^>]*>", "|", dom.split('class="filters"')[1].split("<noscript>")[0])
        )

    hostile = text_of("benchmark=mixed&system=perfect&text=question+2")
    assert (
        "|1 item|" in hostile and f"question 2{HOSTILE}" in hostile and "summed scores" in hostile
    )
    absent = text_of("system=pairwise&item=r0")
    assert "Not applicable: pairwise does not judge items of 1 response(s)." in absent
    failed = text_of("system=failing&item=r3")
    assert "not parsed: no box" in failed and "greedy, order reversed" in failed


def test_a_system_that_never_answered_has_no_figure_and_ends_its_script_with_a_status(
    config, tmp_path, monkeypatch
):
    """Of whatever script: all that judge end in it."""
    silent = judged_silently(config, tmp_path, monkeypatch)
    rows = [row for row in silent["rows"] if row["system"] == "perfect"]
    assert rows and all(row["value"] is None and row["coverage"] == 0 for row in rows)
    with pytest.raises(SystemExit, match="^not one judgment, so no figure: perfect on mixed"):
        evaluation.exit_without_judgments(silent)
    evaluation.exit_without_judgments({})  # of a process that writes nothing
    for script in ("evaluate", "spct_rl", "reward_model"):
        source = pathlib.Path(evaluation.__file__).parents[1].joinpath(f"{script}.py").read_text()
        assert source.count("evaluation.exit_without_judgments(results)") == 1, script


def judged_silently(config, folder, monkeypatch):
    """The results of a comparison in which one system fails on every record."""
    whole = fabricated_models._model

    def mute(spec, seed, scores, *args, **kwargs):
        model = whole(spec, seed, scores, *args, **kwargs)

        def judge(*asked, **how):
            for block in model.judge(*asked, **how):
                yield [judgment | {"scores": None, "failure": "no_box"} for judgment in block]

        return model._replace(judge=judge) if spec["name"] == "perfect" else model

    monkeypatch.setattr(fabricated_models, "_model", mute)
    config.systems = config.systems[:2]
    return evaluate(config, folder / "silent")


def test_passes_ask_a_model_without_sampling_once_whatever_k():
    def kinds(sampled, **settings):
        ways = judging.passes(EvalConfig(ks=(1, 2), temperature=1.0, **settings), sampled)
        return [(way.kind, way.samples) for way in ways]

    assert kinds(False, swap=True) == [("greedy", (0,)), ("swapped", (0,))]
    assert kinds(False, greedy=False) == [("greedy", (0,))]
    assert kinds(True, greedy=False) == [("sampled", (0, 1))]


def test_what_would_be_judged_and_cost_is_said_before_anything_is_asked(config, tmp_path, capsys):
    remote = {"name": "api", "kind": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    config.systems = (
        {"name": "length", "kind": "length"},
        remote | {"max_tokens": 100, "price_per_million": (1.0, 1e4), "retries": 0},
        remote | {"name": "free", "retries": 0},
    )
    found = run_config.finish(config)
    settings = run_config.section(found, "eval")
    benchmarks = evaluation.benchmarks(found, tmp_path / "records")
    systems = evaluation.systems(found)
    planned = evaluation.plan(systems, benchmarks, tmp_path / "run", settings)
    capsys.readouterr()
    evaluation.say_plan(planned, everything=True)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "length on mixed, greedy: 8 to judge, 0 on file"
    assert any(
        line.startswith("api on mixed, sampled: 16 to judge, 0 on file; 16 r") for line in said
    )
    # greedy 8, swapped 7, sampled 8 x 2: a hundred tokens each at 0.01
    (total,) = [line for line in said if line.startswith("api in all: 31 requests, about ")]
    assert "at most 3,100 of replies, at most 31.0" in total
    assert "price_per_million of the system would say what they cost" in said[-1]
    evaluation.say_plan(planned, everything=False)
    assert not any(line.startswith("length") for line in capsys.readouterr().out.splitlines())
    with pytest.raises(RemoteError, match="16 requests in a row failed at http://127.0.0.1:1/v1"):
        evaluate(config, tmp_path / "run")
    assert "api in all: 31 requests" in capsys.readouterr().out


def test_a_key_that_is_not_there_is_said_before_other_systems_judge(config, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    api = {"name": "api", "kind": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    config.systems = (*config.systems, api | {"api_key_env": "NO_SUCH_KEY"})
    with pytest.raises(ValueError, match="^system 'api': the environment variable NO_SUCH_KEY"):
        evaluate(config, tmp_path)
    assert not asked() and not (tmp_path / "judgments").exists()
    for one in evaluation.systems(config):  # of others nothing is needed
        assert one.ready is None or one.name == "api"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("data/RMB_dataset", r"benchmarks\[0\]: expected a description such as .*got 'data/RMB"),
        ({"kind": "world", "items": 3}, r"benchmarks\[0\]: expected the fields .* without 'split'"),
        ({"kind": "world", "split": "test", "items": 3, "n": 1}, "expected the fields .* got 'n'"),
        ({"path": "x"}, 'field "kind": expected one of'),
    ],
)
def test_a_wrong_description_of_a_benchmark_is_named(config, tmp_path, spec, message):
    config.benchmarks = (spec,)
    with pytest.raises(ValueError, match=message):
        evaluation.benchmarks(config, tmp_path)


def test_a_first_look_at_the_world_is_part_of_the_whole(config, tmp_path):
    config.benchmarks = ({"kind": "world", "split": "test", "items": 30},)
    (whole,) = evaluation.benchmarks(config, tmp_path / "whole")
    config.benchmarks = ({"kind": "world", "split": "test", "items": 30, "limit": 4},)
    (look,) = evaluation.benchmarks(config, tmp_path / "look")
    assert len(look.records) == 4 and all(record in whole.records for record in look.records)


def test_records_with_a_rubric_are_refused_where_a_system_knows_none(config, tmp_path):
    config.benchmarks = ({"kind": "world", "split": "rubric", "items": 3},)
    spec = {"name": "grm", "kind": "pointwise_grm", "path": "tiny_base"}
    config.systems = (spec,)
    with pytest.raises(ValueError, match="system 'grm', benchmark 'rubric', record 'world/rubric"):
        evaluate(config, tmp_path / "run")
    blind = describe(spec | {"rubric": False}, evaluation.asking_of(config))
    evaluation.refuse_unseen([blind], evaluation.benchmarks(config, tmp_path / "records"))
    told = describe(spec | {"templates": {"rubric": "tiny_rubric"}}, evaluation.asking_of(config))
    evaluation.refuse_unseen([told], evaluation.benchmarks(config, tmp_path / "records"))
    assert told.identity != blind.identity
    (asked,) = make_records("rubric", 1)
    assert told.refuses(asked) is None and "sees none" in blind.refuses(asked)


def test_a_rubric_that_is_not_seen_leaves_principles_written_once(config):
    spec = {"name": "grm", "kind": "pointwise_grm", "path": "tiny", "rubric": False}
    once = spec | {"principles": "once"}
    (asked,) = make_records("rubric", 1)
    texts = []
    for told in (once, once, spec):
        record = dataclasses.replace(asked, rubric=()) if len(texts) == 1 else asked
        model = describe(told, evaluation.asking_of(config)).load(seed=3)
        rows = [row for block in model.judge([record], (0, 1), 1.0) for row in block]
        texts.append([row["text"] for row in rows])
    assert texts[0] == texts[1] != texts[2]


def test_records_with_principles_are_refused_where_a_system_cannot_go_on(config, tmp_path):
    (plain,) = make_records("test", 1)
    given = dataclasses.replace(plain, principles="Specific Criteria: order 10")
    write_records(tmp_path / "given.jsonl", [given])
    config.benchmarks = ({"kind": "records", "path": str(tmp_path / "given.jsonl"), "name": "x"},)
    spec = {"name": "judge", "kind": "llm_judge", "path": "tiny_base"}
    config.systems = ({"name": "random", "kind": "random"}, spec)
    with pytest.raises(
        ValueError, match="'judge', benchmark 'x'.*field \"principles\": this model"
    ):
        evaluate(config, tmp_path / "run")

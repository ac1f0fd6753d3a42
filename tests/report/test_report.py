"""The report page: what it shows, what it says where something is absent, and that no text from
outside becomes markup.
"""

import base64
import hashlib
import html
import json
import random
import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest

from grm_jax.benchmarks import load_benchmark
from grm_jax.evaluation.comparisons import compare_systems
from grm_jax.report import examples, plots, report, training
from grm_jax.report.headline import coverage_text, first_looks, headline, markdown
from tests.evaluation import fabricated

VOID = {"meta", "br", "input", "img", "link", "hr"}
SECTIONS = (
    "results",
    "benchmarks",
    "reading",
    "scaling",
    "meta-rm",
    "capabilities",
    "differences",
    "domains",
    "bias",
    "calibration",
    "training",
    "run",
    "examples",
)
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)


class Page(HTMLParser):
    """Collects elements and checks that they nest; texts of scripts by their id."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.scripts, self.words = [], [], [], []
        self.feed(text)
        assert self.open == [], f"unclosed elements {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append([dict(attributes), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        elif "svg" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, *fabricated.evaluation(folder, items=7, samples=4)


@pytest.fixture(scope="module")
def results(evaluation):
    _, benchmarks, judged = evaluation
    return fabricated.results_of(
        benchmarks, judged, (1, 2, 4), note="Random <weights>: chance.", draws=100
    )


@pytest.fixture(scope="module")
def page(evaluation, results):
    folder, benchmarks, judged = evaluation
    fabricated.write_jsonl(folder / "metrics.jsonl", fabricated.metrics())
    path = report.write_report(folder, results, benchmarks, judged, 7)
    assert path == folder / "report.html" and not (folder / "report.html.partial").exists()
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_self_contained_and_complete(page):
    parsed = Page(page)
    assert "Not there" not in page, "every part had data"
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (
                f"<{tag} {name}={attributes.get(name)!r}> reaches outside the file"
            )
    for section in SECTIONS:
        assert ("section", {"id": section}) in parsed.elements
        assert ("a", {"href": f"#{section}"}) in parsed.elements
    drawn = [attributes["aria-label"] for tag, attributes in parsed.elements if tag == "svg"]
    assert len(drawn) == 6 + 3 + 1, "of figures, of the stages, and more metrics of RL"
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "ids of the figures must not collide in one page"
    assert "<metadata>" not in page and "@import" not in page and "url(http" not in page


def test_a_reader_of_the_page_alone_finds_what_its_words_mean(page, results):
    text = Page(page).text
    for benchmark in results["benchmarks"]:
        assert benchmark["protocol"] in text
    for word in ("vote @k", "k_meta", "credit, strict", "coverage", "chance", "95 % interval") + (
        "multiple comparisons",
    ):
        assert f" {word} " in text, f"{word} is not explained"
    told = [
        row for row in results["paired"] if row["ci_low"] > 0 or row["ci_high"] < 0
    ]  # all of these systems sample
    words = f"makes {len(results['paired'])} comparisons, and {len(told)} of them leave out 0"
    assert words in text


def test_note_config_and_domain_names_are_text_not_markup(page):
    assert "Random &lt;weights&gt;: chance." in page
    assert "&lt;b&gt;not markup&lt;/b&gt;" in page and "<b>not markup</b>" not in page
    assert "cost in $ and $ (1)" in page, "dollars in a name are not mathematics"


def test_examples_survive_in_json_that_cannot_leave_its_script_element(page):
    parsed = Page(page)
    (data,) = [
        text for attributes, text in parsed.scripts if attributes.get("id") == "examples-data"
    ]
    assert "<" not in data
    items = json.loads(data)
    assert len(items) == 4 * 7
    hostile = next(item for item in items if item["id"] == "test-0000")
    assert hostile["conversation"] == [{"role": "user", "content": fabricated.HOSTILE}]
    assert set(hostile["systems"]) == {"base", "rft", "grm"}
    assert len(hostile["systems"]["grm"]["samples"]) == 5
    code = [text for attributes, text in parsed.scripts if "type" not in attributes]
    assert len(code) == 1 and "innerHTML" not in code[0]
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page), (
        "the page allows its own script and no other"
    )


def test_headline_figures_are_those_of_results_json(page, results):
    text = Page(page).text
    for row in results["rows"]:
        if row["k"] in (1, 4) and row["aggregation"] != "meta":
            assert (
                f"{100 * row['value']:.1f} {100 * row['ci_low']:.1f}–{100 * row['ci_high']:.1f} "
            ) in text
    for benchmark in results["benchmarks"]:
        assert f" {100 * benchmark['chance']:.1f} " in text


def test_training_funnel_and_times_are_sections_of_the_page(page):
    text = Page(page).text
    assert "unhinted, 360 sampled" in text and "hinted too easy 10 8.3 %" in text
    assert "Online RL, to step 59" in text and "Meta RM, to step 49" in text
    assert "eval_grm_test 2.3 min 23.2 %" in text


def test_figures_are_the_same_bytes_again():
    curves = {"loss": (np.arange(3), np.array([3.0, 2.0, 1.5]))}
    first, again, other = (
        plots.training_curves(curves, {"Loss": ["loss"]}, name) for name in ("a", "a", "b")
    )
    assert first == again
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, other)]
    assert ids[0] and not ids[0] & ids[1], "two figures of one page share no id"


def chromium(tmp_path, address, *flags):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", "--virtual-time-budget=4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@needs_chromium
def test_browser_draws_the_examples_and_runs_nothing_of_theirs(evaluation, page, tmp_path):
    dom = chromium(tmp_path, (evaluation[0] / "report.html").as_uri())
    assert "<title>tiny: how well reward models judge</title>" in dom
    assert "owned'</script>" not in dom.split('id="examples-data"')[0]
    shown = dom.split('class="detail"')[1]
    assert "&lt;/script&gt;&lt;script&gt;document.title='owned'" in shown and "{{ 7*7 }}" in shown
    assert dom.count("<li") > 28 and "28 items" in re.sub(r"<[^>]*>", "", dom)


@needs_chromium
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_does_not_scroll_sideways(evaluation, page, tmp_path, width):
    """Measured in a frame of that width, with everything that folds unfolded."""
    if width == 400:  # names that no space breaks
        (long := tmp_path / "report.html").write_text(page.replace("rft", "Rft-Instruct/" * 6))
    else:
        long = evaluation[0] / "report.html"
    address = long.as_uri()
    (tmp_path / "frame.html").write_text(
        f'<iframe src="{address}" style="border:0;width:{width}px;height:900px"></iframe>'
        "<output>?</output><script>document.querySelector('iframe').onload = (event) => {"
        "const inside = event.target.contentDocument;"
        "inside.querySelectorAll('details').forEach((fold) => { fold.open = true; });"
        "const root = inside.documentElement;"
        "document.querySelector('output').textContent = root.scrollWidth - root.clientWidth; };"
        "</script>"
    )
    dom = chromium(tmp_path, (tmp_path / "frame.html").as_uri(), "--allow-file-access-from-files")
    assert "<output>0</output>" in dom


def test_what_is_absent_is_said(tmp_path):
    """One system with votes alone, no training, no times: parts say that they are not there."""
    benchmarks, judged = fabricated.evaluation(
        tmp_path, ("test",), ("base",), items=4, samples=2, logits=False
    )
    results = compare_systems(benchmarks, judged, (1, 2), draws=100, seed=0)
    text = Page(report.render("alone", results, benchmarks, judged, 4, {})).text
    for phrase in (
        "Not there: sampled judgments on records with gold that a Meta RM has scored",
        "Not there: two systems that judge the same items",
        "Nothing was trained in this folder",
    ):
        assert phrase in text
    assert "mean over benchmarks" not in text.split("What is judged")[0], "there is one"


def without_scores(judged):
    """The same system, had no judgment of it given scores."""
    failed = {"scores": None, "failure": "request_failed:429", "meta_logit": None}
    return {
        name: of._replace(
            name="silent",
            rows={
                kind: [{at: j | failed for at, j in rows.items()} for rows in of_seed]
                for kind, of_seed in of.rows.items()
            },
        )
        for name, of in judged.items()
    }


def without_gold(benchmarks):
    return [
        b._replace(
            metric="none",
            summarize=lambda values: {},
            records=tuple(
                type(r)(r.id, r.conversation, r.responses, None, r.domain) for r in b.records
            ),
        )
        for b in benchmarks
    ]


def test_a_judge_that_never_answered_is_a_word_and_not_a_figure(evaluation):
    _, benchmarks, judged = evaluation
    judged = {"grm": judged["grm"], "silent": without_scores(judged["base"])}
    results = compare_systems(benchmarks, judged, (1, 4), draws=100, seed=0)
    line = next(line for line in headline(results) if line["system"] == "silent")
    assert {row["value"] for row in line["cells"].values()} == {None} and line["best"] == set()
    (row,) = [t for t in markdown(results).splitlines() if t.startswith("| silent | greedy")]
    assert row == "| silent | greedy |" + " not judged |" * 5 + " 100.00 |"
    text = Page(report.render("silent", results, benchmarks, judged, 2, {})).text
    places = [
        rf"{name} \([a-z_]+(?::\w+)? [\d,]+[^)]*\)" for name in ("test", "hard", "wide", "single")
    ]
    said = rf"No judgment of silent on {', '.join(places)} gave scores: it has no figure"
    assert re.search(said, text), text[text.find("No judgment of silent") :][:300]
    assert "not judged" in text and "request failed:429" in text
    json.dumps(results, allow_nan=False)


def test_records_without_gold_have_a_page_with_judgments_and_no_figures(evaluation):
    _, benchmarks, judged = evaluation
    benchmarks = without_gold(benchmarks)
    results = compare_systems(benchmarks, judged, (1, 4), draws=100, seed=0)
    text = report.render("no gold", results, benchmarks, judged, 3, {})
    words = Page(text).text
    assert "no gold, judged 7 of 7" in words and "no gold, so no chance" in words
    assert "| no gold, judged 7 of 7 |" in markdown(results)
    items = json.loads(re.search(r'id="examples-data">(.*?)</script>', text)[1])
    assert len(items) == 12 and all(item["rewards"] is None for item in items)
    assert items[0]["systems"]["grm"]["vote"]["credit"] is None
    assert items[0]["systems"]["grm"]["vote"]["totals"] is not None


def shown(results, benchmarks, judged, **about):
    return Page(report.render("r", results | about, benchmarks, judged, 2, {})).text


def fabricate(folder, rows, change=lambda judgment, record: judgment, samples=4):
    """(results, benchmarks, judged) of one system on these records, as `change` alters it."""
    fabricated.write_jsonl(folder / "records.jsonl", rows)
    spec = {"kind": "records", "name": "test", "path": str(folder / "records.jsonl")}
    benchmarks, of_kind = [load_benchmark(spec)], {"greedy": [], "sampled": []}
    for record in rows:
        rng = random.Random(record["id"])
        for kind, many in (("greedy", 1), ("sampled", samples)):
            for s in range(many):
                made = fabricated.judgment(record, "grm", "test", s, float(kind != "greedy"), rng)
                of_kind[kind].append(change(made, record))
    judged = {"grm": {"test": fabricated.on_file(folder, "grm", of_kind)}}
    ks = (1, samples) if samples > 1 else (1,)
    return compare_systems(benchmarks, judged, ks, draws=100, seed=0), benchmarks, judged


def all_right(judgment, record):
    return judgment | {"scores": [int(9 * r) + 1 for r in record["rewards"]], "failure": None}


def test_items_of_one_prompt_have_no_interval_and_no_difference(tmp_path):
    """Drawn anew they would be the same prompt: an interval without width says what is not so."""
    same = [{"role": "user", "content": "rank them"}]
    rows = [row | {"conversation": same} for row in fabricated.records("test", 9)]
    results, *where = fabricate(tmp_path, rows)
    assert {(row["stderr"], row["ci_low"], row["ci_high"]) for row in results["rows"]} == {
        (None, None, None)
    }
    assert results["paired"] == [] and all(row["value"] is not None for row in results["rows"])
    assert {row["ci_low"] for row in results["domains"] + results["figures"]} == {None}
    assert "[no interval]" in markdown(results) and "**" not in markdown(results)
    assert " no interval " in shown(results, *where)


@pytest.mark.parametrize("items, bold", [(5, False), (6, True)])
def test_all_right_on_a_few_items_is_not_above_chance(tmp_path, items, bold):
    """By the exact bound, 0.025 ** (1 / items), against a chance of 1/2: no resample is wrong."""
    rows = [row for row in fabricated.records("test", 20) if len(row["responses"]) == 2][:items]
    results, *_ = fabricate(tmp_path, rows, all_right)
    half = [
        row | {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5, "chance": 0.49}
        for row in results["rows"]
    ]
    assert "**" not in markdown(results | {"rows": half}), "half right on all has no width either"
    assert (
        results["rows"][0]["ci_low"] == pytest.approx(1)
        and ("**100.0**" in markdown(results)) == bold
    )


def test_a_difference_of_low_coverage_is_marked_and_shows_nothing(tmp_path):
    def fails(judgment, record):
        lost = {"scores": None, "failure": "request_failed:http_429", "meta_logit": None}
        return judgment | (lost if int(record["id"][-4:]) % 10 else {})

    results, *where = fabricate(tmp_path, fabricated.records("test", 100), fails, samples=8)
    assert results["capabilities"][0]["scalable"], "by its interval alone"
    text = shown(results, *where)
    assert "not shown here ⚠ low coverage" in text and "⚠ coverage 10 %" in text
    assert "| not shown here ⚠ low coverage |" in markdown(results)
    page = report.render("r", results, *where, 2, {})
    assert 'class="up"' not in page and 'class="down"' not in page
    assert "request failed: no answer of the server" in text, "the reason is in words"
    assert 'class="up"' in report.render("r", results | {"min_coverage": 0.0}, *where, 2, {})


def test_one_system_alone_is_told_of_multiple_comparisons(tmp_path):
    results, *where = fabricate(tmp_path, fabricated.records("test", 9))
    text = shown(results, *where)
    assert f"makes {len(results['paired'])} comparisons" in text and "one in 20" in text
    assert "The highest of 4 lines is in part luck" in text


def test_names_stay_text_in_markdown(tmp_path):
    results, *_ = fabricate(tmp_path, fabricated.records("test", 4))
    name = "<script>a|b</script>\n*x*"
    text = markdown(json.loads(json.dumps(results).replace('"grm"', json.dumps(name))))
    assert "| &lt;script>a\\|b&lt;/script> \\*x\\* | greedy |" in text and "<script" not in text


def test_systems_and_records_are_described(tmp_path):
    results, *where = fabricate(tmp_path, fabricated.records("test", 4))
    text = shown(results, *where)
    assert "grm : the model after rejective fine-tuning and RL." in text
    assert "Records of records.jsonl." in text
    config = {"systems": [{"name": "grm", "kind": "remote", "model": "some/model"}]}
    assert "grm : remote, some/model." in shown(results, *where, config=config)


def test_nothing_is_plotted_where_there_is_nothing_to_plot(tmp_path):
    results, *where = fabricate(tmp_path, fabricated.records("test", 1)[:1], all_right, samples=1)
    text = shown(results, *where)
    assert "Not there: votes of two or more judgments" in text and "1 item" in text
    assert "votes of up to" not in text and "from k = 1 to k = 1" not in text
    lost = {"scores": None, "failure": "only_reasoning", "meta_logit": None}
    results, *where = fabricate(tmp_path, fabricated.records("test", 4), lambda j, _: j | lost)
    text = shown(results, *where)
    assert "Not there: votes of two or more judgments" in text
    assert "only reasoning: a box in the reasoning" in text.lower()


def test_what_curves_are_and_where_they_have_gaps_is_said(tmp_path):
    rows = [
        {"stage": "rl", "step": step, "loss": None if step in (1, 2) else 0.1, "kl": 0.0}
        for step in range(4)
    ]
    fabricated.write_jsonl(tmp_path / "metrics.jsonl", [*rows, rows[2] | {"loss": 0.3}])
    path = tmp_path / "metrics.jsonl"
    curves, gaps = training.read_curves(path), training.read_gaps(path)
    assert gaps == {"rl": {"loss": 1}}, "step 2 was written again"
    (section,) = training.sections(curves, gaps)
    assert section["gaps"] == "loss at 1 step" and training.read_gaps(tmp_path / "none") == {}
    assert [name for name, _ in training.words(curves)] == ["loss", "kl"]
    (empty,) = training.sections({"rl": {}}, {"rl": {"loss": 4}})
    assert (empty["named"], empty["gaps"]) == (None, "loss at 4 steps")
    lone = plots.training_curves({"loss": (np.array([3]), np.array([2.0]))}, {"L": ["loss"]}, "l")
    assert "3" in tick_labels(lone) and not any("." in text for text in tick_labels(lone)[:1])


def test_names_in_any_script_are_drawn_without_a_warning(results):
    rows = [row | {"system": "漢字 שלום"} for row in results["rows"] if row["k_meta"] is None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.curves(rows, ["test"], ["漢字 שלום"], "k", "t", "k")
    assert "漢字" in svg


def test_many_curves_have_no_bands(results):
    rows = [row for row in results["rows"] if row["k_meta"] is None]
    many = [row | {"system": f"{row['system']}{i}"} for row in rows for i in range(4)]
    few, full = (
        plots.curves(of, ["test"], sorted({row["system"] for row in of}), "k", "t", "k")
        for of in (rows, many)
    )
    assert "FillBetween" in few and "FillBetween" not in full


@pytest.fixture
def three_systems(evaluation):
    """A good one, a better one that fails on one item of seven, and a random judge with luck."""
    _, benchmarks, judged = evaluation
    test = [b for b in benchmarks if b.name == "test"]
    greedy = judged["grm"]["test"].rows["greedy"][0]

    def system(name, first):
        rows = {at: j | {"scores": j["rewards"], "failure": None} for at, j in greedy.items()}
        rows["test-0000", 0] |= first
        of = judged["grm"]["test"]._replace(name=name, sampled=False, rows={"greedy": [rows]})
        return {"test": of}

    wrong = [-reward for reward in greedy["test-0000", 0]["rewards"]]
    of = {
        "good": system("good", {"scores": wrong}),
        "fails": system("fails", {"scores": None, "failure": "no_box"}),
        "random": system("random", {}),
    }
    config = {"systems": [{"name": "random", "kind": "random"}, {"name": "good", "kind": "length"}]}
    results = {"config": config} | compare_systems(test, of, (1,), draws=200, seed=0)
    return results, test, of


def test_bold_is_the_best_figure_that_can_be_believed(three_systems):
    results, benchmarks, judged = three_systems
    values = {
        row["system"]: row["value"] for row in results["rows"] if not row["flat_by_construction"]
    }
    assert values["random"] == 1 > values["fails"] > values["good"]
    best = {line["system"]: line["best"] for line in headline(results)}
    assert best == {"good": {"test"}, "fails": set(), "random": set()}, (
        "a random judge is never bold, nor is a figure of low coverage"
    )
    table = markdown(results)
    assert re.search(r"\| good \| one judgment \| \*\*\d", table)
    assert re.search(r"\| fails \| one judgment \| \d\d\.\d \[.*\] \(coverage 85.7 % ⚠\)", table)
    assert "| chance | |" in table
    text = Page(report.render("r", results, benchmarks, judged, 2, {})).text
    assert "⚠ coverage 85.7 %" in text
    assert headline(results | {"min_coverage": 0.5})[1]["best"] == {"test"}


def test_a_figure_at_chance_is_not_bold(three_systems):
    results, *_ = three_systems
    rows = [row | {"ci_low": 0.1} for row in results["rows"]]
    assert [line["best"] for line in headline(results | {"rows": rows})] == [set()] * 3


def test_coverage_that_is_not_whole_never_reads_100():
    assert coverage_text({"coverage": 0.9999}) == "99.9 %"
    assert (
        coverage_text({"coverage": 1.0}) == "100 %" and coverage_text({"coverage": None}) == "n/a"
    )


def test_metrics_keep_the_later_row_of_a_step_written_twice(tmp_path):
    rows = [
        {"stage": "rl", "step": step, "time_s": 0.0, "loss": loss}
        for step, loss in ((0, 5.0), (1, 4.0), (1, 3.0), (2, 2.0), (3, None))
    ]
    fabricated.write_jsonl(tmp_path / "metrics.jsonl", rows)
    steps, values = training.read_curves(tmp_path / "metrics.jsonl")["rl"]["loss"]
    assert list(steps) == [0, 1, 2] and list(values) == [5, 3, 2], "null is no number"
    assert training.read_curves(tmp_path / "absent.jsonl") == {}
    (tmp_path / "metrics.jsonl").write_text('{"stage": "rl"\n')
    with pytest.raises(ValueError, match="metrics.jsonl:1: not UTF-8 JSON"):
        training.read_curves(tmp_path / "metrics.jsonl")


def test_a_reason_that_occurred_at_one_step_is_0_at_the_others(tmp_path):
    rows = [
        {
            "stage": "rl",
            "step": 0,
            "parse_failure_rate": 0.0,
            "score_share/3": 1.0,
            "tie_rate": 0.5,
        },
        {"stage": "rl", "step": 1, "parse_failure_rate": 0.1, "parse_failure/no_box": 0.1},
        {"stage": "rl", "step": 2, "parse_failure_rate": 0.0, "score_share/4": 1.0},
        {"stage": "rl", "step": 3, "loss": 1.0},
    ]
    fabricated.write_jsonl(tmp_path / "metrics.jsonl", rows)
    curves = training.read_curves(tmp_path / "metrics.jsonl")["rl"]
    assert list(curves["parse_failure/no_box"][0]) == [0, 1, 2], "step 3 counted no failures"
    assert list(curves["parse_failure/no_box"][1]) == [0, 0.1, 0]
    assert [list(axis) for axis in curves["score_share/3"]] == [[0, 2], [1, 0]], (
        "a step without scores has no share of them"
    )
    assert list(curves["tie_rate"][0]) == [0], "what a step did not measure is not 0"


def test_examples_are_bounded_and_half_are_ones_on_which_systems_differ(evaluation, monkeypatch):
    _, benchmarks, judged = evaluation
    shown = examples.examples(benchmarks, judged, 4, 2)
    assert len(shown["items"]) == 8 and shown["total"] == 28
    for name in ("test", "hard", "wide", "single"):
        credits = [
            {of["vote"]["credit"] for of in item["systems"].values()}
            for item in shown["items"]
            if item["benchmark"] == name
        ]
        assert any(len(of_item) > 1 for of_item in credits)
    monkeypatch.setattr(examples, "CHARACTERS", 20_000)
    assert 0 < len(examples.examples(benchmarks, judged, 4, 7)["items"]) < 8


def test_moving_mean_keeps_ends_and_level():
    values = np.arange(40.0)
    smooth = plots._smooth(values)
    np.testing.assert_allclose(smooth[2:-2], values[2:-2])
    assert smooth[0] == 1.0 and len(smooth) == 40


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (20, 900, [20, 50, 100, 200, 500]),
        (3, 40_000, [10, 100, 1000, 10_000]),
        (22, 25, [22, 23, 24, 25]),
        (30, 30, [30]),
        (1, 1e12, [1, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round_few_and_within_it(low, high, expected):
    ticks = plots.log_ticks(low, high)
    assert [t for t in ticks if low / 1.05 <= t <= high * 1.05] == pytest.approx(expected)


def tick_labels(svg):
    """Texts of a figure, tick labels among them."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_axis_labels_are_plain_and_tell_their_ticks_apart(results):
    rows = [row for row in results["rows"] if row["aggregation"] == "vote"]
    svg = plots.curves(rows, ["test"], ["base", "rft"], "tokens_per_item", "t", "tokens")
    assert "mathdefault" not in svg and "$" not in svg and "50" in tick_labels(svg)
    ratio = {"ratio_max": (np.arange(9), 1 + 1e-6 * np.arange(9.0))}
    svg = plots.training_curves(ratio, {"Ratio": ["ratio_max"]}, "ratio")
    labels = [text for text in tick_labels(svg) if text.startswith("1.")]
    assert len(labels) == len(set(labels)) >= 3
    small = {"lr": (np.arange(9), 3e-9 * np.arange(9.0))}
    svg = plots.training_curves(small, {"Rate": ["lr"]}, "rate")
    assert "mathdefault" not in svg and "1e−8" in tick_labels(svg)


def test_a_first_look_is_said_in_the_table():
    counts = {"rows read": 99, "items": 40, "items left out by limit": 2002}
    looks = first_looks([{"name": "rmb", "items": 40, "counts": counts}, {"name": "whole"}])
    assert looks == ["", "A first look, not the whole benchmark: rmb 40 of 2,042 items."]
    assert first_looks([{"name": "x", "items": 3, "counts": {}}]) == []
    small = {"name": "rmb", "items": 6, "counts": counts, "metric": "accuracy", "chance": None}
    assert "(too few for its figure: a part of it has no item)" in first_looks([small])[1]
    assert "too few" not in first_looks([small | {"metric": "none"}])[1]

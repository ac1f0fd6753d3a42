"""The report page: what it shows, what it says where data are absent, and that no text from outside
becomes markup.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from grm_jax.evaluation import scaling
from grm_jax.report import plots, report, report_data
from tests.evaluation import fabricated

VOID = {"meta", "br", "input", "img", "link", "hr"}


class Page(HTMLParser):
    """Collects elements and checks that they nest; texts of scripts by their id."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.scripts = [], [], []
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fabricated.workdir(
        tmp_path_factory.mktemp("runs") / "tiny",
        items=7,
        samples=4,
        ks=(1, 2, 4),
        note="Random <weights>: chance.",
    )


@pytest.fixture(scope="module")
def page(folder):
    path = report.write_report(folder)
    assert path == folder / "report.html" and not (folder / "report.html.partial").exists()
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_self_contained_and_complete(page):
    parsed = Page(page)
    assert "not run" not in page.lower(), "every part had data"
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (
                f"<{tag} {name}={attributes.get(name)!r}> reaches outside the file"
            )
    for section in (
        "results",
        "scaling",
        "meta-rm",
        "training",
        "domains",
        "scores",
        "run",
        "examples",
    ):
        assert ("section", {"id": section}) in parsed.elements and (
            "a",
            {"href": f"#{section}"},
        ) in parsed.elements
    assert sum(tag == "svg" for tag, _ in parsed.elements) == 8
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "ids of the figures must not collide in one page"
    assert "<metadata>" not in page and "@import" not in page and "url(http" not in page


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
    assert (
        set(hostile["systems"]) == {"base", "rft", "grm"}
        and len(hostile["systems"]["grm"]["samples"]) == 5
    )
    code = [text for attributes, text in parsed.scripts if "type" not in attributes]
    assert len(code) == 1 and "innerHTML" not in code[0]
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page), (
        "the page allows its own script and no other"
    )


def test_headline_figures_are_those_of_results_json(folder, page):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    text = re.sub(r"\s+", " ", page)
    for row in rows:
        if row["k"] in (1, 4) and row["aggregation"] != "meta":
            assert (
                f">{100 * row['accuracy']:.1f}</span> <small>± {100 * row['stderr']:.1f}</small>"
            ) in text


def test_figures_are_the_same_bytes_again():
    curves = {"loss": (np.arange(3), np.array([3.0, 2.0, 1.5]))}
    first, again, other = (
        plots.training_curves(curves, {"Loss": ["loss"]}, name) for name in ("a", "a", "b")
    )
    assert first == again
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, other)]
    assert ids[0] and not ids[0] & ids[1], "two figures of one page share no id"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_browser_draws_the_examples_and_runs_nothing_of_theirs(folder, page, tmp_path):
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        (folder / "report.html").as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    assert ("<title>tiny: SPCT report</title>") in dom and "owned'</script>" not in dom.split(
        'id="examples-data"'
    )[0]
    shown = dom.split('class="detail"')[1]
    assert "&lt;/script&gt;&lt;script&gt;document.title='owned'" in shown and "{{ 7*7 }}" in shown
    assert dom.count("<li") > 28 and "28 items" in re.sub(r"<[^>]*>", "", dom)


def test_empty_folder_says_what_was_not_run(tmp_path):
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert text.count('class="missing"') >= 10 and "<svg" not in text
    for phrase in (
        "results.json has no result rows",
        "metrics.jsonl has no row of stage rl",
        "no row of stage rft_sample",
        "no evaluation judgments",
    ):
        assert phrase in text


def test_a_run_with_votes_only_shows_them_and_names_the_rest(tmp_path):
    rows = fabricated.eval_rows(("test",), ("base",), items=4, samples=2, logits=False)
    fabricated.write_jsonl(tmp_path / "judgments" / "eval.jsonl", rows)
    fabricated.write_jsonl(
        tmp_path / "metrics.jsonl",
        [
            {
                "stage": "sft",
                "step": 0,
                "time_s": 1.0,
                "oddity": 3.0,
                "comment": "text",
                "flag": float("nan"),
            }
        ],
    )
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "no sampled judgment carries a Meta RM logit" in text and "oddity" in text
    assert "<h3>sft" in text and "1 more metric</summary>" in text
    assert (
        "conversation"
        not in json.loads(re.search(r'id="examples-data">(.*?)</script>', text)[1])[0]
    ), "no records on file"


def test_broken_judgment_line_is_named(tmp_path):
    (tmp_path / "judgments").mkdir()
    (tmp_path / "judgments" / "eval.jsonl").write_text('{"stage": "rl"}\n{"stage": \n')
    with pytest.raises(ValueError, match=r"eval.jsonl:2: not a JSON object"):
        report.write_report(tmp_path)


def test_metrics_keep_the_later_row_of_a_step_written_twice(tmp_path):
    rows = [
        {"stage": "rl", "step": step, "time_s": 0.0, "loss": float(loss)}
        for step, loss in ((0, 5), (1, 4), (1, 3), (2, 2))
    ]
    fabricated.write_jsonl(tmp_path / "metrics.jsonl", rows)
    steps, values = report_data.read_metrics(tmp_path / "metrics.jsonl")["rl"]["loss"]
    assert list(steps) == [0, 1, 2] and list(values) == [5, 3, 2]


def test_score_histogram_counts_best_and_others():
    rows = [
        {"id": "a", "sample": s, "scores": scores, "rewards": [0, 1, 0], "tokens": 1}
        for s, scores in enumerate(([1, 9, 1], [2, 9, 1], None))
    ]
    rows += [
        {"id": "b", "sample": s, "scores": [10, 3], "rewards": [1, 0], "tokens": 1}
        for s in range(3)
    ]
    counts = report_data.score_histogram(scaling.make_pool(rows))
    assert counts["best"][9] == 2 and counts["best"][10] == 3 and counts["best"].sum() == 5
    assert list(counts["others"][:4]) == [0, 3, 1, 3] and counts["others"].sum() == 7
    single = [
        {"id": i, "sample": 0, "scores": [s], "rewards": [r], "tokens": 1}
        for i, s, r in (("a", 1, 1), ("b", 0, 1), ("c", 1, 0))
    ]
    counts = report_data.score_histogram(scaling.make_pool(single))
    assert list(counts["best"]) == [1, 1] and list(counts["others"]) == [0, 1]


def test_examples_are_bounded_and_mix_right_with_wrong(folder, monkeypatch):
    judgments = report_data.read_judgments(folder / "judgments")
    monkeypatch.setattr(report_data, "EXAMPLES_PER_SPLIT", 2)
    shown = report_data.examples(judgments, folder / "absent")
    assert len(shown["items"]) == 8 and shown["total"] == 28
    hard = [
        item["systems"]["grm"]["vote"]["credit"]
        for item in shown["items"]
        if item["split"] == "wide"
    ]
    assert min(hard) < 1 <= max(hard)
    monkeypatch.setattr(report_data, "EXAMPLE_CHARACTERS", 20_000)
    assert 0 < len(report_data.examples(judgments, folder / "absent")["items"]) < 8


def test_domain_accuracy_weighs_to_the_split_accuracy(folder):
    judgments = report_data.read_judgments(folder / "judgments")
    cells = report_data.by_domain(judgments.pools)["grm", "hard"].values()
    whole = scaling.estimate(
        judgments.pools["grm", "hard"]["sampled"], "grm", "hard", 4
    ).credit_I.mean()
    assert sum(cell["items"] * cell["vote"] for cell in cells) / sum(
        cell["items"] for cell in cells
    ) == pytest.approx(whole)


def test_moving_mean_keeps_ends_and_level():
    values = np.arange(40.0)
    smooth = plots._smooth(values)
    np.testing.assert_allclose(smooth[2:-2], values[2:-2])
    assert smooth[0] == 1.0 and len(smooth) == 40

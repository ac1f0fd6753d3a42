"""docs/first_hour/evaluator.md, followed from its own blocks, with an API that fails, stalls and
babbles.
"""

import collections
import json
import pathlib
import re
import time

import pytest

from grm_jax.benchmarks import load_benchmark
from grm_jax.data.world import make_records
from tests.first_hour import commands
from tests.reward_models.chat_server import Server, completion
from tests.reward_models.judge_cases import judgment

SILENT = "not one judgment, so no figure: tiny on "
KEY = "sk-hour-4f1d9c0aa7"


class Api:
    """A judge that tells the worth of responses, or is fair by their length.

    Of ten prompts one is refused by an overloaded server until it is `healthy`, one stalls once,
    one gets babble, and the first requests of all find a gateway that is down.
    """

    def __init__(self):
        self.healthy, self.seen = False, collections.Counter()
        self.server = Server(self.answer)

    def answer(self, request):
        prompt = request["messages"][-1]["content"]
        texts = re.findall(r"\[The Begin of Response \d+\]\s*(.*?)\s*\[The End of", prompt, re.S)
        kind = sum(map(len, texts)) % 10
        self.seen[prompt, request["seed"]] += 1
        if len(self.server.requests) <= 3:
            return 200, {"error": {"code": 502, "message": f"upstream of {KEY}"}}
        if kind == 0 and not self.healthy:
            return 503, {"error": {"message": "overloaded"}}
        if kind == 1 and self.seen[prompt, request["seed"]] == 1:
            time.sleep(3)
        if kind == 2:
            return 200, completion("I rather like all of them.")
        worth = [re.search(r"I am worth (\d+)", text) for text in texts]
        scores = [int(w[1]) if w else 1 + len(t) % 10 for t, w in zip(texts, worth, strict=True)]
        thought = [{"type": "thinking", "thinking": "\\boxed{1}"}]
        return 200, completion([*thought, {"type": "text", "text": judgment(scores)}])


def text(i: int, worth: int) -> str:
    return f"I am worth {worth}.{'!' * (i % 7)}"


def write_rmb(folder: pathlib.Path) -> None:
    """Files of RMB's published form: 4 sections, 12 pairs or lists in each."""
    uid = 0
    for part, kind in (("Pairwise_set", "pair"), ("BoN_set", "bon")):
        for category in ("Helpfulness/Chat/Casual Conversation", "Harmlessness/S1"):
            rows = []
            for _ in range(12):
                uid += 1
                row = {
                    f"{kind}_uid": str(uid),
                    "category_path": f"{part}/{category}",
                    "conversation_input": [{"role": "user", "content": f"Question {uid}?"}],
                }
                answers = [
                    {"llm_name": f"m{j}", "answer": text(uid + j, 9 - 2 * j)} for j in range(4)
                ]
                if kind == "pair":
                    row |= {"chosen": answers[0], "reject": answers[1]}
                else:
                    row |= {"bon_best": answers[0], "loser_list": answers[1:]}
                rows.append(row)
            path = folder / part / f"{category}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))


def write_llmbar(folder: pathlib.Path) -> None:
    """Files of LLMBar's published form: its five subsets and one of the processed sets."""
    subsets = [f"Adversarial/{name}" for name in ("Neighbor", "GPTInst", "GPTOut", "Manual")]
    places = [f"LLMBar/{name}" for name in ("Natural", *subsets)] + ["Processed/FairEval"]
    for place in places:
        rows = [
            {
                "input": f"{place} {i}?",
                "output_1": text(i, 8 if i % 2 else 3),
                "output_2": text(i + 3, 3 if i % 2 else 8),
                "label": 1 if i % 2 else 2,
            }
            for i in range(9)
        ]
        path = folder / place / "dataset.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows))


@pytest.fixture
def api(monkeypatch):
    api = Api()
    yield api
    api.server.close()


def follow(folder: pathlib.Path, api: Api, items: int) -> list[commands.Result]:
    """Follows the page; the API is healthy from the second evaluation on."""
    replaced = {
        "https://api.openai.com/v1": api.server.url,
        '"timeout_s": 60.0': '"timeout_s": 1.0, "retries": 2',
        "LIMIT = 40": f"LIMIT = {items}",
    }
    page = commands.read("evaluator")
    whole = "".join(block.text for block in page)
    assert all(old in whole for old in replaced), "the page has other texts than this test"
    results = []
    for block in page:
        api.healthy = "eval.retry" in block.text
        result = commands.follow(block, folder, replaced, {"OPENAI_API_KEY": KEY})
        # the page says that tiny may have no judgment on real text, and what is said then
        silent = result.stderr.rstrip().rpartition("\n")[2].startswith(SILENT)
        status = 1 if silent else 0
        assert result.returncode == status, f"line {block.line}: {result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr and KEY not in result.stdout + result.stderr
        print(f"line {block.line}: {result.seconds:.1f} s")
        if block.file is None:
            results.append(result)
    return results


def check(folder: pathlib.Path, api: Api, results: list[commands.Result], items: int) -> None:
    dry, first, table, again, rank = results
    # the bill, before anything is asked
    (bill,) = [line for line in dry.stdout.splitlines() if line.startswith("api in all: ")]
    asked = 2 * items * (1 + 1 + 4)  # greedy, in the other order, samples
    assert bill.startswith(f"api in all: {asked} requests, about ") and "at most 0." in bill
    assert bill in first.stdout and "tiny on llmbar, sampled" in dry.stdout
    # what came is a judgment, or a failure by its name
    judged = collections.Counter()
    failures = collections.Counter()
    for path in (folder / "runs/first_look/judgments/api").rglob("*.jsonl"):
        last = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            judged[row["failure"] is None] += 1
            failures[row["failure"]] += 1
            last[row["id"], row["sample"]] = row["failure"]
        assert not any(str(failure).startswith("request_failed") for failure in last.values())
    assert set(failures) <= {None, "no_box", "request_failed:http_503", "request_failed:timeout"}
    assert "request_failed:http_503" in failures and "no_box" in failures
    assert "no judgment from http://127.0.0.1" in first.stderr and "answers again" in first.stderr
    for file in (folder / "runs/first_look").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    # the table: the first look had failures, the second has none of the server's
    for name in ("length", "api", "rmb", "llmbar"):
        assert name in table.stdout
    assert f"A first look, not the whole benchmark: rmb {items} of " in table.stdout
    results = json.loads((folder / "runs/first_look/results.json").read_text())
    rows = {(r["system"], r["benchmark"]): r for r in results["rows"] if r["aggregation"] == "vote"}
    assert rows["length", "rmb"]["coverage"] == 1 and rows["length", "rmb"]["items"] == items
    for benchmark in ("rmb", "llmbar"):
        assert rows["api", benchmark]["value"] is not None
        of_tiny = rows["tiny", benchmark]
        silent = f"tiny on {benchmark}"
        assert (of_tiny["value"] is None) == (of_tiny["judged"] == 0)
        assert of_tiny["judged"] > 0 or silent in again.stderr or "tiny on rmb, llm" in again.stderr
    assert rows["api", "rmb"]["coverage"] > 0.7
    # best of n
    lines = [json.loads(line) for line in (folder / "best.jsonl").read_text().splitlines()]
    gold = {record.id: record for record in make_records("test", 20, seed=7)}
    assert len(lines) == 20 and all(len(line["responses"]) == 1 for line in lines)
    assert all("rewards" not in line and line["metadata"]["grm"]["margin"] >= 0 for line in lines)
    right = 0
    for line in lines:
        record = gold[line["id"]]
        best = record.responses[record.rewards.index(max(record.rewards))]
        right += line["responses"] == [best]
    assert right >= 15 and json.loads(rank.stdout)["id"] == lines[0]["id"]


@pytest.mark.slow
def test_the_page_runs_from_its_own_blocks(tmp_path, api):
    folder = commands.clone(tmp_path)
    write_rmb(folder / "data/RMB_dataset")
    write_llmbar(folder / "data/LLMBar")
    check(folder, api, follow(folder, api, 16), 16)


@pytest.mark.slow
def test_the_page_runs_on_the_published_files(tmp_path, api, data_dir):
    folder = commands.clone(tmp_path)
    (folder / "data").mkdir()
    (folder / "data/RMB_dataset").symlink_to(data_dir / "rmb/RMB_dataset")
    (folder / "data/LLMBar").symlink_to(data_dir / "llmbar")
    whole = load_benchmark({"kind": "rmb", "path": str(folder / "data/RMB_dataset")})
    assert len(whole.records) > 1000
    check(folder, api, follow(folder, api, 40), 40)

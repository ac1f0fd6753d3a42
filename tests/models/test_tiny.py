"""What ships in the package as "tiny" and "tiny_base": folders that say how to ask them, cards with
figures, and ids that transformers gives too.
"""

import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest

import grm_jax
from grm_jax.data.world import make_records
from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.rules import best_index
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.description import ASSETS, TINY_BASE, model_folder, read_description
from grm_jax.tokenizer import load_tokenizer

FOLDERS = (ASSETS / "tiny/grm", ASSETS / "tiny/meta", TINY_BASE)


def test_the_assets_are_small_and_each_says_how_it_is_asked():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)
    grm, meta, base = map(read_description, FOLDERS)
    assert (grm.kind, meta.kind, base.kind) == ("pointwise_grm", "meta_rm", "pointwise_grm")
    lists, single = load_template("tiny_pointwise"), load_template("tiny_single")
    assert grm.templates == base.templates == {"pointwise": lists, "single": single}
    assert meta.templates == {"meta": load_template("tiny_meta")}
    assert all(one.lengths == {"prompt": 80, "completion": 128} for one in (grm, meta, base))
    assert all(one.temperature == 1.0 for one in (grm, meta, base))
    assert (FOLDERS[0] / grm.meta).resolve() == FOLDERS[1] == model_folder("tiny", ("meta",))
    assert model_folder("tiny") == FOLDERS[0] and model_folder("tiny_base") == TINY_BASE


@pytest.mark.parametrize("folder", FOLDERS[:2], ids=["grm", "meta"])
def test_the_card_states_accuracies_with_errors_and_how_it_was_made(folder):
    card = (folder / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\d+) \| \d+ \| (.+) \|$", card, re.M)
    assert [split for split, *_ in rows] == ["test", "hard", "wide", "single"]
    for _, items, cells in rows:
        assert int(items) == 200 and len(cells.split("|")) == 3
        assert all(re.fullmatch(r" ?\d\d\.\d ± \d\.\d ?", cell) for cell in cells.split("|"))
    assert "seed 0" in card and "experiments.build_base.judge" in card


def test_tiny_is_a_judge_of_the_world():
    judge = grm_jax.load("tiny", mesh=make_mesh(devices=jax.devices()[:1]))
    records = make_records("test", 40, 9)
    verdicts = judge.many(records, progress=False)
    right = [v.best == best_index(r.rewards) for v, r in zip(verdicts, records)]
    assert sum(right) >= 0.8 * len(right)


def test_the_folders_are_written_from_a_work_folder(tmp_path):
    """The command gives what is shipped, from models that are there and figures in the schema of
    results.json.
    """
    splits, ways = ("test", "wide"), (("greedy", 1, None), ("vote", 4, None), ("meta", 4, 2))
    rows = [
        {"system": system, "benchmark": split, "aggregation": a, "k": k, "k_meta": k_meta}
        | {"items": 9, "chance": 0.25, "value": value / 100, "stderr": 0.012}
        for system, base in (("base", 0), ("grm", 60))
        for split in splits
        for value, (a, k, k_meta) in enumerate((*ways, ("meta", 4, 1)), start=base)
    ]
    config = {
        "seed": 5,
        "templates": {"pointwise": "tiny_pointwise", "single": "tiny_single", "meta": "tiny_meta"},
        "lengths": {"prompt": 80, "completion": 128, "buckets": [80], "sequences": []},
        "eval": {"temperature": 1.0, "ks": [1, 4], "splits": splits},
    }
    (tmp_path / "results.json").write_text(json.dumps({"config": config, "rows": rows}))
    (tmp_path / "models").symlink_to(ASSETS / "tiny")
    script = [sys.executable, "-m", "experiments.build_base.judge"]
    where = [f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]
    repo = pathlib.Path(grm_jax.__file__).parents[1]
    subprocess.run([*script, *where], check=True, cwd=repo, capture_output=True)
    for name in ("grm", "meta"):
        for path in (ASSETS / "tiny" / name).iterdir():
            written = tmp_path / "out" / name / path.name
            if path.name != "README.md":
                assert written.read_bytes() == path.read_bytes(), path
        card = (tmp_path / "out" / name / "README.md").read_text()
        assert "| wide | 9 | 25 | 60.0 ± 1.2 | 61.0 ± 1.2 | 62.0 ± 1.2 |" in card
        assert (
            "seed 5" in card and "4 samples at temperature 1, of which the Meta RM keeps 2" in card
        )


@pytest.mark.parametrize("folder", FOLDERS, ids=["grm", "meta", "base"])
def test_transformers_gives_the_same_ids(folder):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    turns = [
        ("system", "Be brief. "),
        ("user", " Reverse the list: 1.fox 2.ant"),
        ("assistant", "1.ant\n2.fox\n"),
        ("user", "Sort [User] it: x <b>é"),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]

    def ids(messages, **how):
        return theirs.apply_chat_template(messages, return_dict=False, **how)

    assert ids(messages) == ours.chat(turns)
    assert ids(messages[1:2], add_generation_prompt=True) == ours.chat_prompt(turns[1][1])
    assert theirs("Sort it").input_ids == [ours.bos_id, *ours.encode("Sort it")]

"""A policy that gets better: exact best of n, rewards with gaps, chances of scalar scores, figures;
a step of RL, and RL that is stopped and taken up again (slow).
"""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

import grm_jax
from experiments.policy import best_of_n, choosing, judges, loop, plot, seeds, tables
from experiments.policy import writer as writing
from grm_jax.data.world.writing import gold, make_queries
from grm_jax.reward_models.description import model_folder
from grm_jax.training.settings import RlConfig


def test_best_of_n_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    scores_PN = rng.integers(0, 4, (5, 6)).astype(float)  # ties
    scores_PN[0, :2] = np.nan
    values_PN = rng.random((5, 6))
    for n in (1, 2, 4, 6):
        slow = []
        for scores_N, values_N in zip(np.nan_to_num(scores_PN, nan=-9), values_PN):
            of_subsets = []
            for subset in map(list, itertools.combinations(range(6), n)):
                top = scores_N[subset] == scores_N[subset].max()
                of_subsets.append(values_N[subset][top].mean())
            slow.append(np.mean(of_subsets))
        np.testing.assert_allclose(best_of_n.chosen_means(scores_PN, values_PN, n), slow)
    with pytest.raises(ValueError, match="best of 7 of 6 candidates"):
        best_of_n.chosen_means(scores_PN, values_PN, 7)


def test_the_score_of_the_best_is_over_the_choices_that_have_one():
    scores_PN = np.array([[0.5, 0.25, np.nan, np.nan], [0.5, 0.5, 1.0, 0.75]])
    score, missing = best_of_n.chosen_scores(scores_PN, scores_PN, 1)
    assert score == np.nanmean(scores_PN) and missing == 2 / 8
    # of six pairs of the first prompt, five have a score, of the second all
    score, missing = best_of_n.chosen_scores(scores_PN, scores_PN, 2)
    firsts, seconds = [0.5, 0.5, 0.5, 0.25, 0.25], [0.5, 1.0, 0.75, 1.0, 0.75, 1.0]
    assert score == pytest.approx(np.mean(firsts + seconds)) and missing == pytest.approx(1 / 12)
    score, missing = best_of_n.chosen_scores(scores_PN[1:], scores_PN[1:], 2)
    assert score == pytest.approx(np.mean(seconds)) and missing == 0
    score, missing = best_of_n.chosen_scores([[np.nan] * 2], [[np.nan] * 2], 1)
    assert np.isnan(score) and missing == 1


def test_a_response_without_reward_has_no_advantage():
    rewards = [1.0, np.nan, 0.0, 0.5, np.nan, np.nan]
    np.testing.assert_allclose(loop.without_gaps(rewards, 3), [1, 0.5, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(loop.without_gaps([np.nan, np.nan], 2), [0, 0])


def test_chances_are_those_of_the_responses_that_they_were_fitted_on():
    rng = np.random.default_rng(1)
    scores = rng.normal(3, 20, 4000)
    right = rng.random(4000) < 1 / (1 + np.exp(-(scores - 3) / 10))
    fitted = judges.chances("bt", scores, right)(scores)
    assert abs(fitted.mean() - right.mean()) < 0.01
    upper = scores > 10
    assert abs(fitted[upper].mean() - right[upper].mean()) < 0.03


def test_chances_are_fitted_without_the_scores_that_are_missing():
    scores, right = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 1.0])
    whole = judges.chances("bt", scores, right)(scores)
    fitted = judges.chances("bt", [*scores, np.nan, np.inf], [*right, 1.0, 0.0])
    np.testing.assert_array_equal(fitted([*scores, np.nan]), [*whole, np.nan])
    with pytest.raises(ValueError, match="judge 'bt': expected finite .* two .*, got 1 of 3"):
        judges.chances("bt", [np.nan, 1.0, np.inf], [1.0, 0.0, 1.0])


def test_what_is_chosen_of_real_answers(tmp_path):
    """Requirements take up the words of the answers on file; the gold is what they find."""
    texts = ["Bees make honey. They fly.", "Bees live in hives.", "Flowers feed them well."]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": f"bees/{i}", "texts": texts}) + "\n" for i in (0, 1)))
    asked = choosing.requirements(path, 5, seed=0)
    again = choosing.requirements(path, 5, seed=0)
    assert list(asked) == ["bees/0/use_word", "bees/1/avoid_word"] == list(again)
    assert [request for request, _ in asked.values()] == [request for request, _ in again.values()]
    request, word = asked["bees/0/use_word"]
    assert request.endswith(word.ask) and "bees" in request
    drawn = dict.fromkeys(asked, [*texts, "Cut of", ""])
    rows = choosing.checked(asked, drawn)
    assert [row["words"] for row in rows[:5]] == [5, 4, 4, 2, 1]
    assert [row["gold"] for row in rows[:3]] == [float(word.check(text)) for text in texts]

    # a judge that is right, one answer that it could not judge
    for row in rows:
        row["score"] = row["gold"]
    rows[4]["score"] = None
    found = choosing.figures(rows)
    assert found["ns"] == [1, 2, 4] and found["answers"] == 5 and found["parsed"] == 0.9
    best, one = found["choices"]["the judge"], np.mean([row["gold"] for row in rows])
    assert best["gold"][0] == pytest.approx(one) and best["gold"] == sorted(best["gold"])
    assert (
        best["gain"][0] == 0 and best["gold"][2] == found["choices"]["the gold itself"]["gold"][2]
    )
    assert (
        found["choices"]["the shortest"]["words"][2] < found["choices"]["the longest"]["words"][2]
    )
    assert "| use_word | 1 |" in choosing.table(found)
    choosing.draw_plot(found, tmp_path / "plot.svg")
    assert "chosen answer" in (tmp_path / "plot.svg").read_text()


def test_scores_on_file_are_those_of_one_judge(tmp_path):
    rows = [{"id": "a", "request": f"Say {text}.", "text": text} for text in ("yes", "no")]
    path, length = tmp_path / "judged.jsonl", grm_jax.load({"kind": "length"})
    first = choosing.scored(rows, length, 1, 0, path)
    assert [row["score"] for row in first] == [3, 2]
    assert choosing.scored(rows, length, 1, 0, path) == first
    other = grm_jax.load({"kind": "constant"})
    with pytest.raises(ValueError, match='judged.of.json: field "model": expected'):
        choosing.scored(rows, other, 1, 0, path)
    with pytest.raises(ValueError, match='judged.of.json: field "seed": expected 1, got 0'):
        choosing.scored(rows, length, 1, 1, path)
    with pytest.raises(ValueError, match="judged.jsonl: scores of other answers"):
        choosing.scored(rows[:1], length, 1, 0, path)


def test_a_judge_of_a_later_run_is_put_beside_those_on_file(tmp_path):
    asked = []

    def before(names):
        asked.append(list(names))
        return {"gold": 0.5 + len(asked) / 10} | dict.fromkeys(names, 0.1 * len(asked))

    def best(names):
        asked.append(list(names))
        return {"ns": [1], "judges": {name: {"gold": [len(asked)]} for name in names}}

    path = tmp_path / "before.json"
    for names in (("grm",), ("grm",), ("grm", "bt")):
        judges.with_judges(path, names, before)
    assert asked == [["grm"], ["bt"]]
    assert json.loads(path.read_text()) == {"gold": 0.6, "grm": 0.1, "bt": 0.2}

    path = tmp_path / "best_of_n.json"
    for names in (("grm",), ("bt",), ("grm", "bt")):
        judges.with_judges(path, names, best)
    found = {"ns": [1], "judges": {"grm": {"gold": [3]}, "bt": {"gold": [4]}}}
    assert asked[2:] == [["grm"], ["bt"]] and json.loads(path.read_text()) == found


SMALL = seeds.Sizes(
    answers=8,
    sft_steps=1,
    generative=("grm",),
    asked=2,
    ns=(1, 2),
    arms=("grm",),
    steps=1,
    prompts=1,
    group=2,
    tested=2,
)


def test_a_folder_is_of_one_size_and_of_one_judge_of_a_name(tmp_path):
    folder = tmp_path / "seed_0"
    seeds.claim(folder, SMALL, {"grm": "1"})
    seeds.claim(folder, dataclasses.replace(SMALL, k=3), {"grm": "2"})  # no file is of it yet
    seeds.claim(folder, SMALL, {"grm": "1"})
    (folder / "before.json").write_text("{}")
    seeds.claim(folder, dataclasses.replace(SMALL, arms=()), {"bt": "3"})  # one more judge
    assert seeds.claim(folder, SMALL, {"grm": "1"}) is None
    for sizes, digests, said in (
        (dataclasses.replace(SMALL, steps=2), {"grm": "1"}, '"steps": expected 2, got 1'),
        (dataclasses.replace(SMALL, ns=(1,)), {"grm": "1"}, r'"ns": expected \[1\], got \[1, 2\]'),
        (SMALL, {"grm": "2"}, "\"judge grm\": expected '2', got '1'"),
        (SMALL, {"bt": "4"}, "\"judge bt\": expected '4', got '3'"),
    ):
        with pytest.raises(ValueError, match=f"seed_0/of.json: field {said}"):
            seeds.claim(folder, sizes, digests)
    (folder / "of.json").unlink()
    with pytest.raises(
        ValueError, match="seed_0: holds files and no of.json .* an earlier version"
    ):
        seeds.claim(folder, SMALL, {"grm": "1"})


def test_a_judge_is_known_by_its_content(tmp_path):
    assert len({judges.digest(name) for name in ("grm", "grm_meta", "base")}) == 3
    for name in ("one", "same", "other"):
        shutil.copytree(
            model_folder("tiny").parent / "meta", tmp_path / name, ignore=lambda *_: ["grm.json"]
        )
    with (tmp_path / "other" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    one, same, other = (
        judges.digest("bt", str(tmp_path / name)) for name in ("one", "same", "other")
    )
    assert one == same != other


def test_a_new_judge_measures_the_policies_that_are_on_file(tmp_path, monkeypatch):
    """Two runs with fabricated judges; the policy stays what it was, and so do its figures."""
    tuned, digests = [], {"grm": "1", "bt": "2"}

    def scorer(name):
        def scores(prompts, texts, seed):
            return {name: [np.nan] + [len(text) / 50 for text in texts[1:]]}

        return scores

    def tune(writer, params, reward, rl, place, seed, of):
        tuned.append((place.name, of))
        return params

    monkeypatch.setattr(judges, "digest", lambda name, folder: digests[name])
    monkeypatch.setattr(judges, "generative", lambda name, k: scorer(name))
    monkeypatch.setattr(judges, "scalar", lambda folder, name: scorer(name))
    base = writing.load(writing.make_writer(), writing.base_folder())
    monkeypatch.setattr(writing, "fine_tune", lambda *of: base)
    monkeypatch.setattr(loop, "tune", tune)
    seeds.run(tmp_path, [0], {}, SMALL)
    folder = tmp_path / "seed_0"
    writing.save(writing.make_writer(), folder / "rl_trl" / "model", base)  # as TRL leaves it
    first = json.loads((folder / "rl_grm" / "after.json").read_text())
    assert {"gold", "grm"} <= first.keys() and "bt" not in first
    best = json.loads((folder / "best_of_n.json").read_text())["judges"]["grm"]
    assert best["missing"] == [0.25, 0] and np.isfinite(best["score"]).all()

    seeds.run(tmp_path, [0], {"bt": "folder"}, SMALL)
    for arm in ("grm", "trl", "bt"):
        after = json.loads((folder / f"rl_{arm}" / "after.json").read_text())
        assert after.keys() == first.keys() | {"bt"} and after["grm"] == first["grm"]
    assert [name for name, _ in tuned] == ["rl_grm", "rl_bt"]
    assert '"steps": 1' in tuned[0][1] and '"judge": "2"' in tuned[1][1]

    # another judge of the name, and another size, in any of the seeds: nothing is computed
    monkeypatch.setattr(writing, "make_writer", None)
    for sizes, of_bt, said in ((SMALL, "3", "judge bt"), (seeds.Sizes(), "2", "answers")):
        digests |= {"bt": of_bt, "grm_meta": "4", "base": "5"}
        with pytest.raises(ValueError, match=f'seed_0/of.json: field "{said}": expected'):
            seeds.run(tmp_path, [1, 0], {"bt": "folder"}, sizes)


def test_errors_are_of_the_mean_over_seeds():
    mean, error = plot.mean_and_error([[1.0, 2.0], [3.0, 2.0]])
    assert mean.tolist() == [2, 2] and error.tolist() == [1, 0]
    assert np.isnan(plot.mean_and_error([[1.0]])[1]).all()
    assert plot.smooth([0, 3, 6, 9], 3).tolist() == [1.5, 3, 6, 7.5]


def of_seed(gold):
    row = {"gold": gold, "reward": 0.5, "kl": 2.0}
    before, after = ({"gold": g, "grm": 0.75, "tokens": 6.0} for g in (0.5, gold))
    best = {"gold": [0.5, gold], "score": [0.5, 0.75]}
    return {
        "best_of_n": {"ns": [1, 2], "oracle": [0.5, 1.0], "judges": {"grm": best}},
        "before": before,
        "rl": {"trl": {"steps": [{"step": i} | row for i in range(4)], "after": after}},
    }


def test_figures_of_seeds_become_tables_and_a_plot(tmp_path):
    found = {"seeds": {"0": of_seed(0.6), "1": of_seed(0.8)}}
    text = tables.make_tables(found)
    assert "| GRM | gold | 50.0 ± 0.0 | 70.0 ± 10.0 |" in text
    after = "50.0 ± 0.0 | 70.0 ± 10.0 | 75.0 ± 0.0 | 75.0 ± 0.0 | 25.0 ± 0.0 | 5.0 ± 10.0"
    assert f"| GRM, by TRL | 2 | {after} | 2.00 | 6.0 → 6.0 |" in text
    plot.draw_plot(found, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "Best of n: GRM" in drawn and "RL: GRM, by TRL" in drawn


RL = RlConfig(
    learning_rate=1e-3,
    batch_size=8,
    micro_batch=8,
    steps=2,
    group_size=4,
    beta=0.02,
    old_logp="sampler",
)


@pytest.mark.slow
def test_rl_learns_what_is_rewarded_and_goes_on_where_it_was_stopped(tmp_path):
    writer = writing.make_writer()
    start = writing.fine_tune(writer, tmp_path, 0, 30, 2000, 0.5)
    rl = dataclasses.replace(RL, batch_size=64, micro_batch=64, steps=12)

    def bold(prompts, texts, seed):
        return [float("**" in text) for text in texts]

    def rows(folder):
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    tuned = loop.tune(writer, start, bold, rl, tmp_path / "whole", 0, every=6)
    whole = rows(tmp_path / "whole")
    assert whole[-1]["reward"] > whole[0]["reward"] + 0.3 and whole[-1]["kl"] > 0.1

    def stopped(prompts, texts, seed):
        if seed == 8:
            raise KeyboardInterrupt
        return bold(prompts, texts, seed)

    with pytest.raises(KeyboardInterrupt):
        loop.tune(writer, start, stopped, rl, tmp_path / "twice", 0, every=6)
    again = loop.tune(writer, start, bold, rl, tmp_path / "twice", 0, every=6)
    assert rows(tmp_path / "twice") == whole
    for a, b in zip(jax_leaves(tuned), jax_leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def jax_leaves(params):
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(params)]


def test_a_step_of_rl_with_a_function_as_reward(tmp_path):
    writer = writing.make_writer()
    start = writing.load(writer, writing.base_folder())
    queries = {query.text: query for query in make_queries(2, 0)}

    def reward(prompts, texts, seed):
        assert seed == 0 and set(prompts) == set(queries) and len(texts) == 8
        return [gold(queries[prompt], text) for prompt, text in zip(prompts, texts)]

    rl = dataclasses.replace(RL, steps=1)
    loop.tune(writer, start, reward, rl, tmp_path, 0)
    (row,) = map(json.loads, (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["reward"] == row["gold"] > 0 and abs(row["kl"]) < 1e-4 and row["missing"] == 0

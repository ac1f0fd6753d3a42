"""Stages of other work folders: the same work is not done twice, and other work is never taken for
it.
"""

import json
import shutil
import types

import pytest

from experiments import run_config
from experiments.configs import tiny, tiny_reward_model
from experiments.stages import evaluation, reuse
from experiments.stages.workdir import about_stages, run_stage
from grm_jax.evaluation import store
from grm_jax.whole_files import write_json
from tests.experiments import micro

INPUTS = {
    "data.train": "records",
    "data.general": "instructions",
    "data.critiques": "critiques",
    "critic": {},
    "templates": {"pointwise": "p", "single": "s", "meta": "m", "judge": "j"},
    "model": {"weights": "w", "config": "c", "tokenizer": "t"},
    "tokenizer": {"tokenizer": "t"},
    "functions": {"rl": {"loss": "code"}},
}
SPCT = ["rft_sample", "rft", "rl", "meta_sample", "meta"]


def plain(preset=tiny, **fields):
    config = preset.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return json.loads(json.dumps(run_config.finish(config).to_dict()))


def work_folder(path, done=(), inputs=INPUTS, config=None):
    """A work folder with finished stages, and a word in all that each of them leaves."""
    path.mkdir(parents=True)
    config = config or plain()
    write_json(path / "config.json", {"digest": "d", "inputs": inputs, "config": config})
    logged = []
    for name in done:
        for place in reuse.STAGES[name].leaves:
            file = path / place if place.endswith(".jsonl") else path / place / "file"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} of {path.name}")
            if place.startswith("models/"):
                (path / place / "config.json").write_text("{}")
        logged += [{"stage": name, "step": step, "loss": 0.5} for step in range(2)]
        (path / "stages").mkdir(exist_ok=True)
        write_json(path / "stages" / f"{name}.json", {"seconds": 61.0, "note": None})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    return path


def first_changed(a, b):
    """The first stage of a run whose identity differs between two (config, inputs)."""
    for name in reuse.stages_of(a[0]):
        if reuse.identity(name, *a) != reuse.identity(name, *b):
            return name
    return None


@pytest.mark.parametrize(
    "field, value, stage",
    [
        ("seed", 1, "rft_sample"),
        ("rft.samples", 4, "rft_sample"),
        ("rft.drop_too_easy", False, "rft_sample"),
        ("lengths.completion", 64, "rft_sample"),
        ("sampling.top_p", 0.9, "rft_sample"),
        ("model.dtype", "bfloat16", "rft_sample"),
        ("tokenizer.chat_args", {"enable_thinking": False}, "rft_sample"),
        ("rft.steps", 0, "rft"),
        ("rft.learning_rate", 1e-3, "rft"),
        ("rft.principles", False, "rft"),
        ("optimizer.b2", 0.9, "rft"),
        ("lora.rank", 4, "rft"),
        ("rl.beta", 0.0, "rl"),
        ("rl.loss", "dapo", "rl"),
        ("rl.drop_easy_prompts", False, "rl"),
        ("meta.own_samples", 5, "meta_sample"),
        ("meta.steps", 9, "meta"),
        # nothing that is trained depends on these
        ("note", "Again.", None),
        ("sampling.rows", 64, None),
        ("checkpoint.every", 7, None),
        ("eval.ks", (1, 2), None),
        ("data.eval.test", ({"world": "hard"},), None),
        # what is read counts by its content, below
        ("data.train", ({"world": "train", "items": 7},), None),
        ("model.path", "tiny", None),
        ("tokenizer.path", "tiny", None),
    ],
)
def test_a_field_changes_the_first_stage_that_depends_on_it_and_all_behind(field, value, stage):
    a, b = (plain(), INPUTS), (plain(**{field: value}), INPUTS)
    assert first_changed(a, b) == stage
    changed = [name for name in SPCT if reuse.identity(name, *a) != reuse.identity(name, *b)]
    assert changed == (SPCT[SPCT.index(stage) :] if stage else [])


@pytest.mark.parametrize("preset", [tiny, tiny_reward_model])
def test_how_products_are_rounded_changes_all_stages_where_it_is_said(preset):
    config, other = plain(preset), INPUTS | {"matmul_precision": "bfloat16"}
    for name in reuse.stages_of(config):
        said, silent = (reuse.identity(name, config, inputs) for inputs in (other, INPUTS))
        assert store.differing(silent, said) == ["inputs.matmul_precision"]


@pytest.mark.parametrize(
    "name, stage",
    [
        ("data.train", "rft_sample"),
        ("model.weights", "rft_sample"),
        ("tokenizer.tokenizer", "rft_sample"),
        ("templates.pointwise", "rft_sample"),
        ("templates.single", "rft_sample"),
        ("data.general", "rft"),
        ("functions.rl.loss", "rl"),
        ("templates.meta", "meta"),
        ("templates.judge", None),
    ],
)
def test_what_is_read_changes_the_first_stage_that_reads_it(name, stage):
    other = json.loads(json.dumps(INPUTS))
    node = other
    *path, last = [name] if name in other else name.split(".")
    for part in path:
        node = node[part]
    node[last] = "another"
    assert first_changed((plain(), INPUTS), (plain(), other)) == stage


def test_no_switches_are_the_same_whether_a_config_says_so_or_not():
    said, silent = plain(**{"tokenizer.chat_args": None}), plain()
    silent["tokenizer"].pop("chat_args", None)
    for name in SPCT:
        one, other = (reuse.identity(name, config, INPUTS) for config in (said, silent))
        assert store.differing(one, other) == []


def test_every_field_of_a_preset_is_known_to_a_stage_or_to_none_of_them():
    """A field that is added has to be put somewhere: an identity that forgets one is a wrong
    figure in silence.
    """
    for preset in (tiny, tiny_reward_model):
        for kind in (
            ("bradley_terry", "pair_rm", "cloud") if preset is tiny_reward_model else (None,)
        ):
            config = plain(preset, **({"kind": kind} if kind else {}))
            fields = {name for name, _ in reuse._flat(run_config.of_results(config))}
            used = set()
            for name in reuse.stages_of(config):
                used |= reuse.identity(name, config, {})["config"].keys()
            other_kinds = set(reuse.STAGES) - set(reuse.stages_of(config))
            left = {
                field
                for field in fields - used
                if not any(
                    field == known or field.startswith(f"{known}.")
                    for known in (*run_config.BY_CONTENT, "kind", *other_kinds)
                )
            }
            # scalar models and critics write no judgment
            unasked = set() if kind is None else {"answer"} | {f for f in left if "sampling" in f}
            assert left <= unasked, (kind, left)


def test_finished_stages_that_depend_on_the_same_are_taken_over(tmp_path, capsys):
    giver = work_folder(tmp_path / "giver", SPCT)
    mine = work_folder(tmp_path / "mine", config=plain(**{"rl.beta": 0.5}))
    (mine / "metrics.jsonl").write_text('{"stage": "rft", "step": 0, "loss": 9.0}\n')
    reuse.take_over(mine, SPCT, reuse.givers([str(giver)], mine))
    assert [name for name in SPCT if reuse.done(mine, name)] == ["rft_sample", "rft"]
    assert (mine / "models/rft/file").read_text() == "rft of giver"
    assert (mine / "trajectories/base/train/hinted/file").read_text() == "rft_sample of giver"
    assert not (mine / "models/grm").exists()
    rows = [json.loads(line) for line in (mine / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == [
        (stage, step, 0.5) for stage in ("rft_sample", "rft") for step in (0, 1)
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"== rft_sample: taken over from {giver} (61 s there)",
        f"== rft: taken over from {giver} (61 s there)",
        f"== rl: not taken over; that of {giver} differs in rl.beta",
    ]
    about = about_stages(mine)
    assert about["timings_s"] == {"rft_sample": 61.0, "rft": 61.0}
    assert about["notes"] == [f"Taken over from {giver}: rft_sample, rft."]
    # a copy: what is done here changes nothing there
    (mine / "trajectories/base/train/hinted/file").write_text("more")
    assert (giver / "trajectories/base/train/hinted/file").read_text() == "rft_sample of giver"
    # once more: nothing is done again
    reuse.take_over(mine, SPCT[:2], [giver])
    assert capsys.readouterr().out == ""


def test_what_the_base_draws_for_the_meta_rm_goes_with_that_stage(tmp_path):
    """With "base" in meta.policies; what RFT reads lies beside it."""
    giver, base = work_folder(tmp_path / "giver", SPCT), "trajectories/base/train"
    mine = work_folder(tmp_path / "mine", config=plain(**{"meta.own_samples": 5}))
    reuse.take_over(mine, SPCT, [giver])
    assert not (mine / base / "own").exists() and (mine / base / "unhinted/file").is_file()
    other = work_folder(tmp_path / "other", SPCT[:3])
    (other / base / "own").mkdir()
    (other / base / "own/file").write_text("of another")
    reuse.take_over(other, SPCT, [giver])
    assert (other / base / "own/file").read_text() == "meta_sample of giver"


def test_a_folder_of_work_folders_stands_for_all_and_the_nearest_is_named(tmp_path, capsys):
    runs = tmp_path / "sweep"
    work_folder(runs / "beta=0.1,seed=1", SPCT, config=plain(**{"rl.beta": 0.1, "seed": 1}))
    work_folder(runs / "beta=0.1", ["rft_sample", "rft", "rl"], config=plain(**{"rl.beta": 0.1}))
    mine = work_folder(runs / "beta=0.2", config=plain(**{"rl.beta": 0.2}))
    folders = reuse.givers([str(runs), str(runs / "beta=0.1")], mine)
    assert [folder.name for folder in folders] == ["beta=0.1", "beta=0.1,seed=1"]
    reuse.take_over(mine, SPCT, folders)
    assert [name for name in SPCT if reuse.done(mine, name)] == ["rft_sample", "rft"]
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"== rl: not taken over; that of {runs / 'beta=0.1'} differs in rl.beta"
    other = work_folder(tmp_path / "other", config=plain(**{"rft.steps": 9}))
    reuse.take_over(other, ["rft"], [runs / "beta=0.2"])
    assert "== rft: not taken over; that of" in (said := capsys.readouterr().out)
    assert "differs in rft.steps" in said
    unfinished = work_folder(tmp_path / "unfinished")
    reuse.take_over(other, ["rft_sample"], [unfinished])
    assert f"== rft_sample: not taken over; not finished in {unfinished}" in (
        capsys.readouterr().out
    )


def test_a_model_that_is_gone_is_missed_by_the_stage_that_reads_it(tmp_path, capsys):
    done = work_folder(tmp_path / "done", SPCT)
    reuse.need_models(done, "rft_sample"), reuse.need_models(done, "rft")
    shutil.rmtree(done / "models/rft")
    run = types.SimpleNamespace(workdir=done, wants=lambda stage: True)
    (done / "stages/rl.json").unlink()
    said = f"{done}/models/rft: no model is there, and stages/rft.json says that rft is done; bring"
    with pytest.raises(ValueError, match=said):
        run_stage(run, "rl", lambda run: pytest.fail("it was begun"))
    run.config = run_config.finish(micro.get_config())
    run.folder = lambda name: done / "models" / name
    run.config.eval.systems = ("rft",)
    with pytest.raises(ValueError, match=said):
        evaluation.policies(run)
    # nor is it taken over
    mine = work_folder(tmp_path / "mine")
    reuse.take_over(mine, SPCT, [done])
    assert [name for name in SPCT if reuse.done(mine, name)] == [
        "rft_sample",
        "meta_sample",
        "meta",
    ]


def test_a_model_that_is_another_one_is_not_trained_on(tmp_path, capsys):
    done, mine = work_folder(tmp_path / "done", ["rft_sample"]), work_folder(tmp_path / "mine")
    run = types.SimpleNamespace(workdir=done, wants=lambda stage: True)

    def train(run):
        (done / "models/rft").mkdir(parents=True, exist_ok=True)
        (done / "models/rft/config.json").write_text("{}")
        (done / "models/rft/model.safetensors").write_bytes(b"weights")

    run_stage(run, "rft", train)
    reuse.need_models(done, "rft")
    (done / "models/rft/model.safetensors").write_bytes(b"foreign")
    with pytest.raises(ValueError, match="models/rft: the model there is another one, and"):
        run_stage(run, "rl", lambda run: pytest.fail("it was begun"))
    reuse.take_over(mine, ["rft_sample", "rft"], [done])
    assert reuse.done(mine, "rft_sample") and not reuse.done(mine, "rft")
    assert "== rft: not taken over; " in capsys.readouterr().out


def test_another_kind_gives_what_it_shares_and_another_script_nothing(tmp_path, capsys):
    """A critic is a critic whatever is trained behind it."""
    spct, bt = work_folder(tmp_path / "spct", SPCT), plain(tiny_reward_model, kind="bradley_terry")
    mine = work_folder(tmp_path / "mine", config=plain(tiny_reward_model, kind="cloud"))
    reuse.take_over(mine, ["critic"], [spct])
    assert reuse.done(mine, "critic") is None
    assert f"== critic: not taken over; not finished in {spct}" in capsys.readouterr().out
    reuse.take_over(mine, ["critic"], [spct, work_folder(tmp_path / "bt", ["critic"], config=bt)])
    assert reuse.done(mine, "critic")["from"] == str(tmp_path / "bt")


def test_from_has_to_name_a_work_folder(tmp_path):
    with pytest.raises(
        ValueError, match=r"--from=.*nowhere: expected a work folder.*no such folder"
    ):
        reuse.givers([str(tmp_path / "nowhere")], tmp_path)
    with pytest.raises(ValueError, match="found neither"):
        reuse.givers([str(tmp_path)], tmp_path / "mine")
    alone = work_folder(tmp_path / "runs/mine")
    assert reuse.givers([str(tmp_path / "runs")], alone) == []  # the first run of a sweep


def test_the_stages_that_are_asked_for_have_what_they_read(tmp_path):
    folder = work_folder(tmp_path / "run", ["rft_sample"])
    assert reuse.chosen((), folder, SPCT) == [*SPCT, "eval"]
    assert reuse.chosen(("rft", "rl", "eval"), folder, SPCT) == ["rft", "rl", "eval"]
    with pytest.raises(
        ValueError, match=r"rl reads what rft leaves, which is not done in .*run; name"
    ):
        reuse.chosen(("rl",), folder, SPCT)
    with pytest.raises(ValueError, match="expected some of rft_sample, .*, eval, got 'rlx'"):
        reuse.chosen(("rlx",), folder, SPCT)


def test_judgments_of_one_identity_are_taken_over(tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "other")]
    for folder, lines in zip(folders, (1, 3, 9)):
        store.claim(folder / "judgments/rft", {"model": folder.name == "other"})
        place = folder / "judgments/rft/test/greedy-seed0.jsonl"
        place.parent.mkdir(parents=True)
        place.write_text("{}\n" * lines)
    mine = tmp_path / "mine/judgments/rft"
    mine.parent.mkdir(parents=True)
    reuse.take_judgments(mine, "rft", {"model": False}, folders)
    assert (mine / "test/greedy-seed0.jsonl").read_text() == "{}\n" * 3
    assert "judgments of rft: taken over from" in capsys.readouterr().out
    (mine / "test/greedy-seed0.jsonl").write_text("mine")
    reuse.take_judgments(mine, "rft", {"model": False}, folders)
    assert (mine / "test/greedy-seed0.jsonl").read_text() == "mine"
    reuse.take_judgments(mine.with_name("grm"), "grm", {"model": False}, folders)
    assert not mine.with_name("grm").exists()

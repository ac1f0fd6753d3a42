"""Presets, overrides and validation."""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest

from experiments import config_flags, config_help, run_config
from experiments.stages.settings import SECTIONS
from grm_jax.data.sources import load_source
from grm_jax.judgment.rules import best_index
from grm_jax.models.config import Numerics
from grm_jax.models.lora import LoraConfig
from grm_jax.sampling.settings import Lengths, Sampling

REPO = pathlib.Path(__file__).resolve().parents[2]
PRESETS = sorted(path.stem for path in (REPO / "experiments/configs").glob("[a-z]*.py"))
SPCT = [
    name
    for name in PRESETS
    if importlib.import_module(f"experiments.configs.{name}").__doc__.startswith(
        "python -m experiments.spct_rl "
    )
]
FREE = ("data.eval", "model.random_init")  # presets give these fields of their own


def preset(name: str) -> ml_collections.ConfigDict:
    return importlib.import_module(f"experiments.configs.{name}").get_config()


def get(config, field: str):
    for name in field.split("."):
        config = config[name]
    return config


def leaves(config, prefix="") -> dict:
    found = {}
    for name, value in config.to_dict().items():
        field = prefix + name
        found |= (
            leaves(config[name], field + ".")
            if isinstance(value, dict) and field not in FREE
            else {field: value}
        )
    return found


@pytest.fixture
def runnable() -> ml_collections.ConfigDict:
    return preset("tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_opens_with_its_command_and_hardware(name):
    doc = importlib.import_module(f"experiments.configs.{name}").__doc__.replace(" \\\n   ", "")
    assert re.match(
        rf"python -m experiments\.\w+ --config=experiments/configs/{name}\.py( --config\.\S+)* "
        r"--workdir=",
        doc,
    )
    assert "Hardware: " in doc


@pytest.mark.parametrize("name", SPCT)
def test_presets_of_spct_have_the_same_fields(name):
    assert leaves(preset(name)).keys() == leaves(preset("spct_gemma2_27b")).keys()


PAPER = {  # arXiv 2504.02495v3, C.1, D.1, Tab 5
    "rft.samples": 3,
    "rft.hinted_samples": 1,
    "rft.drop_too_easy": True,
    "rft.learning_rate": 5e-6,
    "rft.batch_size": 1024,
    "rft.steps": 900,
    "rl.loss": "grpo",
    "rl.advantage": "group",
    "rl.kl_in": "loss",
    "rl.beta": 0.08,
    "rl.group_size": 4,
    "rl.learning_rate": 4e-7,
    "rl.batch_size": 512,
    "rl.steps": 900,
    "rl.drop_easy_prompts": True,
    "meta.own_samples": 3,
    "meta.learning_rate": 1e-5,
    "meta.batch_size": 512,
    "eval.temperature": 0.5,
    "eval.greedy": True,
    "eval.ks": (1, 2, 4, 8, 16, 32),
}


@pytest.mark.parametrize("size", ["27b", "9b", "2b"])
def test_gemma_presets_hold_the_papers_values(size):
    config = preset(f"spct_gemma2_{size}")
    assert {field: get(config, field) for field in PAPER} == PAPER
    assert config.rft.general_fraction == pytest.approx(0.852, abs=5e-4)  # 1070K of 1256K


@pytest.mark.parametrize("name", ["tiny", "tiny_full"])
def test_tiny_presets_keep_the_method(name):
    theirs, ours = leaves(preset("spct_gemma2_27b")), leaves(preset(name))
    method = [
        "rft.samples",
        "rft.hinted_samples",
        "rft.drop_too_easy",
        "rft.keep_hinted_of_too_easy",
        "meta.own_samples",
        *(
            f"rl.{x}"
            for x in (
                "loss",
                "advantage",
                "aggregation",
                "kl",
                "kl_in",
                "group_size",
                "zero_variance",
                "drop_easy_prompts",
            )
        ),
    ]
    assert {field: ours[field] for field in method} == {field: theirs[field] for field in method}


@pytest.mark.parametrize("name", ["tiny", "tiny_full", "tiny_reward_model"])
def test_tiny_presets_run_as_they_ship(name):
    run_config.finish(preset(name))


def test_tiny_full_changes_only_the_evaluation():
    tiny, full = leaves(preset("tiny")), leaves(preset("tiny_full"))
    assert {field.split(".")[0] for field in tiny if tiny[field] != full.get(field)} <= {
        "eval",
        "data",
    }
    assert tiny["data.train"] == full["data.train"]
    assert (full["eval.records"], full["eval.ks"]) == (1000, (1, 2, 4, 8, 16, 32))


def test_real_text_takes_a_data_file_and_a_tokenizer(data_dir):
    config = preset("real_text").lock()
    rmb = "rmb/RMB_dataset/BoN_set/Helpfulness/Open QA/Personal Opinion and Advice.json"
    config.data.train = (str(data_dir / rmb),)
    config.data.eval.test = (str(data_dir / "llmbar/LLMBar/Natural/dataset.json"),)
    config.tokenizer.path = str(data_dir / "mistral_tokenizer/tokenizer.model.v1")
    done = run_config.finish(config)
    assert done.data.eval.test == ({"path": config.data.eval.test[0]},)
    assert done.data.train == ({"path": config.data.train[0]},)
    config.data.eval.test = config.data.train
    with pytest.raises(
        ValueError,
        match=r"data\.eval\.test: expected other records than "
        r"data\.train, got the same file",
    ):
        run_config.finish(config)


def parse(monkeypatch, *arguments, name="tiny", scripts=()):
    """The names of the overrides are looked at, their values are not taken over."""
    monkeypatch.setattr(sys, "argv", ["spct_rl", *arguments])
    path = str(REPO / f"experiments/configs/{name}.py")
    return config_flags.Parser("config", scripts).parse(path)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.rl.bta=0.1", "no such field rl.bta; nearest: rl.beta"),
        ("-config.rl.bta", "no such field rl.bta; nearest: rl.beta"),
        ("--config.lr.beta=0.1", "no such field lr.beta; nearest: rl.beta"),
        (
            "--noconfig.rft.drop_to_easy",
            "no such field rft.drop_to_easy; nearest: rft.drop_too_easy",
        ),
        (
            "--config.temperature=1",
            "no such field temperature; nearest: eval.temperature, meta.temperature, "
            "rft.temperature, rl.temperature",
        ),
        ("--config.seed.x=1", "no such field seed.x; nearest: seed"),
        (
            "--config.data.trian[0].items=3",
            "no such field data.trian[0].items; nearest: data.train",
        ),
        (
            "--config.model.random_init.d_model=3",
            "no such field model.random_init.d_model; nearest: model.random_init",
        ),
    ],
)
def test_a_misspelt_override_names_the_nearest_field(monkeypatch, argument, message):
    with pytest.raises(ValueError) as error:
        parse(monkeypatch, argument)
    assert str(error.value) == message


def test_overrides_of_fields_that_exist_pass(monkeypatch):
    config = parse(
        monkeypatch,
        "--config.rl.beta=0.1",
        "--noconfig.rl.drop_easy_prompts",
        "--config.data.train[0].items=3",
        "--",
        "--config.x=1",
    )
    assert config.is_locked


def test_the_command_fails_on_a_misspelt_override_before_it_computes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.spct_rl",
        "--config=experiments/configs/tiny.py",
        f"--workdir={tmp_path / 'run'}",
    ]
    run = subprocess.run(
        [*command, "--config.rl.bta=0.1"], cwd=REPO, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 1
    assert "no such field rl.bta; nearest: rl.beta" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rl.batch_size", 0, "rl.batch_size: expected a positive integer, got 0"),
        (
            "rl.batch_size",
            130,
            "rl.batch_size: expected a multiple of group_size = 4, as it counts rollouts, got 130",
        ),
        ("rft.micro_batch", 5, "rft.batch_size: expected a multiple of micro_batch = 5, got 32"),
        (
            "packing.rows",
            (0.5, 0.9),
            "packing.rows: expected growing multiples of the longest sequence, the last at least 1",
        ),
        ("rl.group_size", 1, "rl.group_size: expected an integer of at least 2, got 1"),
        ("rl.loss", "grop", "rl.loss: unknown name 'grop'; did you mean grpo"),
        ("rl.kl", "k4", "rl.kl: unknown name 'k4'"),
        (
            "rl.aggregation",
            "no.such.module:mean",
            "rl.aggregation: 'no.such.module:mean': no module named",
        ),
        (
            "rl.clip_high",
            0.0,
            "rl.clip_high: expected a number > 0, or None for the loss's own, got 0.0",
        ),
        ("rl.zero_variance", "skip", "rl.zero_variance: expected one of keep, drop, got 'skip'"),
        ("sampling.top_p", 0.0, "sampling.top_p: expected a number in (0, 1], got 0.0"),
        (
            "sampling.sampler",
            "vmap",
            "sampling.sampler: expected one of jit, pmap, shard_map, got 'vmap'",
        ),
        (
            "optimizer.warmup_steps",
            10**6,
            "optimizer.warmup_steps: expected at most 70, the updates of rl, got 1000000",
        ),
        (
            "lengths.buckets",
            (32, 64),
            "lengths.buckets: expected growing lengths that end in prompt = 80, got (32, 64)",
        ),
        ("lengths.prompt", "80", "lengths.prompt: expected a positive integer, got '80'"),
        ("lengths.prompt", None, "lengths.prompt: expected a positive integer, got None"),
        ("eval.ks", (8, 4), "eval.ks: expected growing integers from 1, against which gains are "),
        ("eval.swap", 1, "eval.swap: expected True or False, got 1"),
        ("eval.seeds", (0, 0), "eval.seeds: expected different integers, got (0, 0)"),
        (
            "eval.samples_per_order",
            3,
            "eval.samples_per_order: expected a divisor of the largest of ks = (1, 2, 4, 8, 16), ",
        ),
        (
            "sampling.rows",
            2,
            "sampling.rows: expected at least rl.group_size and eval.samples_per_order",
        ),
        (
            "eval.splits",
            ("test", "easy"),
            "eval.splits: expected some of hard, single, test, wide, got easy",
        ),
        ("eval.systems", (), "eval.systems: expected some of base, rft, grm, got none"),
        ("meta.policies", ("sft",), "meta.policies: expected some of base, rft, grm, got sft"),
        ("mesh.tensor", -1, "mesh.fsdp: expected at most one axis of -1"),
        ("mesh.fsdp", 0, "mesh.fsdp: expected a positive integer, or -1 for all devices that are "),
        ("model.path", "nowhere", "model.path: model 'nowhere': no such folder; expected 'tiny'"),
        ("model.path", None, "model.path: expected a model to start from, or else "),
        ("model.dtype", "float16", "model.dtype: expected one of float32, bfloat16, got 'float16'"),
        ("data.max_left_out", 1.5, "data.max_left_out: expected a number in [0, 1], got 1.5"),
        ("lora.targets", ("q", "w"), "lora.targets: expected some of q, k, v, o, gate, up, down, "),
        ("answer", "ten", "answer: expected one of scores, index, got 'ten'"),
        ("seed", "0", "seed: expected an integer from 0 to 2147483647, got '0'"),
        ("rft.trajectories", ("x",), "rft.trajectories: expected some of unhinted, hinted, got x"),
        ("rl.loss_args", {"delta": 1}, "rl.loss_args: grm_jax.losses.grpo:grpo has no setting "),
        ("rl.reward", "rul", "rl.reward: unknown name 'rul'; did you mean rule?"),
        ("log.sinks", ("jsonl", "csv"), "log.sinks: unknown name 'csv'"),
        ("log.example_every", 0, "log.example_every: expected a positive integer, got 0"),
        ("checkpoint.keep", 0, "checkpoint.keep: expected a positive integer, got 0"),
        (
            "tokenizer.path",
            "nowhere.model",
            "tokenizer.path: no such file or folder: nowhere.model",
        ),
        ("templates.meta", "meat", "templates.meta: template 'meat': no file"),
        ("data.train", "nowhere.jsonl", "data.train: no such file: nowhere.jsonl"),
        ("data.train", (), "data.train: expected the path of a file or a source, got nothing"),
        ("data.train", ({"world": "tarin"},), "data.train: world: expected one of train, test, "),
        (
            "data.train",
            ({"world": "train", "limit": 3},),
            "data.train: expected a source with world, items, seed, got limit",
        ),
        (
            "data.train",
            ({"path": "README.md", "limt": 3},),
            "data.train: source: field \"limt\": unknown; did you mean 'limit'?",
        ),
        ("data.train", "[{", "data.train: expected a source, or several: expected JSON, got [{"),
        (
            "data.train",
            ({"hub": "a/b", "path": "README.md"},),
            "data.train: expected one of 'path', 'hub' and 'world' in a source",
        ),
        ("data.general", (), "data.general: rft.general_fraction is "),
    ],
)
def test_a_wrong_value_is_named(runnable, field, value, message):
    with runnable.ignore_type():
        runnable.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError) as error:
        run_config.finish(runnable)
    assert any(problem.startswith(message) for problem in problems(error.value))


def problems(error: ValueError) -> list[str]:
    """The wrong fields that an error names: a lone one in its line, of several each in its own."""
    lines = str(error).removeprefix("1 wrong field in the config: ").splitlines()
    return [line.strip() for line in lines]


def wide(inputs, cfg, width=1.0):
    pass


def test_a_name_that_is_no_text_is_refused_before_it_is_to_be_written(runnable):
    config = runnable
    config.note = "r\udcfcn"
    with pytest.raises(ValueError, match='field "note": character 1 is half of a surrogate pair'):
        run_config.finish(config)


def test_a_setting_of_a_loss_is_of_the_type_that_the_loss_says(runnable):
    runnable.rl.loss = f"{__name__}:wide"
    with runnable.ignore_type():
        runnable.rl.loss_args = ml_collections.ConfigDict({"width": 2})
        run_config.finish(runnable)
        runnable.rl.loss_args = ml_collections.ConfigDict({"width": "2 px"})
    with pytest.raises(ValueError) as error:
        run_config.finish(runnable)
    assert str(error.value) == (
        "1 wrong field in the config: "
        f"rl.loss_args: {__name__}:wide, setting width: expected a number, got '2 px'"
    )


def test_all_wrong_values_are_named_at_once(runnable):
    run_config.finish(runnable)
    runnable.rl.beta = -1.0
    runnable.eval.ks = ()
    runnable.lengths.buckets = ()
    with pytest.raises(ValueError) as error:
        run_config.finish(runnable)
    head, *lines = str(error.value).splitlines()
    assert head == "3 wrong fields in the config"
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "eval.ks",
        "lengths.buckets",
        "rl.beta",
    ]


def test_sizes_of_a_random_model_are_fields_of_its_config(runnable):
    sizes = {"d_modle": 8, "n_layers": 2, "n_heads": 3, "n_kv_heads": 2, "head_dim": 4, "d_ff": 8}
    with runnable.ignore_type():
        runnable.model.update(path=None, random_init=ml_collections.ConfigDict(sizes))
    with pytest.raises(ValueError) as error:
        run_config.finish(runnable, files=False)
    assert str(error.value).splitlines()[1:] == [
        "  model.random_init.d_modle: no such field; nearest: d_model",
        "  model.random_init.d_model: expected an integer, got nothing",
    ]


def test_fields_and_sections_that_nobody_reads_are_named(runnable):
    runnable.rl.bta = 0.1
    runnable.eval.recrods = 3
    runnable.optimiser = runnable.optimizer
    del runnable.optimizer
    with pytest.raises(ValueError) as error:
        run_config.finish(runnable)
    text = str(error.value)
    assert "\n  rl.bta: no such field; nearest: beta" in text
    assert "\n  eval.recrods: no such field; nearest: records" in text
    assert "\n  optimizer: expected a section of this name, got None" in text
    assert "\n  optimiser: no such field; nearest: optimizer" in text


def test_sections_are_given_as_dataclasses(runnable):
    config = run_config.finish(runnable)
    assert run_config.section(config, "lengths") == Lengths(
        80, 128, (32, 48, 80), (48, 64, 96, 128)
    )
    assert run_config.section(config, "sampling") == Sampling(rows=256, sampler="shard_map")
    assert run_config.section(config, "model") == Numerics(scan_layers=False)
    assert run_config.section(config, "eval").ks == (1, 2, 4, 8, 16)
    assert run_config.section(config, "lora") == LoraConfig(0)
    assert run_config.section(config, "rl").updates == 70
    for name in SECTIONS["experiments.spct_rl"]:
        assert dataclasses.is_dataclass(run_config.section(config, name))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_right_but_for_its_files(name):
    run_config.finish(preset(name), files=False)


def test_a_comparison_has_names_that_can_be_folders():
    config = preset("tiny_evaluate")
    for systems, message in (
        ((), "systems: expected at least one description, a dict, got ()"),
        (({"kind": "length"},), 'systems: [0]: field "name": expected a name of its own'),
        (({"name": "a/b"},), 'systems: [0]: field "name": expected a name of its own'),
        (({"name": "a"}, {"name": "a"}), 'systems: [1]: field "name": expected a name of its own'),
    ):
        config.systems = systems
        with pytest.raises(ValueError) as error:
            run_config.finish(config)
        assert any(problem.startswith(message) for problem in problems(error.value))


def test_the_evaluation_inside_the_paper_is_checked():
    config = preset("tiny_paper")
    config.evaluate.eval.bootstrap = 1
    with pytest.raises(
        ValueError,
        match="^1 wrong field in the config: evaluate.eval.bootstrap: expected at least 100",
    ):
        run_config.finish(config)


@pytest.mark.parametrize(
    "name, script",
    [
        ("tiny", "experiments.spct_rl"),
        ("real_text", "experiments.spct_rl"),
        ("tiny_reward_model", "experiments.reward_model"),
        ("evaluate", "experiments.evaluate"),
        ("tiny_paper", "experiments.paper"),
    ],
)
def test_a_preset_of_another_script_is_said_at_once(monkeypatch, name, script):
    assert run_config.script_of(preset(name)) == script
    parse(monkeypatch, name=name, scripts=(script,))
    other = "experiments.evaluate" if name == "tiny" else "experiments.spct_rl"
    if other == script:
        other = "experiments.reward_model"
    with pytest.raises(ValueError) as error:
        parse(monkeypatch, name=name, scripts=(other,))
    assert str(error.value) == f"this is a preset of {script}, not of {other}"


@pytest.mark.parametrize("script", [*run_config.PRESETS, "experiments.plan"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_script_takes_its_own_presets_and_names_the_script_of_the_others(
    monkeypatch, name, script
):
    """Before anything is set up: as flags are parsed, of which this is all that can fail."""
    file = REPO / f"{script.replace('.', '/')}.py"
    source = (file if file.is_file() else file.with_suffix("") / "__main__.py").read_text()
    (own,) = re.findall(r"config_flags\.define_(?:config|preset)\((.*)\)", source)
    scripts = tuple(re.findall(r'"([^"]+)"', own))
    assert scripts == (("experiments.spct_rl",) if script == "experiments.plan" else (script,))
    theirs = run_config.script_of(preset(name))
    if theirs in scripts:
        parse(monkeypatch, name=name, scripts=scripts)
        return
    with pytest.raises(ValueError) as error:
        parse(monkeypatch, name=name, scripts=scripts)
    assert str(error.value) == f"this is a preset of {theirs}, not of {scripts[0]}"


def test_what_is_no_preset_names_the_fields_of_presets(monkeypatch, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n"
    )
    monkeypatch.setattr(sys, "argv", ["spct_rl"])
    with pytest.raises(ValueError, match=r"rft and rl and meta \(experiments.spct_rl\); kind and"):
        config_flags.Parser("config").parse(str(path))


COLUMNS = {"path": "a.jsonl", "columns": {"responses": ["chosen", "rejected"], "best": 0}}
SHOW = """
import json
from absl import app
from experiments import config_flags, run_config
CONFIG = config_flags.define_preset()
def main(_):
    config = run_config.finish(CONFIG.value, files=False)
    fields = {name: config.data[name] for name in ("train", "general")}
    fields |= config.data.eval.to_dict() | {"loss_args": config.rl.loss_args.to_dict()}
    print(json.dumps(fields | {"ks": config.eval.ks}))
app.run(main, flags_parser=config_flags.parse_flags)
"""


@pytest.mark.parametrize("name", ["tiny", "real_text"])
def test_sources_on_the_command_line(name, tmp_path):
    """A path, JSON of a source, JSON of several, repeated flags; whatever the preset has there."""
    (tmp_path / "own_loss.py").write_text("def loss(inputs, cfg, delta, kind):\n    pass\n")
    arguments = [
        f"--config=experiments/configs/{name}.py",
        f"--config.data.train={json.dumps(COLUMNS)}",
        "--config.data.train=b.jsonl",
        f"--config.data.general={json.dumps([COLUMNS, {'path': 'c.jsonl', 'limit': 3}])}",
        "--config.data.eval.test={'path': 'd.jsonl'}",
        "--config.eval.ks=[1, 2]",
        "--config.rl.loss=own_loss:loss",
        "--config.rl.loss_args.delta=0.5",
        "--config.rl.loss_args.kind=abc",
    ]
    run = subprocess.run(
        [sys.executable, "-c", SHOW, *arguments],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    fields = json.loads(run.stdout)
    assert fields["train"] == [COLUMNS, {"path": "b.jsonl"}]
    assert fields["general"] == [COLUMNS, {"path": "c.jsonl", "limit": 3}]
    assert fields["test"] == [{"path": "d.jsonl"}]
    assert fields["ks"] == [1, 2] and fields["loss_args"] == {"delta": 0.5, "kind": "abc"}


def test_the_page_shows_sources_that_are_read(tmp_path, monkeypatch):
    """docs/config.md: the same columns on the command line and in a preset."""
    page = (REPO / "docs/config.md").read_text()
    (tmp_path / "pairs.csv").write_text("question,good,bad\nTwo and two?,four,five\n")
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", page, re.S)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["spct_rl"])
    config = run_config.finish(config_flags.Parser("config").parse("mine.py"), files=False)
    (on_command_line,) = run_config.sources(re.search(r"data\.train='(.*)'", page)[1])
    assert config.data.train[0] == on_command_line
    (record,) = load_source(on_command_line)
    assert (record.responses, best_index(record.rewards)) == (("four", "five"), 0)


@pytest.mark.parametrize("name", ["tiny", "real_text"])
def test_a_preset_of_ones_own_has_sources_as_dicts_in_a_tuple(monkeypatch, tmp_path, name):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from experiments.configs import {name}\n"
        "def get_config():\n"
        f"    config = {name}.get_config()\n"
        f"    config.data.train = ({COLUMNS!r}, 'b.jsonl')\n"
        f"    config.data.eval.test = ({COLUMNS!r},)\n"
        "    return config\n"
    )
    monkeypatch.setattr(sys, "argv", ["spct_rl"])
    config = run_config.finish(config_flags.Parser("config").parse(str(path)), files=False)
    assert config.data.train == (COLUMNS, {"path": "b.jsonl"})
    assert config.data.eval.test == (COLUMNS,)


@pytest.mark.parametrize(
    "script, arguments, shown",
    [
        ("spct_rl", (), ("--workdir", "  rl.beta = 0.08\n      C.1: most stable of 0.00, 0.01")),
        ("spct_rl", ("--config=experiments/configs/tiny.py",), ("  rl.beta = 0.02\n      C.1: ",)),
        ("reward_model", (), ('  kind = \'bradley_terry\'\n      or "pair_rm", "cloud"',)),
        ("evaluate", (), ("  eval.bootstrap = 2000\n      resamples of each interval",)),
        (
            "paper",
            (),
            ("--out", "  widths = (64, 96)\n      sizes beside that of the shipped base"),
        ),
        (
            "plan",
            (),
            ("--topology", "slice to plan for", "  mesh.tensor = 4", "--[no]compile=True"),
        ),
    ],
)
def test_help_lists_flags_and_every_field_and_imports_no_jax(script, arguments, shown):
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"experiments.{script}", "--help", *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for text in shown:
        assert text in run.stdout
    assert not re.search(r"\| +(jax|transformers|optax)$", run.stderr, flags=re.M)


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_of_a_preset_is_explained(name):
    """By a comment of its own, or by that of its section. Sections need none."""
    about = config_help.comments(config_help.preset_path(config_help.REFERENCE))
    about |= config_help.comments(config_help.preset_path(name))
    if name != "tiny_paper":  # whose fields of `evaluate` are those of experiments.evaluate
        for field in config_help.fields(preset(name)):
            is_section = isinstance(get(preset(name), field), ml_collections.ConfigDict)
            assert is_section or field in about or field.rpartition(".")[0] in about, field


def test_losses_of_ones_own_are_accepted(runnable):
    runnable.rl.update(
        loss="grm_jax.losses.dapo:dapo", aggregation="token_mean", clip_low=0.2, clip_high=0.28
    )
    assert run_config.finish(runnable).rl.clip_high == 0.28


def test_a_finished_config_is_locked_and_has_sources_as_dicts(runnable, tmp_path):
    (tmp_path / "a.jsonl").touch()
    runnable.data.general = (str(tmp_path / "a.jsonl"),)
    done = run_config.finish(runnable)
    assert done.data.general == ({"path": str(tmp_path / "a.jsonl")},)
    with pytest.raises((AttributeError, KeyError)):
        done.rl.bta = 0.1


def test_the_digest_follows_what_can_change_results():
    digest = run_config.config_digest(preset("tiny"))
    assert re.fullmatch("[0-9a-f]{64}", digest) and digest == run_config.config_digest(
        preset("tiny")
    )
    same, other = preset("tiny"), preset("tiny")
    same.note, same.log.example_every, same.checkpoint.every, same.mesh.tensor = "again", 7, 3, 2
    same.sampling.update(rows=32, sampler="jit")
    same.eval.update(ks=(1, 2), records=7, temperature=0.5)
    same.data.max_left_out = 0.9
    other.rl.beta += 0.01
    assert run_config.config_digest(same) == digest != run_config.config_digest(other)
    other.rl.beta, other.seed = same.rl.beta, 1
    assert run_config.config_digest(other) != digest
    other.seed, other.sampling.top_k = 0, 5
    assert run_config.config_digest(other) != digest


def test_tiny_base_is_the_model_in_the_package():
    config = preset("tiny")
    assert (
        run_config.model_folder(config)
        == run_config.tokenizer_path(config)
        == REPO / "grm_jax/assets/tiny_base"
    )
    assert run_config.model_folder(preset("real_text")) is None


def commands() -> list:
    """Every command with --config=... in README, docs and the presets, its lines joined."""
    files = [
        REPO / "README.md",
        *sorted((REPO / "docs").glob("*.md")),
        *sorted((REPO / "experiments/configs").glob("*.py")),
    ]
    found = []
    for path in files:
        text = path.read_text().replace("\\\\\n", " ").replace("\\\n", " ")
        found += [
            pytest.param(path, line, id=f"{path.name}-{i}")
            for i, line in enumerate(re.findall(r".*--config=.*", text))
        ]
    return found


@pytest.mark.parametrize("page,command", commands())
def test_documented_commands_name_fields_that_exist(monkeypatch, tmp_path, page, command):
    path = re.search(r"--config=([\w./]+)", command)[1]
    if not (REPO / path).is_file():  # the page has its reader write it
        preset = re.search(rf"```python\n# {path}\n(.*?)```", page.read_text(), re.DOTALL)[1]
        path = str(tmp_path / path)
        pathlib.Path(path).write_text(preset)
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", ["spct_rl", *re.findall(r"--(?:no)?config\.\S+", command)])
    config_flags.Parser("config").parse(path)


def bash(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_a_python_that_is_too_old_is_refused(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    run = bash("source launch/env.sh; find_python", PYTHON=str(old))
    assert run.returncode == 1 and f"PYTHON={old} is not a Python >= 3.11" in run.stderr
    assert (
        bash("source launch/env.sh; find_python", PYTHON=sys.executable).stdout.strip()
        == sys.executable
    )


def test_the_thread_pool_grows_for_virtual_devices_only():
    show = "unset NPROC; source launch/env.sh; echo ${NPROC:-unset} $MALLOC_ARENA_MAX"
    assert bash(show, XLA_FLAGS="").stdout.split() == ["unset", "1"]
    assert bash(show, XLA_FLAGS="--xla_force_host_platform_device_count=8").stdout.split() == [
        "16",
        "1",
    ]


def test_missing_requirements_are_noticed(tmp_path):
    check = [sys.executable, str(REPO / "launch/missing.py")]
    (tmp_path / "met.txt").write_text(
        f"# a comment\nml-collections=={importlib.metadata.version('ml-collections')}\n"
    )
    (tmp_path / "other.txt").write_text("ml-collections==0.0.1\n")
    (tmp_path / "absent.txt").write_text("no-such-package==1.0\n")
    codes = [
        subprocess.run([*check, str(tmp_path / name)], timeout=60).returncode
        for name in ("met.txt", "other.txt", "absent.txt")
    ]
    assert codes == [0, 1, 1]


@pytest.mark.parametrize(
    "given,elements",
    [
        ("test,hard", ("test", "hard")),
        ("no_box,request_failed:timeout", ("no_box", "request_failed:timeout")),
        ("request_failed:timeout", ("request_failed:timeout",)),
        ('("a", "b")', ("a", "b")),
        ("1,2", (1, 2)),
        ("True,False", (True, False)),
        ("runs/a.jsonl", ("runs/a.jsonl",)),
        ("/data/Open QA/two words (1).json", ("/data/Open QA/two words (1).json",)),
    ],
)
def test_words_with_commas_between_them_are_elements(given, elements):
    assert config_flags._TupleParser().parse(given) == elements

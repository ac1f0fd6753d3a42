"""Presets, overrides and validation."""

import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest

from experiments import config_flags

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
def runnable(tmp_path, monkeypatch) -> ml_collections.ConfigDict:
    """The tiny preset with a model folder that holds what validation looks at."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(config_flags, "TINY_BASE", tmp_path)
    config = preset("tiny")
    config.templates.update(pointwise="pointwise", single="single", meta="meta")
    return config


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
    config_flags.finish(preset(name))


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
    config.data.train = str(
        data_dir / "rmb/RMB_dataset/BoN_set/Helpfulness/Open QA/Personal Opinion and Advice.json"
    )
    config.data.eval.test = str(data_dir / "llmbar/LLMBar/Natural/dataset.json")
    config.tokenizer.path = str(data_dir / "mistral_tokenizer/tokenizer.model.v1")
    done = config_flags.finish(config)
    assert done.data.eval.test.to_dict() == {"path": config.data.eval.test}
    assert done.data.train == ({"path": config.data.train},)
    config.data.eval.test = config.data.train
    with pytest.raises(
        ValueError,
        match=r"data\.eval\.test: expected other records than "
        r"data\.train, got the same file",
    ):
        config_flags.finish(config)


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["spct_rl", *arguments])
    return config_flags._Parser("config").parse(str(REPO / "experiments/configs/tiny.py"))


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
            "rl.batch_size: expected a multiple of rl.group_size "
            "= 4, as it counts rollouts, got 130",
        ),
        ("rft.micro_batch", 5, "rft.batch_size: expected a multiple of rft.micro_batch = 5, got "),
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
            "rl.steps: expected at least optimizer.warmup_steps = 1000000, got ",
        ),
        (
            "lengths.buckets",
            (32, 64),
            "lengths.buckets: expected growing lengths that end in lengths.prompt = ",
        ),
        ("eval.ks", (8, 4), "eval.ks: expected growing positive integers, got (8, 4)"),
        (
            "eval.samples_per_order",
            3,
            "eval.samples_per_order: expected a divisor of the largest of eval.ks = 16, got 3",
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
        ("mesh.tensor", -1, "mesh: expected at most one axis of -1"),
        (
            "model.path",
            "nowhere",
            "model.path: expected a Hugging Face folder with config.json, got nowhere",
        ),
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
        config_flags.finish(runnable)
    assert f"\n  {message}" in str(error.value)


def test_all_wrong_values_are_named_at_once(runnable):
    config_flags.finish(runnable)
    runnable.rl.beta = -1.0
    runnable.eval.ks = ()
    with pytest.raises(
        ValueError, match="2 wrong fields in the config\n  rl.beta: .*\n  eval.ks: .*"
    ):
        config_flags.finish(runnable)


def test_losses_of_ones_own_are_accepted(runnable):
    runnable.rl.update(
        loss="grm_jax.losses.dapo:dapo", aggregation="token_mean", clip_low=0.2, clip_high=0.28
    )
    assert config_flags.finish(runnable).rl.clip_high == 0.28


def test_a_finished_config_is_locked_and_has_sources_as_dicts(runnable, tmp_path):
    runnable.data.general = (str(tmp_path / "config.json"),)
    done = config_flags.finish(runnable)
    assert done.data.general == ({"path": str(tmp_path / "config.json")},)
    with pytest.raises((AttributeError, KeyError)):
        done.rl.bta = 0.1


def test_the_digest_follows_what_can_change_results():
    digest = config_flags.config_digest(preset("tiny"))
    assert re.fullmatch("[0-9a-f]{64}", digest) and digest == config_flags.config_digest(
        preset("tiny")
    )
    same, other = preset("tiny"), preset("tiny")
    same.note, same.log.example_every, same.checkpoint.every, same.mesh.tensor = "again", 7, 3, 2
    other.rl.beta += 0.01
    assert config_flags.config_digest(same) == digest != config_flags.config_digest(other)


def test_tiny_is_the_model_in_the_package():
    config = preset("tiny")
    assert (
        config_flags.model_folder(config)
        == config_flags.tokenizer_path(config)
        == REPO / "grm_jax/assets/tiny_base"
    )
    assert config_flags.model_folder(preset("real_text")) is None


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
            pytest.param(line, id=f"{path.name}-{i}")
            for i, line in enumerate(re.findall(r".*--config=.*", text))
        ]
    return found


@pytest.mark.parametrize("command", commands())
def test_documented_commands_name_fields_that_exist(monkeypatch, command):
    path = re.search(r"--config=([\w./]+)", command)[1]
    assert (REPO / path).is_file()
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", ["spct_rl", *re.findall(r"--(?:no)?config\.\S+", command)])
    config_flags._Parser("config").parse(path)


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

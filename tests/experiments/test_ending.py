"""Every script ends every foreseeable mistake with one last line on stderr, a status that is not 0,
and no traceback.
"""

import os
import pathlib
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
PRESETS = "experiments/configs"
# {script: the flags of a call that is right}
SCRIPTS = {
    "experiments.spct_rl": [f"--config={PRESETS}/tiny.py", "--workdir={tmp}/run"],
    "experiments.reward_model": [f"--config={PRESETS}/tiny_reward_model.py", "--workdir={tmp}/run"],
    "experiments.evaluate": [f"--config={PRESETS}/tiny_evaluate.py", "--workdir={tmp}/run"],
    "experiments.paper": [
        f"--config={PRESETS}/tiny_paper.py",
        "--workdir={tmp}/run",
        "--out={tmp}/out.md",
    ],
    "experiments.plan": [f"--config={PRESETS}/tiny.py", "--topology=h100:1", "--out={tmp}/run"],
    "experiments.sweep": [f"--config={PRESETS}/tiny.py", "--workdir={tmp}/run", "--sweep.seed=0"],
    "experiments.build_base": ["--workdir={tmp}/run", "--out={tmp}/out"],
    "experiments.build_base.judge": ["--workdir={tmp}/run", "--out={tmp}/out"],
    "grm_jax": ["judge", "{tmp}/records.jsonl"],
}
PRESET_SCRIPTS = [name for name, words in SCRIPTS.items() if words[0].startswith("--config")]


@pytest.fixture
def script(tmp_path):
    """script(NAME, WORD...): the result of a script with these words behind a right call's; a word
    that names a flag again takes its place.
    """

    def run(name: str, *words: str, right: bool = True, shell: str = ""):
        own = [word.format(tmp=tmp_path) for word in SCRIPTS[name] if right]
        given = {word.partition("=")[0] for word in words}
        own = [word for word in own if word.partition("=")[0] not in given]
        command = [sys.executable, "-m", name, *own, *words]
        if shell:
            command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
        environment = dict(os.environ)
        for variable in ("GRM_JAX_TRACEBACK", "XLA_FLAGS"):
            environment.pop(variable, None)
        return subprocess.run(
            command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


def last_line(done, *words: str) -> str:
    """The one line of ours, which holds these words."""
    said = done.stderr.strip().splitlines()
    assert done.returncode not in (0, -6, -11), done
    assert "Traceback" not in done.stderr, done.stderr
    assert said and all(word in said[-1] for word in words), (words, done.stderr)
    return said[-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_wrong_flag(script, name):
    last_line(script(name, "--nonsense=1"), "nonsense")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_word_that_is_no_flag(script, name):
    last_line(script(name, "nonsense"), "nonsense")


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_at_all(script, name):
    if "--workdir={tmp}/run" in SCRIPTS[name][:1]:
        pytest.skip("its flags have defaults")
    last_line(
        script(name, right=False),
        "required" if name in ("experiments.sweep", "grm_jax") else "expected",
    )


@pytest.mark.parametrize("name", PRESET_SCRIPTS)
def test_a_wrong_preset(script, tmp_path, name):
    broken, syntax, other = (tmp_path / f"{n}.py" for n in ("broken", "syntax", "other"))
    broken.write_text("def get_config():\n    return undefined\n")
    syntax.write_text("def get_config(:\n")
    other.write_text("def get_config():\n    return {}\n")
    last_line(script(name, f"--config={tmp_path / 'no.py'}"), "no.py", "no such file")
    last_line(script(name, f"--config={broken}"), "broken.py", "line 2", "'undefined'")
    if name == "experiments.spct_rl":  # one parser reads the presets of all
        last_line(script(name, f"--config={tmp_path}"), str(tmp_path), "no such file")
        last_line(script(name, f"--config={syntax}"), "syntax.py", "line 1", "SyntaxError")
        last_line(script(name, f"--config={other}"), "other.py", "ConfigDict, got dict")
    if name != "experiments.sweep":  # which takes the presets of all
        of_another = "tiny_evaluate" if name != "experiments.evaluate" else "tiny"
        done = script(name, f"--config={PRESETS}/{of_another}.py")
        last_line(done, "this is a preset of experiments.", f"not of {name.split('plan')[0]}")


@pytest.mark.parametrize("name", PRESET_SCRIPTS)
def test_a_wrong_field_or_value(script, name):
    last_line(script(name, "--config.nonsense=1"), "no such field nonsense")
    section = "evaluate." if name == "experiments.paper" else ""
    last_line(script(name, f"--config.{section}lengths.prompt=x"), "lengths.prompt", "'x'")
    if name in ("experiments.spct_rl", "experiments.sweep"):  # others check by the same function
        done = script(name, "--config.lengths.prompt=-1")
        assert "lengths.prompt: expected a positive integer, got -1" in done.stderr
        last_line(done, "lengths.")


@pytest.mark.parametrize("name", [n for n in SCRIPTS if "--workdir={tmp}/run" in SCRIPTS[n]])
def test_a_work_folder_that_cannot_be_one(script, tmp_path, name):
    file = tmp_path / "file"
    file.write_text("")
    if name not in ("experiments.reward_model", "experiments.paper"):  # as experiments.spct_rl
        last_line(script(name, f"--workdir={file}"), str(file))
    if name in PRESET_SCRIPTS and name != "experiments.sweep":
        last_line(script(name, "--workdir="), "--workdir=", "expected a folder")
        last_line(script(name, "--workdir=gs://bucket/run"), "gs://bucket/run", "expected a folder")


def test_plan_names_what_it_was_asked_for(script, tmp_path):
    (tmp_path / "file").write_text("")
    plan = "experiments.plan"
    last_line(script(plan, "--programs=nothing"), "--programs: expected some of", "got nothing")
    last_line(script(plan, f"--out={tmp_path}/file"), f"{tmp_path}/file: is a file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(script, tmp_path):
    tmp_path.chmod(0o500)
    try:
        done = script("experiments.spct_rl", f"--workdir={tmp_path}/run")
    finally:
        tmp_path.chmod(0o700)
    last_line(done, f"{tmp_path}/run: no permission")


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(script, tmp_path):
    """No file may grow beyond 1 MB; what Orbax has to say of it stands above the last line."""
    micro = pathlib.Path(__file__).with_name("micro_reward_model.py")
    done = script("experiments.reward_model", f"--config={micro}", shell="ulimit -f 1000")
    said = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert said[-1].startswith(f"error: {tmp_path}/run/checkpoints/bradley_terry/2")
    assert said[-1].endswith(
        ": no space left to write; free some, or choose another folder. What is written stays, "
        "and the same command goes on from there"
    )


def test_a_traceback_is_shown_where_it_is_asked_for(tmp_path):
    code = "from experiments import ending; ending.install(); open('/no/such')"
    for asked in ("", "1"):
        environment = os.environ | {"GRM_JAX_TRACEBACK": asked}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1 and ("Traceback" in done.stderr) == bool(asked)
        assert done.stderr.splitlines()[-1] == "error: /no/such: no such file or folder"


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_letter_that_the_locale_has_not_ends_nothing(locale):
    code = """
from experiments import ending
ending.install()
print("a judged example: \\u4f60\\u597d")
"""
    environment = os.environ | locale
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a judged example: \\u4f60\\u597d\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path, closed):
    code = """
import os, sys
from experiments import ending
ending.install()
file = open("file", "w")
print("words"), print("an error", file=sys.stderr, flush=True), os.write(2, b"a library in C")
file.write(f"{min(3, file.fileno())} {sys.stdin.read()}"), file.flush()
raise OSError(28, "full", "here")
"""
    shell = f'cd {tmp_path}; "$@" {closed}'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "file").read_text() == "3 " and done.returncode == 1
    assert done.stderr == "" or last_line(done, "error: here: no space left")


def test_what_libraries_say_at_the_end_stands_above_the_last_line():
    code = """
from experiments import ending
ending.install()
import atexit, sys
atexit.register(lambda: print("a library has its word", file=sys.stderr))
class Late:
    def __del__(self):
        print("a later word", file=sys.stderr)
late = Late()
late.itself = late
{}
"""
    for last, status, line in (
        ("{}['a']", 1, "error: KeyError: 'a', in "),
        ("raise KeyboardInterrupt", 130, "error: stopped by SIGINT"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(last)], cwd=REPO, capture_output=True, text=True
        )
        *before, said = done.stderr.splitlines()
        assert done.returncode == status and said.startswith(line), done.stderr
        assert "a library has its word" in before and ("Traceback" in done.stderr) == (status == 1)

"""The commands of speed/ print a line of JSON with the fields that others read. No figure is
looked at: the machine is busy with tests.
"""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO

NUMBERS = {
    "speed.sample": (
        "tokens_per_s first_call_s second_process_first_call_s peak_rss_gib computed_tokens "
        "needed_tokens"
    ),
    "speed.step": "seconds computed_tokens needed_tokens loss grad_norm peak_rss_gib",
    "speed.judge": "records_per_s prefilled_tokens decoded_tokens needed_tokens peak_rss_gib",
}


def run(environment, module, *flags):
    """The lines that a command prints, their numbers checked."""
    lines = lines_of(environment, module, "--rounds=1", *flags)
    for line in lines:
        check_numbers(module, line)
    return lines


def lines_of(environment, module, *flags):
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_numbers(module, line):
    for name in NUMBERS[module].split():
        assert isinstance(line[name], (int, float)), name


@pytest.fixture(scope="module")
def environment():
    """One device, as in use, and programs that compile fast: 8 devices are for tests of meshes."""
    import os

    flags = "--xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "SPEED_TURNS": "0", "JAX_PLATFORMS": "cpu"}


@pytest.fixture
def lengths(tmp_path):
    """Eight rows, of unequal lengths."""
    path = tmp_path / "lengths.json"
    rows = [{"prompt": 6 + 5 * i, "responses": 2, "completion": 3 + i % 4} for i in range(8)]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.slow
def test_step(environment, lengths):
    """Packed; padded, the same batch is counted to need the same."""
    tasks = ("rft", "rl", "bradley_terry", "meta")
    common = f"--lengths={lengths}", "--rows=4", "--prompts=2", "--group=2", "--row_lengths=2"
    common += tuple(f"--task={task}" for task in tasks)
    packed = run(environment, "speed.step", "--model=tiny_base", *common)
    assert [line["case"] for line in packed] == list(tasks)
    flags = (*common, "--rounds=0", "--packed=false")
    for line, padded in zip(packed, lines_of(environment, "speed.step", *flags), strict=True):
        assert line["needed_tokens"] == padded["needed_tokens"]
        assert line["needed_tokens"] < line["computed_tokens"]


@pytest.mark.slow
def test_step_with_rollouts(environment, lengths):
    flags = "--task=rl", "--rollout", "--beta=0.04", f"--lengths={lengths}", "--prompts=2"
    (line,) = run(environment, "speed.step", "--model=tiny_base", "--group=2", *flags)
    assert {"rollout_s", "reference_s", "update_s"} <= line.keys()


def test_judge(environment, tmp_path):
    path = tmp_path / "records.jsonl"
    texts = ("Sort the list: 1.fox 2.ant", "Reverse the list: 1.fox 2.ant")
    path.write_text(
        "".join(
            json.dumps({"id": text, "conversation": turns(text), "responses": ["1.ant", "1.fox"]})
            + "\n"
            for text in texts
        )
    )
    (line,) = run(environment, "speed.judge", "--model=tiny", f"--records={path}", "--samples=4")
    assert line["records"] == 2
    assert line["needed_prefill"] + line["needed_decode"] == line["needed_tokens"]
    assert line["needed_prefill"] < line["prefilled_tokens"]


def turns(text):
    return [{"role": "user", "content": text}]


@pytest.mark.slow
def test_compare_runs_contenders_in_turns(environment, tmp_path):
    """Sampling of a queue, on tiny_base; the peers are not installed, which is said."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "129m").symlink_to(REPO / "grm_jax/assets/tiny_base")
    queue = [{"prompt_ids": [11] * n, "stops": [2, n]} for n in (5, 9)]
    (inputs / "queue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queue))
    flags = "--cases=queue", "--rounds=2", f"--out={tmp_path / 'out.jsonl'}"
    command = [sys.executable, "-m", "speed.compare", str(inputs), *flags]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    absent, ours, batch, ratios = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert absent["contender"] == "llama.cpp" and "--peers names no folder" in absent["absent"]
    assert [len(line["tokens_per_s_rounds"]) for line in (ours, batch)] == [2, 2]
    check_numbers("speed.sample", ours)
    assert ours["needed_tokens"] == 5 + 9 + (2 + 5) + (2 + 9)
    assert ours["check"] == batch["check"] and ratios["same_weights"]
    ratio = ratios["times_as_fast_as"]["batch sampler"]["all"][0]
    rates = [line["tokens_per_s_rounds"][0] for line in (ours, batch)]
    assert ratio == pytest.approx(rates[0] / rates[1], rel=1e-3)


@pytest.mark.slow
def test_gpu_on_this_machine(environment, tmp_path):
    """The command for a GPU, with shapes that a CPU runs."""
    out = tmp_path / "gpu.jsonl"
    small = "--shape=tiny", "--length=256", "--rounds=1", "--copied_mib=16", "--new_tokens=4"
    command = ["bash", "speed/gpu.sh", str(out), *small]
    env = environment | {"PYTHON": sys.executable}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    cases = ["gpu copy", "gpu decode", "gpu decode", "gpu rft", "gpu rl"]
    assert [line["case"] for line in lines] == cases
    assert all(line["mfu"] > 0 for line in lines[3:])

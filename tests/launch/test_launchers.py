"""Launchers: they parse, shellcheck is content, a dry run prints just what would be done without
any cloud tool, mistakes are named.
"""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*REPO.glob("launch/*.sh"), REPO / "launch/slurm.sbatch"])
DOC = (REPO / "docs/launch.md").read_text()
COMMANDS = re.findall(r"^    (.+)$", DOC, flags=re.MULTILINE)
TOOLS = "bash env dirname basename awk cat date git hostname mkdir python3 sed tail".split()
JOB = ["--", "--config=experiments/configs/tiny.py", "--workdir=/share/run"]
SSH = "+ gcloud compute tpus tpu-vm ssh grm --zone=z --worker=all"


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory) -> str:
    """A PATH with the shell's usual tools, and neither gcloud, kubectl, docker nor srun."""
    folder = tmp_path_factory.mktemp("bin")
    for tool in TOOLS:
        target = sys.executable if tool == "python3" else shutil.which(tool)
        (folder / tool).symlink_to(target)
    return str(folder)


@pytest.fixture
def launch(bare_path, tmp_path):
    """launch(WORD...): the result of `bash WORD...` in the repository, with nothing else in its
    environment.
    """
    environment = {"PATH": bare_path, "HOME": str(tmp_path)}
    return lambda *words: subprocess.run(
        ["bash", *words], cwd=REPO, env=environment, capture_output=True, text=True
    )


def dry(launch, *words) -> list[str]:
    at = words.index("--") if "--" in words else len(words)
    done = launch(*words[:at], "--dry-run", *words[at:])
    assert done.returncode == 0 and not done.stderr.replace(
        "note: the working tree has changes", "", 1
    ).startswith("bash"), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck():
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    if not shellcheck.is_file():
        pytest.skip("shellcheck is not installed; requirements-test.txt has it")
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_multi_gpu(launch):
    environment, supervise = (
        "+ exec env XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 "
        "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true JAX_COMPILATION_CACHE_DIR=",
        ".venv/bin/python launch/supervise.py --logs=/share/run/logs --restarts=",
    )
    job = (
        "-- .venv/bin/python -m experiments.spct_rl --config=experiments/configs/tiny.py "
        "--workdir=/share/run"
    )
    install, run = dry(launch, "launch/multi_gpu.sh", *JOB)
    assert install == "+ bash launch/install.sh launch/requirements-cuda12.txt"
    assert re.fullmatch(
        re.escape(environment) + r"\S+/.cache/grm_jax " + re.escape(f"{supervise}5 {job}"), run
    )

    *_, run = dry(
        launch, "launch/multi_gpu.sh", "--gpus=0,1", "--restarts=2", "--bucket=gs://b/r", *JOB
    )
    assert run.endswith(
        f"grm_jax CUDA_VISIBLE_DEVICES=0\\,1 {supervise}2 --bucket=gs://b/r --workdir=/share/run "
        f"{job}"
    )
    *_, run = dry(
        launch,
        "launch/multi_gpu.sh",
        "--coordinator=a:8476",
        "--num_processes=2",
        "--process_id=1",
        *JOB,
    )
    assert (
        f" GRM_JAX_COORDINATOR=a:8476 GRM_JAX_NUM_PROCESSES=2 GRM_JAX_PROCESS_ID=1 {supervise}5"
    ) in run


def test_slurm(launch):
    install, mkdir, step, signal = dry(
        launch, "launch/slurm.sbatch", "--restarts=1", "--job=experiments.reward_model", *JOB
    )
    assert install == (
        "+ srun --nodes=1 --ntasks=1 bash launch/install.sh launch/requirements-cuda12.txt"
    )
    assert mkdir == "+ mkdir -p /share/run/logs"
    srun = (
        "srun --kill-on-bad-exit=1 --open-mode=append --output=/share/run/logs/%N.log env "
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 "
    )
    assert step.startswith(f"up to 2 times in which it comes no further: {srun}")
    assert step.endswith(
        " PYTHONUNBUFFERED=1 .venv/bin/python -m experiments.reward_model "
        "--config=experiments/configs/tiny.py --workdir=/share/run"
    )
    assert signal == (
        "on SIGUSR1, before the time limit: scancel --signal=TERM $SLURM_JOB_ID, wait, scontrol "
        "requeue $SLURM_JOB_ID"
    )
    header = re.findall(
        r"^#SBATCH "
        r"--([\w-]+)(?:=(\S+))?$",
        (REPO / "launch/slurm.sbatch").read_text(),
        flags=re.MULTILINE,
    )
    assert dict(header) == {
        "job-name": "grm_jax",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "time": "24:00:00",
        "signal": "B:USR1@300",
        "requeue": "",
        "open-mode": "append",
        "output": "slurm-%j.out",
    }


def test_tpu_pod(launch):
    pod = ("launch/tpu_pod.sh",)
    tail = ("grm", "--zone=z")
    assert dry(launch, *pod, "create", *tail, "--accelerator=v5p-128", "--spot", "--project=p") == [
        "+ gcloud compute tpus tpu-vm create grm --zone=z --project=p "
        "--accelerator-type=v5p-128 --version=v2-alpha-tpuv5 --spot"
    ]
    assert dry(launch, *pod, "install", *tail, "--mount=gs://b/f") == [
        "+ mkdir -p .cache",
        "+ git archive --format=tar.gz --output=.cache/grm_jax.tar.gz HEAD",
        "+ gcloud compute tpus tpu-vm scp .cache/grm_jax.tar.gz grm:grm_jax.tar.gz --zone=z "
        "--worker=all",
        f"{SSH} {shlex_bash('--command=mkdir -p grm_jax && tar -xzf grm_jax.tar.gz -C grm_jax')}",
        f"{SSH} {shlex_bash('--command=cd grm_jax && bash launch/tpu_host.sh install gs://b/f')}",
    ]
    start = (
        "start --restarts=5 --job=experiments.spct_rl --env=A=b -- "
        "--config=experiments/configs/tiny.py --workdir=/share/run"
    )
    assert dry(launch, *pod, "run", *tail, "--env=A=b", *JOB) == [
        f"{SSH} {shlex_bash(f'--command=cd grm_jax && bash launch/tpu_host.sh {start}')}"
    ]
    for action in ("status", "stop"):
        assert dry(launch, *pod, action, *tail) == [
            f"{SSH} {shlex_bash(f'--command=cd grm_jax && bash launch/tpu_host.sh {action}')}"
        ]
    assert dry(launch, *pod, "logs", *tail, "--worker=3", "--lines=9") == [
        f"{SSH.replace('all', '3')} "
        f"{shlex_bash('--command=cd grm_jax && bash launch/tpu_host.sh logs 9')}"
    ]
    assert dry(launch, *pod, "delete", *tail) == [
        "+ gcloud compute tpus tpu-vm delete grm --zone=z --quiet"
    ]
    lines = dry(
        launch,
        *pod,
        "keep",
        *tail,
        "--accelerator=v6e-64",
        "--mount=s:/e",
        "--",
        "--config=c",
        "--workdir=/mnt/grm_jax/r",
    )
    assert lines[0].endswith("--accelerator-type=v6e-64 --version=v2-alpha-tpuv6e")
    assert lines[-3].startswith("if it is PREEMPTED") and len(lines) == 12


def shlex_bash(word: str) -> str:
    """The word as bash's printf %q prints it."""
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", word)


def test_gke(launch):
    options = (
        "--image=r/g:1",
        "--tpu=tpu-v5p-slice:4x4x4",
        "--volume=gs://b",
        "--",
        "--config=c",
        "--workdir=/data/r",
    )
    delete, apply, *yaml = dry(launch, "launch/gke.sh", "run", "grm", *options)
    assert (delete, apply) == (
        "+ kubectl delete jobset grm --ignore-not-found --wait",
        "+ kubectl apply --filename=- with",
    )
    assert (
        yaml == launch("launch/gke.sh", "render", "grm", *options).stdout.splitlines()
        and "kind: JobSet" in yaml
    )
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=grm"
    assert dry(launch, "launch/gke.sh", "logs", "grm", "--lines=7") == [
        f"+ kubectl logs {selector} --container=job --prefix --tail=7 --max-log-requests=512"
    ]
    assert dry(launch, "launch/gke.sh", "status", "grm") == [
        f"+ kubectl get jobsets\\,pods {selector} --output=wide"
    ]
    assert dry(launch, "launch/gke.sh", "stop", "grm") == ["+ kubectl delete jobset grm"]


GKE = ["launch/gke.sh", "run", "grm", "--image=i", "--volume=gs://b"]
POD = ["launch/tpu_pod.sh"]
SECOND = ["launch/multi_gpu.sh", "--coordinator=a:1", "--num_processes=2"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["launch/multi_gpu.sh"], "expected -- and the arguments of the job behind the options"),
        (["launch/multi_gpu.sh", "--gpu=0", *JOB], "--gpu=0: not an option of this launcher"),
        (["launch/multi_gpu.sh", "--config=c"], "The job's own arguments stand behind --"),
        (
            ["launch/multi_gpu.sh", "--", "--config=c"],
            "expected --workdir=FOLDER among the arguments of the job",
        ),
        (
            ["launch/multi_gpu.sh", "--", "--config=c", "--workdir=gs://b/r"],
            "--workdir=gs://b/r: expected a folder",
        ),
        (
            ["launch/multi_gpu.sh", "--restarts=many", *JOB],
            "--restarts: expected a whole number, got 'many'",
        ),
        (
            ["launch/multi_gpu.sh", "--num_processes=2", *JOB],
            "expected all of --coordinator, --num_processes and --process_id, or none",
        ),
        (
            ["launch/multi_gpu.sh", "--coordinator=a", "--num_processes=2", "--process_id=1", *JOB],
            "--coordinator: expected HOST:PORT, got 'a'",
        ),
        (
            [*SECOND, "--process_id=2", *JOB],
            "--process_id: expected a number below --num_processes=2",
        ),
        ([*SECOND, "--process_id=1", "--bucket=gs://b", *JOB], "--bucket: only for one machine"),
        (["launch/slurm.sbatch", *JOB], "expected to be run by sbatch, or with --dry-run"),
        (["launch/slurm.sbatch", "--nodes=2", *JOB], "--nodes=2: not an option of this launcher"),
        (
            [*POD, "up", "grm"],
            "expected an action (create, install, run, status, logs, stop, delete or keep), got "
            "'up'",
        ),
        (
            [*POD, "run", "--zone=z", *JOB],
            "expected the name of the slice behind 'run', got '--zone=z'",
        ),
        ([*POD, "run", "grm", *JOB], "expected --zone=ZONE"),
        ([*POD, "run", "grm", "--zone=z"], "expected -- and the arguments of the job"),
        ([*POD, "create", "grm", "--zone=z"], "expected --accelerator=TYPE"),
        (
            [*POD, "create", "grm", "--zone=z", "--accelerator=v4-8"],
            "its image is not known here; give --version=IMAGE",
        ),
        (
            [*POD, "install", "grm", "--zone=z", "--mount=/data"],
            "--mount: expected SERVER:/EXPORT or gs://BUCKET[/FOLDER], got '/data'",
        ),
        (
            [*POD, "keep", "grm", "--zone=z", "--mount=s:/e", *JOB],
            "--workdir=/share/run: expected a folder in /mnt/grm_jax",
        ),
        (["launch/tpu_host.sh", "start", "--job=m"], "expected -- and the arguments of the job"),
        (
            ["launch/gke.sh", "apply", "grm"],
            "expected an action (run, render, status, logs or stop), got 'apply'",
        ),
        ([*GKE, *JOB], "expected one of --tpu and --gpu"),
        ([*GKE, "--tpu=v5p", *JOB], "--tpu: expected ACCELERATOR:TOPOLOGY"),
        (
            [*GKE, "--tpu=tpu-v5-lite-podslice:2x3", *JOB],
            "6 chips are not a number of hosts of --chips-per-host=4",
        ),
        ([*GKE, "--gpu=nvidia-h100-80gb:8", *JOB], "and --hosts=NODES"),
        (
            [*GKE, "--tpu=tpu-v5p-slice:2x2x2", *JOB],
            "expected --workdir=/data/... among the arguments of the job",
        ),
        (
            [*GKE, "--tpu=tpu-v5p-slice:2x2x2", "--volume=/data", *JOB],
            "--volume: expected gs://BUCKET or pvc:CLAIM, got '/data'",
        ),
        (
            [*GKE, "--tpu=tpu-v5p-slice:2x2x2", "--topology=4x4", *JOB],
            "unrecognized arguments: --topology=4x4",
        ),
    ],
)
def test_mistakes_are_named(launch, words, message):
    done = launch(*words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "command not found" not in done.stderr and "unbound variable" not in done.stderr


@pytest.mark.parametrize(
    "script", ["launch/multi_gpu.sh", "launch/slurm.sbatch", "launch/tpu_pod.sh", "launch/gke.sh"]
)
def test_help_names_every_option(launch, script):
    options = set(
        re.findall(r"^ +(--[\w-]+)(?==\S*\)|\))", (REPO / script).read_text(), flags=re.MULTILINE)
    ) - {"--help", "--"}
    text = launch(script, "--help").stdout
    assert options and [option for option in options if option not in text] == []


def test_the_page_has_commands_for_every_launcher():
    assert {
        word for command in COMMANDS for word in shlex.split(command) if word.startswith("launch/")
    } >= {
        "launch/tpu_pod.sh",
        "launch/gke.sh",
        "launch/slurm.sbatch",
        "launch/multi_gpu.sh",
        "launch/install.sh",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page(launch, command):
    program, *words = shlex.split(command)
    for preset in re.findall(r"--config=(\S+)", command):
        assert (REPO / preset).is_file()
    if program == "sbatch":
        words = words[words.index("launch/slurm.sbatch") :]
    if program == "docker":
        assert words[0] == "push" or (
            words[0] == "build"
            and words[-1] == "."
            and (REPO / words[1].removeprefix("--file=")).is_file()
        )
    elif words[0] == "launch/install.sh":
        assert all((REPO / word).is_file() for word in words)
    elif program in ("bash", "sbatch"):
        assert dry(launch, *words)
    else:
        assert program == "tail"


def test_links_and_files_of_the_page():
    named = re.findall(r"`((?:launch|grm_jax|experiments)/[\w./]+)`", DOC)
    assert len(named) >= 8 and [path for path in named if not (REPO / path).exists()] == []

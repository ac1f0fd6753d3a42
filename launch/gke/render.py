r"""Fills in launch/gke/jobset.yaml and prints it; launch/gke.sh calls this.

    python launch/gke/render.py NAME --image=IMAGE --volume=gs://BUCKET \
        --tpu=tpu-v5p-slice:4x4x4 -- --config=... --workdir=/data/...
"""

import argparse
import json
import math
import pathlib
import re
import string
import sys

TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml")
COORDINATOR_PORT = 8476
# every host sees what the others wrote
GCSFUSE_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,rename-dir-limit=100000"


def parse_args(argv: list[str]) -> argparse.Namespace:
    usage = "%(prog)s ACTION NAME [options] -- --config=PRESET --workdir=/data/RUN"
    parser = argparse.ArgumentParser(prog="launch/gke.sh", allow_abbrev=False, usage=usage)
    parser.add_argument("name")
    parser.add_argument(
        "--image", required=True, help="made of launch/docker, pushed where the cluster finds it"
    )
    parser.add_argument(
        "--tpu",
        help="ACCELERATOR:TOPOLOGY as GKE's node labels have them, such as tpu-v5p-slice:4x4x4",
    )
    parser.add_argument(
        "--chips-per-host",
        type=int,
        default=4,
        help="8 for a lone host of 8 chips, such as ct5lp-hightpu-8t",
    )
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--gpu", help="ACCELERATOR:COUNT a node, such as nvidia-h100-80gb:8")
    parser.add_argument("--hosts", type=int, help="number of GPU nodes")
    parser.add_argument(
        "--volume", required=True, help="gs://BUCKET or pvc:CLAIM, at /data in every pod"
    )
    parser.add_argument(
        "--service-account",
        default="default",
        help="of Kubernetes; for a bucket one that may write to it",
    )
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument(
        "--env", action="append", default=[], help="NAME=VALUE in the pods' environment; several"
    )
    parser.add_argument("--job", default="experiments.spct_rl")
    own, job = (
        (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    )
    args = parser.parse_args(own)
    args.arguments = job
    if problem := next(problems(args), None):
        parser.error(problem)
    return args


def problems(args):
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
        yield (
            f"name {args.name!r}: expected at most 40 small letters, digits and -, the first a "
            "letter"
        )
    for name in ("chips_per_host", "slices", "hosts"):
        if (value := getattr(args, name)) is not None and value < 1:
            yield f"--{name.replace('_', '-')}: expected at least 1, got {value}"
    if args.restarts < 0:
        yield f"--restarts: expected at least 0, got {args.restarts}"
    if (args.tpu is None) == (args.gpu is None):
        yield "expected one of --tpu and --gpu"
    if args.tpu and not re.fullmatch(r"[\w-]+:[1-9]\d*x[1-9]\d*(x[1-9]\d*)?", args.tpu):
        yield f"--tpu: expected ACCELERATOR:TOPOLOGY, such as tpu-v5p-slice:4x4x4, got {args.tpu!r}"
    if args.tpu and (chips(args.tpu) % args.chips_per_host or args.hosts):
        yield (
            f"--tpu={args.tpu}: {chips(args.tpu)} chips are not a number of hosts of "
            f"--chips-per-host={args.chips_per_host}; --hosts is for --gpu"
        )
    if args.gpu and (not re.fullmatch(r"[\w-]+:[1-9]\d*", args.gpu) or not args.hosts):
        yield (
            "--gpu: expected ACCELERATOR:COUNT, such as nvidia-h100-80gb:8, and --hosts=NODES, "
            f"got {args.gpu!r}"
        )
    if args.gpu and args.slices != 1:
        yield "--slices: only for --tpu"
    if not re.fullmatch(r"gs://[\w.-]+|pvc:[\w.-]+", args.volume):
        yield f"--volume: expected gs://BUCKET or pvc:CLAIM, got {args.volume!r}"
    if wrong := [pair for pair in args.env if not re.fullmatch(r"\w+=.*", pair)]:
        yield f"--env: expected NAME=VALUE, got {wrong[0]!r}"
    if not any(argument.startswith("--workdir=/data/") for argument in args.arguments):
        yield (
            "expected --workdir=/data/... among the arguments of the job, behind --: it has to "
            "lie on the --volume"
        )


def chips(tpu: str) -> int:
    return math.prod(int(size) for size in tpu.split(":")[1].split("x"))


def render(args: argparse.Namespace) -> str:
    """Writes the YAML of a JobSet.

    For TPU a replicated job a slice, a pod a host; for GPU a pod a node.
    """
    kind, detail = (args.tpu or args.gpu).split(":")
    workdir = next(
        argument for argument in args.arguments if argument.startswith("--workdir=")
    ).removeprefix("--workdir=")
    env = [{"name": "JAX_COMPILATION_CACHE_DIR", "value": "/tmp/jax_cache"}]
    if args.tpu:  # GKE tells the hosts of a slice about each other, and JAX reads that
        hosts, resource, count = (
            chips(args.tpu) // args.chips_per_host,
            "google.com/tpu",
            args.chips_per_host,
        )
        node_selector = {
            "cloud.google.com/gke-tpu-accelerator": kind,
            "cloud.google.com/gke-tpu-topology": detail,
        }
        # a node pool is a slice
        annotations = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    else:
        hosts, resource, count = args.hosts, "nvidia.com/gpu", int(detail)
        node_selector, annotations = {"cloud.google.com/gke-accelerator": kind}, {}
        index = {
            "fieldRef": {
                "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            }
        }
        env += [
            # a JobSet's name for a pod
            {
                "name": "GRM_JAX_COORDINATOR",
                "value": f"{args.name}-workers-0-0.{args.name}:{COORDINATOR_PORT}",
            },
            {"name": "GRM_JAX_NUM_PROCESSES", "value": str(hosts)},
            {"name": "GRM_JAX_PROCESS_ID", "valueFrom": index},
            {"name": "XLA_PYTHON_CLIENT_MEM_FRACTION", "value": "0.9"},
            {"name": "XLA_FLAGS", "value": "--xla_gpu_enable_latency_hiding_scheduler=true"},
            # where GKE puts the driver
            {"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"},
        ]
    env += [
        {"name": name, "value": value}
        for name, _, value in (pair.partition("=") for pair in args.env)
    ]
    if args.volume.startswith("gs://"):
        attributes = {
            "bucketName": args.volume.removeprefix("gs://"),
            "mountOptions": GCSFUSE_OPTIONS,
        }
        volume = {
            "name": "data",
            "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes},
        }
    else:
        volume = {
            "name": "data",
            "persistentVolumeClaim": {"claimName": args.volume.removeprefix("pvc:")},
        }
    supervise = ["python", "launch/supervise.py", "--restarts=0", f"--logs={workdir}/logs"]
    fields = {
        "name": args.name,
        "annotations": annotations,
        "restarts": args.restarts,
        "slices": args.slices,
        "hosts": hosts,
        "image": args.image,
        "service_account": args.service_account,
        "node_selector": node_selector,
        "limits": {resource: count},
        "env": env,
        "volume": volume,
        "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
        "pod_annotations": {"gke-gcsfuse/volumes": "true"}
        if args.volume.startswith("gs://")
        else {},
        "command": [*supervise, "--", "python", "-m", args.job, *args.arguments],
    }
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {name: json.dumps(value) for name, value in fields.items()}
    )


if __name__ == "__main__":
    sys.stdout.write(render(parse_args(sys.argv[1:])))

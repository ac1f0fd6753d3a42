"""Looks for other settings of a job that does not fit, or that could be faster.

Changes are {"section.field": value}, as a config has them. What becomes of them is up to the
caller: `attempt(changes, words)` returns {"fits", "times", ...} of the program with these changes.
"""

import math
from collections.abc import Callable, Iterator

from grm_jax.planning.programs import Job

Attempt = Callable[[dict, str], dict]


def what_fits(job: Job, devices: int, program: str, attempt: Attempt) -> Iterator[dict]:
    """Tries `single_changes` until one makes the program fit, and yields all that were tried.

    Its arguments, where nothing is compiled.
    """
    for changes in single_changes(job, devices, program):
        words = ", ".join(f"{field}={value}" for field, value in changes.items())
        tried = attempt(changes, words)
        yield tried
        if tried["fits"] is not False:
            return


def single_changes(job: Job, devices: int, program: str) -> Iterator[dict]:
    """Lists changes of one thing that need less memory, those that cost least first."""
    sizes, sampling = job.mesh_sizes(devices), job.sampling
    if program.endswith("_step") or program == "logprobs":
        stage = "rl" if program == "logprobs" else program.removesuffix("_step")
        if program != "logprobs" and job.model_cfg.remat != "full":
            yield {"model.remat": "full"}
        if job.row_lengths and job.row_lengths[-1] > job.width:
            yield {"packing.rows": (1.0,)}
        micro = getattr(job, stage).micro_batch if not job.row_lengths else 1
        while micro % 2 == 0 and (micro := micro // 2) >= sizes["replica"] * sizes["fsdp"]:
            yield {f"{stage}.micro_batch": micro}
    else:
        if sampling.sampler == "pmap":
            yield {"sampling.sampler": "jit"}
        rows, least = sampling.rows, 1 if program.startswith("judge_") else job.rl.group_size
        while rows % 2 == 0 and (rows := rows // 2) >= least:
            yield {"sampling.rows": rows}
    tensor = sizes["tensor"]
    while (tensor := 2 * tensor) <= min(job.model_cfg.n_heads, devices // sizes["replica"]):
        yield {"mesh.replica": sizes["replica"], "mesh.fsdp": -1, "mesh.tensor": tensor}
    if job.optimizer.mu_dtype != "bfloat16":
        yield {"optimizer.mu_dtype": "bfloat16"}
    if not job.lora.rank:
        yield {"lora.rank": 16}
    if program.endswith(("prefill", "decode")) and sampling.sampler == "shard_map":
        yield {"sampling.sampler": "jit"}


def search(job: Job, devices: int, attempt: Attempt) -> Iterator[dict]:
    """Tries the RL step on every mesh of one replica, and with every number of micro-batches.

    tensor goes up to the number of heads; micro-batches have 1, 2, 4, ... rows a share, and packed
    rows one.
    """
    tensor = 1
    while tensor <= min(job.model_cfg.n_heads, devices):
        micro = fsdp = devices // tensor
        while micro <= job.rl.batch_size and job.rl.batch_size % micro == 0:
            mesh = {"mesh.replica": 1, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
            words = f"fsdp={fsdp} tensor={tensor} micro_batch={micro}"
            tried = attempt(mesh | {"rl.micro_batch": micro}, words)
            yield tried
            if tried["fits"] is False or job.row_lengths:  # larger ones need more
                break
            micro *= 2
        tensor *= 2


def rank(tried: dict) -> tuple:
    """Returns the key that sorts what fits first, by time.

    Of programs that the same resource bounds alike, the one that keeps the others less busy.
    """
    times = sorted(tried["times"].values(), reverse=True) if tried["times"] else [math.inf]
    return not tried["fits"], *times

"""Measures us beside peers: same weights, same work, the same cores, in turns.

    python -m speed.compare INPUTS --peers=FOLDER [--before=FOLDER] [--cases=p512_k8,sft]
        [--rounds=5] [--minutes=25] [--out=docs/performance.jsonl]

INPUTS is made by `speed.inputs`, the peers' environments by `speed/peers.sh`; --before is another
checkout of this repository, whose own commands run as one more contender. Each contender is a
process of its own. Of a case all are started one after the other, each makes its first call, and
then they take turns, round by round, so that a slow minute of the machine meets all of them; while
one computes the others wait for input. A case ends after `rounds` rounds, or where its share of
--minutes is over (but not before two rounds).

Prints a line of JSON for each contender, as its command prints it, and for each case a line of
ratios: how many times as fast we are as each peer, of each round, and their median, least and
greatest. `python -m speed.tables` puts them into docs/performance.md. Peers that are not installed
are left out, with a line that says so.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from absl import app, flags

from speed import turns

PEERS = flags.DEFINE_string("peers", None, "Folder that speed/peers.sh made.")
BEFORE = flags.DEFINE_string("before", None, "Another checkout, with its own speed/.")
CASES = flags.DEFINE_list("cases", None, "Default: all.")
WITHOUT = flags.DEFINE_list("without", [], "Contenders that are left out.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of a case, at most.")
MINUTES = flags.DEFINE_float("minutes", 25, "Of all cases together, about.")
CORES = flags.DEFINE_integer("cores", 2, "That every contender has.")
OUT = flags.DEFINE_string("out", None, "File that lines are added to; default: standard output.")
HERE = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A command, the environment that runs it (ours, before, or a peer's), and its flags.

    rounds: the most that it takes part in; None: all.
    """

    name: str
    home: str
    module: str
    flags: tuple[str, ...] = ()
    rounds: int | None = None


def sampling(*flags: str, transformers: int = 0, before: int = 0, batch: int = 0):
    """Lists who draws samples, and how often the slow ones take part."""
    contenders = [
        Contender("grm_jax", "ours", "speed.sample", flags),
        Contender("llama.cpp", "llama", "speed.peers.llama_sample", flags),
    ]
    if transformers:
        module = "speed.peers.transformers_sample"
        contenders.append(Contender("transformers", "transformers", module, flags, transformers))
    if batch:
        slow_twin = (*flags, "--noengine")
        contenders.append(Contender("batch sampler", "ours", "speed.sample", slow_twin, batch))
    if before:
        contenders.append(Contender("before", "before", "speed.sample", flags, before))
    return contenders


def training(*flags: str, ours=(), settings=("float32", "default"), trl=(), rounds=None):
    """Lists who trains: TRL at one setting or several."""
    contenders = [Contender("grm_jax", "ours", "speed.step", (*flags, *ours))]
    for setting in settings:
        more = (*flags, f"--setting={setting}", *trl)
        module = "speed.peers.trl_step"
        contenders.append(Contender(f"trl {setting}", "trl", module, more, rounds))
    return contenders + [Contender("before", "before", "speed.step", flags, 1)]


def cases(inputs: pathlib.Path) -> dict[str, tuple[float, list[Contender]]]:
    """Returns {case: (share of the minutes, contenders)}."""
    large, small = f"--model={inputs}/129m", f"--model={inputs}/25m"
    lengths = f"--lengths={inputs}/lengths"

    def one_prompt(tokens, samples, **more):
        shape = f"--prompt_length={tokens}", f"--samples={samples}", "--new_tokens=128"
        return sampling(large, *shape, **more)

    rl = small, "--task=rl", f"{lengths}/real_text.json", "--prompts=8", "--group=4"
    judging = small, f"--records={inputs}/records.jsonl", "--samples=32", "--limit=4"
    return {
        "p512_k1": (0.9, one_prompt(512, 1)),
        "p512_k8": (1.9, one_prompt(512, 8, transformers=2, batch=2, before=2)),
        "p512_k32": (2.3, one_prompt(512, 32)),
        "p2048_k8": (1.9, one_prompt(2048, 8)),
        "queue": (5.6, sampling(large, f"--queue={inputs}/queue.jsonl", batch=2)),
        # rows of equal lengths need no packing; a group of GRPO has its prompt once
        "sft": (
            1.0,
            training(
                *(small, "--task=rft", f"{lengths}/sft.json", "--rows=4"), ours=("--packed=false",)
            ),
        ),
        "grpo": (
            1.3,
            training(
                *(small, "--task=rl", f"{lengths}/grpo.json", "--prompts=2", "--group=4"),
                *("--rollout", "--beta=0.04"),
                ours=("--row_lengths=4.5",),
            ),
        ),
        "rl_real": (
            4.2,
            training(
                *rl,
                ours=("--packed",),
                settings=("default",),
                trl=("--micro_rows=2", "--cold"),
                rounds=1,
            ),
        ),
        "judge": (
            2.2,
            [
                Contender("grm_jax", "ours", "speed.judge", judging),
                Contender("before", "before", "speed.judge", judging, 1),
            ],
        ),
    }


class Running:
    """A contender's process: it computes when it is given the turn."""

    def __init__(self, contender: Contender, python: str, cwd: pathlib.Path, env: dict):
        self.name, self.rounds, self.taken = contender.name, contender.rounds, []
        command = [python, "-m", contender.module, *contender.flags]
        self.errors = open(pathlib.Path(env["SPEED_LOGS"]) / f"{self.name}.log", "w+")
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.expect()

    def expect(self) -> str:
        """Reads up to the next line that is a turn's, or the last one."""
        for line in self.process.stdout:
            if line.startswith("turn "):
                return line.removeprefix("turn ").strip()
            if line.startswith("{"):
                return line
        self.process.wait()
        self.errors.seek(0)
        raise RuntimeError(f"{self.name}: {self.errors.read()[-1500:]}")

    def turn(self) -> None:
        if self.rounds is None or len(self.taken) < self.rounds:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.taken.append(float(self.expect()))

    def end(self) -> dict:
        self.process.stdin.close()
        line = json.loads(self.expect())
        self.process.wait()
        return line

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def start(contender: Contender, inputs: pathlib.Path) -> Running:
    """Starts a contender. Raises FileNotFoundError where it is not installed."""
    env = {n: x for n, x in os.environ.items() if not n.startswith(("XLA_", "JAX_", "OMP_"))}
    logs = inputs / "logs"
    logs.mkdir(exist_ok=True)
    env |= {"SPEED_TURNS": "1", "SPEED_LOGS": str(logs), "TOKENIZERS_PARALLELISM": "false"}
    env["GRM_JAX_CACHE"] = str(inputs / "programs" / contender.home)
    python, cwd = sys.executable, HERE
    if contender.home == "before":
        if BEFORE.value is None:
            raise FileNotFoundError("--before names no checkout")
        cwd = pathlib.Path(BEFORE.value).resolve()
    elif contender.home != "ours":
        if PEERS.value is None:
            raise FileNotFoundError("--peers names no folder")
        place = pathlib.Path(PEERS.value).resolve() / contender.home
        if not (place / "done").is_file():
            raise FileNotFoundError(f"{contender.home}: not installed; speed/peers.sh makes it")
        python = str(place / "bin" / "python")
    return Running(contender, python, cwd, env)


def compare(name: str, contenders: list[Contender], seconds: float, inputs: pathlib.Path):
    """Runs one case; yields its lines."""
    began, running = time.monotonic(), []
    try:
        for contender in contenders:
            if contender.name in WITHOUT.value:
                continue
            try:
                running.append(start(contender, inputs))
            except (FileNotFoundError, RuntimeError) as error:
                yield {"case": name, "contender": contender.name, "absent": str(error)}
        for done in range(ROUNDS.value):
            if done >= 2 and time.monotonic() - began > seconds:
                break
            for one in running:
                one.turn()
        lines = {one.name: one.end() for one in running}
    finally:
        for one in running:
            one.stop()
    for who, line in lines.items():
        yield line | {"case": name, "contender": who, "asked": line.get("case")}
    ratios = {}
    for one in running[1:]:
        # a peer that took part in fewer rounds is compared with the same rounds of ours
        pairs = [theirs / ours for ours, theirs in zip(running[0].taken, one.taken)]
        ratios[one.name] = turns.spread(pairs)
    checks = {who: line["check"] for who, line in lines.items() if "check" in line}
    # lines have five digits; llama.cpp's products round otherwise
    same = not checks or max(checks.values()) - min(checks.values()) < 2e-3
    yield {
        "case": name,
        "times_as_fast_as": ratios,
        "rounds": len(running[0].taken) if running else 0,
        "same_weights": same,
        "took_s": time.monotonic() - began,
        "load": os.getloadavg()[0],
    }


def main(argv):
    if len(argv) != 2:
        raise app.UsageError("expected the folder that speed.inputs made")
    inputs = pathlib.Path(argv[1]).resolve()
    known = cases(inputs)
    chosen = CASES.value or list(known)
    if unknown := set(chosen) - set(known):
        raise app.UsageError(f"no case {sorted(unknown)}; there are {', '.join(known)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: CORES.value])
    shares = sum(known[name][0] for name in chosen)
    for name in chosen:
        share, contenders = known[name]
        for line in compare(name, contenders, 60 * MINUTES.value * share / shares, inputs):
            line |= {"time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())}
            if OUT.value:
                with open(OUT.value, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            turns.write(line)


if __name__ == "__main__":
    app.run(main)

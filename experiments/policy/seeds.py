"""Makes all that experiments.policy has of one seed: the policy before, best of n, RL, figures."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.policy import best_of_n, judges, loop
from experiments.policy import writer as writing
from grm_jax.data.world.writing import gold, make_queries
from grm_jax.json_files import read_object
from grm_jax.training.settings import RlConfig
from grm_jax.whole_files import write_json


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers to tune.

    generative: judges of best of n, which all policies are measured by; "grm_meta" gives "grm" as
    well. arms: RL runs, by their judge; scalar models have one each, too. k, rl_k: judgments of a
    response, in RL fewer. asked, tested: queries of the testing side, for best of n, and on which a
    policy is measured with two responses each.
    """

    answers: int = 4000
    p_right: float = 0.5
    sft_steps: int = 60
    generative: tuple[str, ...] = ("grm_meta", "base")
    k: int = 4
    asked: int = 48
    ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    arms: tuple[str, ...] = ("grm", "grm_meta")
    steps: int = 30
    rl_k: int = 2
    prompts: int = 16
    group: int = 4
    rate: float = 1e-3
    beta: float = 0.02
    tested: int = 64

    def numbers(self) -> dict:
        """Returns what all figures of a seed depend on; the judges have figures of their own."""
        named = ("generative", "arms")
        return {field: x for field, x in dataclasses.asdict(self).items() if field not in named}


def run(
    workdir: pathlib.Path, seeds: Sequence[int], scalars: Mapping[str, str], sizes: Sizes
) -> None:
    """Does everything of these seeds that is not there yet. scalars: {name: folder}.

    Raises ValueError as `claim` does, before anything is computed.
    """
    names = dict.fromkeys((*sizes.generative, *sizes.arms, *scalars))
    digests = {name: judges.digest(name, scalars.get(name)) for name in names}
    for seed in seeds:
        claim(workdir / f"seed_{seed}", sizes, digests)
    for seed in seeds:
        run_seed(workdir / f"seed_{seed}", seed, scalars, sizes, digests)


def claim(folder: pathlib.Path, sizes: Sizes, digests: Mapping[str, str]) -> None:
    """Writes into the folder of a seed, as of.json, what its files are of: sizes, and judges by
    their content. Judges that are new are put beside those that stand there.

    Raises ValueError, naming the field, where the folder holds files of another size, of another
    judge of a name, or of who knows what: an earlier version left no of.json.
    """
    path = folder / "of.json"
    of = sizes.numbers() | {f"judge {name}": digest for name, digest in digests.items()}
    of = json.loads(json.dumps(of))
    if any(not file.name.startswith(path.name) for file in folder.glob("*")):
        if not path.is_file():
            raise ValueError(
                f"{folder}: holds files and no {path.name} that says what they are of; an earlier "
                "version made them. Choose another --workdir"
            )
        found = read_object(path)
        for field, expected in of.items():
            is_new = field.startswith("judge ") and field not in found
            if not is_new and found.get(field) != expected:
                raise ValueError(
                    f'{path}: field "{field}": expected {expected!r}, got {found.get(field)!r}, so '
                    f"what {folder.name} holds is of others; choose another --workdir"
                )
        of = found | of
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, of)


def run_seed(
    folder: pathlib.Path,
    seed: int,
    scalars: Mapping[str, str],
    sizes: Sizes,
    digests: Mapping[str, str],
) -> None:
    """Does everything of one seed, as `run`; digests: of the judges, by name."""
    writer = writing.make_writer()
    everyone = (*sizes.generative, *scalars)

    @functools.cache
    def judge(name: str, k: int = sizes.k) -> judges.Scorer:
        if name in scalars:
            return judges.scalar(scalars[name], name)
        return judges.generative(name, k)

    def graded(queries, drawn) -> np.ndarray:
        return np.array([[gold(q, one.text) for one in row] for q, row in zip(queries, drawn)])

    def scored(name, queries, drawn) -> dict[str, np.ndarray]:
        asked = [query.text for query, row in zip(queries, drawn) for _ in row]
        texts = [one.text for row in drawn for one in row]
        scores = judge(name)(asked, texts, seed)
        return {which: np.reshape(s, (len(queries), -1)) for which, s in scores.items()}

    def draw(params, queries, samples, name):
        return writing.draw(writer, params, [q.text for q in queries], samples, seed, name)

    # a policy of middling skill
    if not (folder / "sft" / "config.json").is_file():
        steps = sizes.sft_steps
        taught = writing.fine_tune(writer, folder, seed, steps, sizes.answers, sizes.p_right)
        writing.save(writer, folder / "sft", taught)
    start = writing.load(writer, folder / "sft")

    # what the numbers of scalar models mean for this policy: fitted on the training side
    queries = make_queries(4 * sizes.tested, 10_000 + seed)
    drawn = draw(start, queries, 4, "fit")
    gold_B = graded(queries, drawn).ravel()
    to_chance = {
        name: judges.chances(name, scored(name, queries, drawn)[name].ravel(), gold_B)
        for name in scalars
    }

    def shown(which: str, scores: np.ndarray) -> np.ndarray:
        """On the scale of the gold."""
        return to_chance[which](scores) if which in to_chance else scores

    def measured(params, names: Sequence[str]) -> dict[str, float]:
        queries = make_queries(sizes.tested, 1000 + seed, testing=True)
        drawn = draw(params, queries, 2, "measured")
        found = loop.described(queries, drawn)
        for name in names:
            for which, scores in scored(name, queries, drawn).items():
                found[which] = float(np.nanmean(shown(which, scores)))
        return found

    # (a) best of n
    def best_of(names: Sequence[str]) -> dict:
        queries = make_queries(sizes.asked, seed, testing=True)
        drawn = draw(start, queries, max(sizes.ns), "best")
        gold_PN = graded(queries, drawn)

        def best(scores_PN, x_PN) -> list[float]:
            return [best_of_n.chosen_means(scores_PN, x_PN, n).mean() for n in sizes.ns]

        found: dict = {"ns": sizes.ns, "oracle": best(gold_PN, gold_PN), "judges": {}}
        for name in names:
            for which, scores_PN in scored(name, queries, drawn).items():
                values_PN = shown(which, scores_PN)
                chosen = [best_of_n.chosen_scores(scores_PN, values_PN, n) for n in sizes.ns]
                score, missing = zip(*chosen, strict=True)
                of_judge = {"gold": best(scores_PN, gold_PN), "score": score, "missing": missing}
                found["judges"][which] = of_judge
        return found

    judges.with_judges(folder / "best_of_n.json", everyone, best_of)

    # (b) RL
    judges.with_judges(folder / "before.json", everyone, lambda names: measured(start, names))
    rl = RlConfig(
        learning_rate=sizes.rate,
        batch_size=sizes.prompts * sizes.group,
        micro_batch=sizes.prompts * sizes.group,
        steps=sizes.steps,
        group_size=sizes.group,
        beta=sizes.beta,
        old_logp="sampler",
    )
    for arm in (*sizes.arms, *scalars):
        place = folder / f"rl_{arm}"
        if (place / "model" / "config.json").is_file():
            continue

        def reward(prompts, texts, at, arm=arm):
            return shown(arm, np.array(judge(arm, sizes.rl_k)(prompts, texts, at)[arm]))

        of = json.dumps(sizes.numbers() | {"judge": digests[arm]})
        tuned = loop.tune(writer, start, reward, rl, place, seed, of=of)
        writing.save(writer, place / "model", tuned)

    # every policy by every judge; that of TRL, too, where experiments.policy.with_trl has left it
    for place in sorted(folder.glob("rl_*")):
        if (place / "model" / "config.json").is_file():

            def after(names, place=place):
                return measured(writing.load(writer, place / "model"), names)

            judges.with_judges(place / "after.json", everyone, after)

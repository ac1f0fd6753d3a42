"""Requests with a requirement that a program checks, and what the best of n answers to them is, by
whom it is chosen (real_text.py).
"""

import json
import pathlib
import random
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.build_real import constraints, questions
from experiments.build_real.constraints import Constraint
from experiments.build_real.draw import ANSWERS, claim, read_rows, sentences
from experiments.policy.best_of_n import chosen_means
from grm_jax.judge import Judge
from grm_jax.report.plots import COLORS, STYLE
from grm_jax.whole_files import write_whole

# requirements that a small model meets now and then when it is asked to
KINDS = {
    "use_word": constraints.use_word,
    "avoid_word": constraints.avoid_word,
    "sentence_count": constraints.sentence_count,
    "most_words": constraints.most_words,
    "first_word": constraints.first_word,
}
CHOICES = {  # what chooses among the answers, by the field of a row that is highest
    "the judge": "score",
    "the shortest": "brevity",
    "the longest": "words",
    "the gold itself": "gold",
}


def requirements(path: pathlib.Path, count: int, seed: int) -> dict[str, tuple[str, Constraint]]:
    """Makes {id: (request, its requirement)}: each question with one kind, by turns.

    path: answers to the plain questions, whose words the requirements take up.
    """
    asked, names = {}, list(KINDS)
    every = questions.questions(questions.TEST_TOPICS, 2)
    for row in read_rows(path, ANSWERS):
        if row["id"] not in every or len(asked) == count:
            continue
        kind = names[len(asked) % len(names)]
        made = KINDS[kind](random.Random(f"best of n {seed} {row['id']}"), row["texts"])
        if made is not None:
            asked[f"{row['id']}/{kind}"] = (f"{every[row['id']]} {made.ask}", made)
    return asked


def checked(
    asked: Mapping[str, tuple[str, Constraint]], drawn: Mapping[str, Sequence[str]]
) -> list[dict]:
    """Makes a row of every answer, cut to at most three whole sentences, with its gold."""
    rows = []
    for key, (request, constraint) in asked.items():
        for text in drawn[key]:
            cut = " ".join(sentences(text)[:3]) or text.strip() or "..."
            row = {"id": key, "kind": constraint.kind, "request": request, "text": cut}
            rows.append(row | {"gold": float(constraint.check(cut)), "words": len(cut.split())})
    return rows


def scored(
    rows: Sequence[Mapping], judge: Judge, k: int, seed: int, path: pathlib.Path
) -> list[dict]:
    """Returns the rows with the judge's score of each, which is kept in the file `path`.

    A score is the mean of the scores of k judgments; None where none could be parsed. Raises
    ValueError where the file has those of another judge, or of other answers.
    """
    claim(path, judge.asked(k, seed))
    if not path.is_file():
        records = [{"conversation": row["request"], "responses": [row["text"]]} for row in rows]
        lines = ""
        for row, verdict in zip(rows, judge.many(records, k=k, seed=seed), strict=True):
            found = [judgment.scores[0] for judgment in verdict.judgments if judgment.scores]
            lines += json.dumps({**row, "score": float(np.mean(found)) if found else None}) + "\n"
        write_whole(path, lines)
    kept = read_rows(path)
    if [row | {"score": None} for row in kept] != [{**row, "score": None} for row in rows]:
        raise ValueError(f"{path}: scores of other answers; choose another --workdir")
    return kept


def figures(rows: Sequence[Mapping]) -> dict:
    """Gold, words and score of the best of n by each choice: means over requests, standard errors,
    and of the gold what is gained over one answer. Shares in 0..1.
    """
    ids = list(dict.fromkeys(row["id"] for row in rows))
    columns = {
        name: [[row[name] for row in rows if row["id"] == key] for key in ids]
        for name in ("gold", "words", "score")
    }
    scores_PN = [[np.nan if x is None else x for x in line] for line in columns["score"]]
    brevity_PN = [[-x for x in line] for line in columns["words"]]
    columns |= {"score": scores_PN, "brevity": brevity_PN}
    size = min(map(len, columns["gold"]))
    ns = [n for n in (1, 2, 4, 8, 16, 32) if n <= size]
    found = {"requests": len(ids), "answers": size, "ns": ns, "choices": {}, "kinds": {}}
    found["parsed"] = float(np.mean(np.isfinite(np.concatenate(scores_PN))))
    for name, field in CHOICES.items():
        gold = [chosen_means(columns[field], columns["gold"], n) for n in ns]
        words = [chosen_means(columns[field], columns["words"], n).mean() for n in ns]
        gain = [x - gold[0] for x in gold]
        found["choices"][name] = {
            "gold": [float(x.mean()) for x in gold],
            "stderr": [_stderr(x) for x in gold],
            "gain": [float(x.mean()) for x in gain],
            "gain_stderr": [_stderr(x) for x in gain],
            "words": [float(x) for x in words],
        }
    for kind in dict.fromkeys(row["kind"] for row in rows):
        chosen = [i for i, key in enumerate(ids) if key.rsplit("/", 1)[1] == kind]
        scores, gold = ([columns[f][i] for i in chosen] for f in ("score", "gold"))
        ends = (float(chosen_means(scores, gold, n).mean()) for n in (1, ns[-1]))
        found["kinds"][kind] = {"requests": len(chosen), "one": next(ends), "best": next(ends)}
    return found


def _stderr(x_P: np.ndarray) -> float:
    return float(x_P.std(ddof=1) / np.sqrt(len(x_P))) if len(x_P) > 1 else float("nan")


def table(found: Mapping) -> str:
    """The figures as Markdown: gold in % with its standard error over requests, and words."""
    lines = [f"| chosen by | {' | '.join(f'n = {n}' for n in found['ns'])} |"]
    lines.append("|---" * (len(found["ns"]) + 1) + "|")
    for name, one in found["choices"].items():
        cells = [
            f"{100 * gold:.1f} ± {100 * error:.1f} ({words:.0f} words)"
            for gold, error, words in zip(one["gold"], one["stderr"], one["words"])
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| requirement | requests | one answer | best of {found['ns'][-1]} |"]
    lines.append("|---|---|---|---|")
    lines += [
        f"| {kind} | {one['requests']} | {100 * one['one']:.0f} | {100 * one['best']:.0f} |"
        for kind, one in found["kinds"].items()
    ]
    return "\n".join(lines)


def draw_plot(found: Mapping, path: pathlib.Path) -> None:
    """Gold, and words, of the best of n by each choice."""
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white", "svg.hashsalt": "best"}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (name, one), color in zip(found["choices"].items(), COLORS):
            left.errorbar(found["ns"], one["gold"], one["stderr"], color=color, label=name)
            right.plot(found["ns"], one["words"], color=color)
        left.set(ylabel="share that meets the requirement", ylim=(0, 1.03))
        right.set(ylabel="words of the chosen answer", ylim=(0, None))
        for ax in (left, right):
            ax.set_xscale("log", base=2)
            ax.set_xticks(found["ns"], [str(n) for n in found["ns"]])
            ax.set(xlabel="n")
        figure.legend(loc="outside upper center", ncols=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})

"""Builds the records of real text that `configs/real_smollm2.py` trains and tests on.

    python -m experiments.build_real --model=SMOLLM2_FOLDER --data=DATA_FOLDER --out=data/real

Answers to plain questions are drawn from the model; requirements that a program can check are put
to them, with the gold computed. Beside them stand pairs of published sets: for training hh-rlhf
(MIT), GSM8K's samples (MIT) and ZeroEval's outputs (Apache-2.0), split by question; for testing the
rest of these, LLMBar (MIT) and RMB, which states no license and is never trained on. All is a
function of the seed, the model and the files; what is drawn stays on file, so a run that was ended
goes on; answers_NAME.of.json says whose they are, and those of another model or seed are refused.
`docs/real_text.md` has what came of it.

    train.jsonl          records for RFT, RL and the Meta RM
    judgments.jsonl      instruction data: judgments that are written by rule, for the cold start,
                         of constraint records on topics of their own
    rubrics.jsonl        the same of records whose rubric decides (`rubrics.py`)
    general.jsonl        instruction data: the best responses of the training records
    test/NAME.jsonl      constraints (of the kinds that are trained on), new_kinds, gsm8k, zeroeval,
                         hh_rlhf, llmbar, rmb; rubric
"""

import json
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from absl import app, flags

from experiments.build_real import questions
from experiments.build_real.constraints import TEST_KINDS, TRAIN_KINDS
from experiments.build_real.draw import answers
from experiments.build_real.records import Made, make_records, written_judgment
from experiments.build_real.rubrics import make_rubrics, written_rubric_judgment
from grm_jax.benchmarks import load_benchmark
from grm_jax.data.examples import best_responses
from grm_jax.judgment.prompts import Template, load_template, render_prompt
from grm_jax.judgment.records import Record, seeded_digest, write_records

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SAMPLES = 4  # answers of a question
EACH_TRAIN_TOPIC, EACH_TEST_TOPIC = 1, 2  # questions
COLD_START_TOPICS = 34  # of the training topics: those of the judgments that are written by rule
EACH_COLD_TOPIC = 5  # questions of a topic of the cold start
EACH_TRAIN, EACH_TEST = 8, 2  # records of a question
EACH_COLD_PAIR, EACH_COLD_FREE = 11, 22  # the same, of judgments: with one best response or any
EACH_COLD_RUBRIC, EACH_TEST_RUBRIC = 10, 1  # the same, of records with a rubric; tested are twins
TRAIN_PAIRS = {"hh_rlhf": 100, "gsm8k": 80, "zeroeval": 40}
TESTS = {
    "constraints": 200,
    "new_kinds": 80,
    "gsm8k": 40,
    "zeroeval": 40,
    "hh_rlhf": 60,
    "llmbar": 60,
    "rmb": 60,
}
# characters of a request and all responses, at most; RMB's and LLMBar's are long
SHORT, LONG = 1400, 6000
PUBLISHED = {
    "hh_rlhf": {"kind": "hh_rlhf", "path": "hh_rlhf"},
    "gsm8k": {"kind": "gsm8k_solutions", "path": "gsm8k/example_model_solutions.jsonl"},
    "zeroeval": {"kind": "zeroeval_gsm", "path": "zeroeval_gsm"},
    "llmbar": {"kind": "llmbar", "path": "llmbar"},
    "rmb": {"kind": "rmb", "path": "rmb/RMB_dataset"},
}

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder of SmolLM2", required=True)
_DATA = flags.DEFINE_string("data", None, "folder of the published files", required=True)
_OUT = flags.DEFINE_string("out", "data/real", "folder that gets the files")
_SEED = flags.DEFINE_integer("seed", 0, "of all that is drawn")


def main(_):
    model, out, published = pathlib.Path(_MODEL.value), pathlib.Path(_OUT.value), _data()

    def answered(name: str, asked: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        return answers(model, asked, SAMPLES, _SEED.value, out / f"answers_{name}.jsonl")

    of_train = questions.questions(questions.TRAIN_TOPICS, EACH_TRAIN_TOPIC)
    of_train |= questions.questions(questions.TRAIN_TOPICS[:COLD_START_TOPICS], EACH_COLD_TOPIC)
    of_test = questions.questions(questions.TEST_TOPICS, EACH_TEST_TOPIC)
    build(answered("train", of_train), answered("test", of_test), published, out, _SEED.value)


def _data() -> dict[str, list[Record]]:
    """The records of every published set."""
    folder = pathlib.Path(_DATA.value)
    return {
        name: list(load_benchmark(spec | {"path": str(folder / spec["path"])}).records)
        for name, spec in PUBLISHED.items()
    }


def build(
    train_answers: Mapping[str, Sequence[str]],
    test_answers: Mapping[str, Sequence[str]],
    published: Mapping[str, Sequence[Record]],
    out: pathlib.Path,
    seed: int,
) -> None:
    """Writes all files. Answers: of the ids of `questions.questions` for the two lists of topics;
    ids that are not asked are left out.
    """

    def asked_of(topics: list[str], each: int, answers: Mapping) -> dict[str, str]:
        every = questions.questions(topics, each)
        return {key: question for key, question in every.items() if key in answers}

    asked = asked_of(questions.TRAIN_TOPICS, EACH_TRAIN_TOPIC, train_answers)
    topics = list(dict.fromkeys(key.partition("/")[0] for key in asked))
    cold_topics = set(topics[: COLD_START_TOPICS * len(topics) // len(questions.TRAIN_TOPICS)])
    cold = asked_of(questions.TRAIN_TOPICS, EACH_COLD_TOPIC, train_answers)
    cold = {key: q for key, q in cold.items() if key.partition("/")[0] in cold_topics}
    rest = {key: q for key, q in asked.items() if key.partition("/")[0] not in cold_topics}
    of_test = asked_of(questions.TEST_TOPICS, EACH_TEST_TOPIC, test_answers)

    # the cold start, and constraint records for training and testing
    written = [
        *make_records("cold", cold, train_answers, TRAIN_KINDS, EACH_COLD_PAIR, seed),
        *make_records("any", cold, train_answers, TRAIN_KINDS, EACH_COLD_FREE, seed, False),
    ]
    train = make_records("train", rest, train_answers, TRAIN_KINDS, EACH_TRAIN, seed)
    tests = {
        "constraints": make_records("test", of_test, test_answers, TRAIN_KINDS, EACH_TEST, seed),
        "new_kinds": make_records("new", of_test, test_answers, TEST_KINDS, 1, seed),
    }
    tests = {name: [made.record for made in records] for name, records in tests.items()}
    rubrics = make_rubrics("cold rubric", cold, train_answers, EACH_COLD_RUBRIC, seed)
    twins = make_rubrics("rubric", of_test, test_answers, EACH_TEST_RUBRIC, seed, twins=True)

    # pairs of published sets, those of a question all on one side
    trained = [made.record for made in train]
    for name, records in published.items():
        fitting = [r for r in records if _length(r) <= (SHORT if name in TRAIN_PAIRS else LONG)]
        side = {
            True: [r for r in fitting if name in TRAIN_PAIRS and is_train(r, seed)],
            False: [r for r in fitting if not (name in TRAIN_PAIRS and is_train(r, seed))],
        }
        trained += _first(side[True], TRAIN_PAIRS.get(name, 0), seed)
        tests[name] = _first(side[False], TESTS[name], seed)

    out.mkdir(parents=True, exist_ok=True)
    (out / "test").mkdir(exist_ok=True)
    write_records(out / "train.jsonl", trained)
    for name, records in tests.items():
        write_records(out / "test" / f"{name}.jsonl", _first(records, TESTS[name], seed))
    write_records(out / "test" / "rubric.jsonl", [made.record for made in twins])
    judge, by_rubric = (
        load_template(CONFIGS / f"real_{name}.jinja") for name in ("judge", "rubric")
    )
    plain = _instructions(judge, written, seed, written_judgment)
    _write_rows(out / "judgments.jsonl", plain)
    _write_rows(
        out / "rubrics.jsonl",
        _instructions(
            by_rubric, rubrics, seed, lambda made, order, rng: written_rubric_judgment(made, order)
        ),
    )
    _write_rows(out / "general.jsonl", best_responses(trained))
    counts = {"train": len(trained), "judgments": len(written), "rubrics": len(rubrics)}
    counts |= {"rubric": len(twins)} | {
        name: min(len(records), TESTS[name]) for name, records in tests.items()
    }
    print(", ".join(f"{name} {count}" for name, count in counts.items()), flush=True)


def is_train(record: Record, seed: int) -> bool:
    """Says on which side of the split a published record lies, by its first request."""
    first = record.conversation[0].content.strip()
    return seeded_digest("real text", seed, first)[0] < 128


def _length(record: Record) -> int:
    return sum(map(len, [*(turn.content for turn in record.conversation), *record.responses]))


def _first(records: Iterable[Record], count: int, seed: int) -> list[Record]:
    """`count` of the records, as a function of the seed and their ids."""
    return sorted(records, key=lambda r: seeded_digest("first", seed, r.id))[:count]


def _instructions(
    template: Template,
    written: Sequence[Made],
    seed: int,
    judgment: Callable[[Made, Sequence[int], random.Random], str],
) -> list[dict[str, str]]:
    """Instruction data: the prompt of a judgment, and the judgment that is written by rule."""
    rows = []
    for made in written:
        rng = random.Random(f"judgment {seed} {made.record.id}")
        order = rng.sample(range(len(made.record.responses)), len(made.record.responses))
        rows.append(
            {
                "id": made.record.id,
                "prompt": render_prompt(template, made.record, order),
                "completion": judgment(made, order, rng),
            }
        )
    return rows


def _write_rows(path: pathlib.Path, rows: Iterable[Mapping]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    from experiments import ending
    from grm_jax import signals

    ending.install()
    with signals.ending():
        app.run(main)

"""Makes records of the checkable world whose rubrics decide which response is the best.

The criteria are the world's principles: what the query asks for, courtesy, and the surface that a
lazy judge falls for (length, confidence, formatting), which here is what is asked for as well. A
response meets a criterion or does not, its reward is the sum of the weights of those that it meets,
and rubrics are drawn until exactly one response has the most. Half of them call another response
the best than the query alone does, so a judge that does not look at its rubric is at a loss.
"""

import dataclasses
import random

from grm_jax.data.world import judge, records, tasks
from grm_jax.data.world.records import WorldItem, draw_item
from grm_jax.judgment.prompts import Template, render_prompt
from grm_jax.judgment.records import Criterion, Record

SPLITS = {"rubric_train": False, "rubric": True}  # split: whether it is for testing
SIZES = {2: 0.6, 3: 0.25, 4: 0.15}
WEIGHTS = {1: ((10,),), 2: ((7, 3), (6, 4), (8, 2), (3, 7), (4, 6), (2, 8)), 3: ((5, 3, 2),)}
COUNTS = (0.35, 0.5, 0.15)  # of one, two and three criteria
# the judge of the instruction data slips half as often as that which the base imitates
SLIPS = judge.Slips(mark=0.02, verdict=0.03, format=0.02)
TRIES = 40  # rubrics of an item, before another is drawn


def meets(item: WorldItem, name: str) -> list[bool]:
    """Says of each response of an item whether it meets a criterion."""
    if name == tasks.FAMILIES[item.query.family].principle:
        return [tasks.content_ok(item.query, response.items) for response in item.responses]
    return judge.surface(name, list(item.responses))


def draw_rubric(rng: random.Random, item: WorldItem) -> tuple[Criterion, ...]:
    """Draws one to three criteria, and their weights."""
    main = tasks.FAMILIES[item.query.family].principle
    names = [main, tasks.COURTESY, *tasks.LAZY_PRINCIPLES]
    count = rng.choices((1, 2, 3), COUNTS)[0]
    weights = rng.choice(WEIGHTS[count])
    return tuple(
        Criterion(name, weight)
        for name, weight in zip(rng.sample(names, count), weights, strict=True)
    )


def rewards_of(item: WorldItem, rubric: tuple[Criterion, ...]) -> tuple[float, ...]:
    """Returns the sum of the weights of the criteria that each response meets, of all weights."""
    met = [(criterion.weight, meets(item, criterion.name)) for criterion in rubric]
    whole = sum(weight for weight, _ in met)
    return tuple(
        sum(weight * ok[i] for weight, ok in met) / whole for i in range(len(item.responses))
    )


def make_rubric_items(
    split: str, count: int, seed: int
) -> list[tuple[WorldItem, tuple[Criterion, ...]]]:
    """Makes `count` items of a split, no two with the same query and responses, each with a rubric.

    Every second rubric has another best response than the query alone.
    """
    if split not in SPLITS:
        raise ValueError(
            f"world split {split!r} has no rubrics; expected one of {', '.join(SPLITS)}"
        )
    seen, made = set(), []
    for i in range(count):
        rng = random.Random(f"world/{split}/{seed}/{i}")
        while len(made) == i:
            item = draw_item(
                rng, "train", tasks.REWARD_FAMILIES, testing=SPLITS[split], sizes=SIZES
            )
            key = (item.query.text, frozenset(r.text for r in item.responses))
            for _ in range(TRIES if key not in seen else 0):
                rubric = draw_rubric(rng, item)
                rewards = rewards_of(item, rubric)
                other = not item.right[rewards.index(max(rewards))]
                if rewards.count(max(rewards)) == 1 and other == bool(i % 2):
                    seen.add(key)
                    made.append((item, rubric))
                    break
    return made


def make_rubric_records(split: str, count: int, seed: int = 0) -> list[Record]:
    """Makes `count` records with a rubric, of the split "rubric_train" or "rubric" (for testing).

    The metadata say which response is right without it ("plain_best").
    """
    made = []
    for i, (item, rubric) in enumerate(make_rubric_items(split, count, seed)):
        record = item.record(f"world/{split}/{seed}/{i}", split)
        made.append(
            dataclasses.replace(
                record,
                rubric=rubric,
                rewards=rewards_of(item, rubric),
                metadata=record.metadata | {"plain_best": item.right.index(True)},
            )
        )
    return made


def describe(split: str) -> str:
    """Says in words what the records of a split are, for a reader of figures on them."""
    plain = records.describe("train")
    about, _, families = plain.partition("The domain is")
    about = about.partition("The checkable world, split train. ")[2].partition("; which")[0]
    side = "no record is trained on" if SPLITS[split] else "the side that is trained on"
    return (
        f"The checkable world, split {split}. {about}. 2 to 4 responses, each with a rubric of one "
        "to three criteria, what is asked for, courtesy, length, confidence or formatting, whose "
        "weights decide which response is the best; in half of the records another one than the "
        f"query alone would; {side}. The domain is{families}"
    )


def judgment_text(
    rng: random.Random,
    item: WorldItem,
    order: tuple[int, ...],
    rubric: tuple[Criterion, ...],
    slips: judge.Slips = SLIPS,
) -> str:
    """Judges the item by a rubric, its responses shown in `order`.

    It repeats the rubric, looks at every criterion, and slips now and then. Its scores are 9 for
    good and 2 for bad, some of them one off.
    """
    responses = [item.responses[i] for i in order]
    blocks, scores = [], []
    for criterion in rubric:
        main = criterion.name == tasks.FAMILIES[item.query.family].principle
        lines, verdicts = (
            judge.check_lines(rng, item.query, responses, slips)
            if main
            else judge.surface_lines(rng, criterion.name, responses, slips)
        )
        blocks.append(lines)
        given = [9 if ok else 2 for ok in verdicts]
        slipped = [
            score + (rng.choice((-1, 1)) if rng.random() < slips.score else 0) for score in given
        ]
        scores.append(f" {criterion.name}{judge.box(rng, slipped, slips)}")
    criteria = ",".join(f" {criterion.name} {criterion.weight}" for criterion in rubric)
    return (
        f"Specific Criteria:{criteria}\nAnalysis:"
        + "\n".join(blocks)
        + "\nScores:"
        + "".join(scores)
    )


def make_rubric_judgments(template: Template, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Makes instruction data, {"id", "prompt", "completion"}: judgments by a rubric.

    They teach the form: the base has never seen a rubric. They are of items for training, of all
    kinds of rubrics, whichever response those call the best; the gold has no part in them.
    """
    rows = []
    for i in range(count):
        rng = random.Random(f"world/rubric_judgments/{seed}/{i}")
        item = draw_item(rng, "train", tasks.REWARD_FAMILIES, testing=False, sizes=SIZES)
        rubric = draw_rubric(rng, item)
        name = f"world/rubric_judgments/{seed}/{i}"
        record = dataclasses.replace(item.record(name, "train"), rubric=rubric)
        order = tuple(rng.sample(range(len(item.responses)), len(item.responses)))
        rows.append(
            {
                "id": name,
                "prompt": render_prompt(template, record, order),
                "completion": judgment_text(rng, item, order, rubric),
            }
        )
    return rows

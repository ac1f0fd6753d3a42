"""Makes preference records of the checkable world and its splits.

Every record has exactly one right response (n >= 2), or one response that is right half of the time
(n = 1). What makes it right is computed by `tasks`; how it looks (filler, certainty, bold) is drawn
apart from that. Splits are disjoint by construction: a hash of the query with its responses decides
whether a record may be used for training or for testing.
"""

import dataclasses
import hashlib
import random

from grm_jax.data.world import tasks
from grm_jax.judgment.records import Record, Turn

FILLERS = ("Sure here it is:", "Let me think about it first:", "I am happy to answer in full:")
CERTAIN = " Definitely!"

SPLITS = ("train", "test", "hard", "wide", "single", "heldout")
_SIZES = {  # number of responses -> probability
    "train": {1: 0.15, 2: 0.5, 3: 0.2, 4: 0.15},
    "test": {2: 0.6, 3: 0.25, 4: 0.15},
    "hard": {2: 0.6, 3: 0.25, 4: 0.15},
    "wide": {5: 0.5, 6: 0.5},
    "single": {1: 1.0},
    "heldout": {2: 0.6, 3: 0.25, 4: 0.15},
}
_ABOUT = {  # of a split, for readers of figures
    "train": "1 to 4 responses, from the side of the world that is trained on.",
    "test": "2 to 4 responses, drawn as the training records are; no record is in both.",
    "hard": "2 to 4 responses; every wrong one carries a distractor (a filler phrase, a word of "
    "certainty, asterisks), the right one none.",
    "wide": "5 or 6 responses, more than in training.",
    "single": "One response, which is right half of the time; a judge scores it 0 or 1.",
    "heldout": "2 to 4 responses to tasks that no training record has.",
}
_TASKS = {
    "copy": "repeat the list",
    "reverse": "turn it round",
    "sort": "put it in alphabetical order",
    "next": "replace each animal by the next one of the alphabet of eight",
    "rotate": "move the first to the end",
    "limit": "name at most so many animals",
    "avoid": "name animals, but never a certain one",
    "swap": "exchange first and last",
    "drop": "leave out the last",
    "start": "name animals, a certain one first",
}
P_DISTRACTOR = 0.25  # of each distractor on each response, right or wrong, outside the hard split


@dataclasses.dataclass(frozen=True)
class Response:
    """Holds one response before it is written out; `filler`, `certain` and `bold` distract."""

    items: tasks.Items
    thanks: bool
    filler: str
    certain: bool
    bold: bool

    @property
    def text(self) -> str:
        """Writes the response out, its list between what distracts."""
        stars = " **" if self.bold else ""
        parts = (
            self.filler,
            stars,
            tasks.numbered(self.items),
            stars,
            CERTAIN if self.certain else "",
            " Thanks." if self.thanks else "",
        )
        return "".join(parts).strip()


@dataclasses.dataclass(frozen=True)
class WorldItem:
    """Holds a query, its responses and which of them are right: everything a judge could know."""

    query: tasks.Query
    responses: tuple[Response, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        """Says of each response whether it is right."""
        return tuple(is_right(self.query, response) for response in self.responses)

    @property
    def for_testing(self) -> bool:
        """Says on which side of the train/test border this lies, in any order of responses."""
        content = "\n".join([self.query.text, *sorted(r.text for r in self.responses)])
        return hashlib.sha256(content.encode()).digest()[0] < 64

    def record(self, record_id: str, split: str) -> Record:
        """Makes the record: a reward of 1 for what is right, else 0."""
        principles = [tasks.FAMILIES[self.query.family].principle] + [
            tasks.COURTESY
        ] * self.query.thanks
        return Record(
            id=record_id,
            conversation=(Turn("user", self.query.text),),
            responses=tuple(r.text for r in self.responses),
            rewards=tuple(float(ok) for ok in self.right),
            domain=self.query.family,
            reference=None,
            metadata={"split": split, "relevant_principles": principles},
        )


def is_right(query: tasks.Query, response: Response) -> bool:
    """Says whether the list is right and the second wish, if there is one, is met."""
    return tasks.content_ok(query, response.items) and (response.thanks or not query.thanks)


def dress(rng: random.Random, items: tasks.Items, thanks: bool, distractors: str) -> Response:
    """Writes a response with distractors drawn "freely", at least one ("some"), or "none"."""
    while True:
        filler = rng.choice(FILLERS) if rng.random() < P_DISTRACTOR else ""
        certain, bold = rng.random() < P_DISTRACTOR, rng.random() < P_DISTRACTOR
        count = bool(filler) + certain + bold
        if distractors == "none":
            return Response(items, thanks, "", False, False)
        if distractors == "free" or count > 0:
            return Response(items, thanks, filler, certain, bold)


def wrong_response(rng: random.Random, query: tasks.Query, distractors: str) -> Response:
    """Writes a response as a hasty writer does; now and then it is right after all."""
    impolite = query.thanks and rng.random() < 0.35  # right but for the second wish
    items = tasks.right_items(rng, query) if impolite else tasks.wrong_items(rng, query)
    thanks = query.thanks and not impolite and rng.random() < 0.8
    return dress(rng, items, thanks, distractors)


def draw_item(
    rng: random.Random,
    split: str,
    families: tuple[str, ...],
    testing: bool,
    sizes: dict[int, float] | None = None,
) -> WorldItem:
    """Draws one item of a split from the training or the testing side."""
    sizes = sizes or _SIZES[split]
    while True:
        query = tasks.make_query(rng, rng.choice(families))
        n = rng.choices(list(sizes), list(sizes.values()))[0]
        hard = split == "hard"
        responses = [
            dress(rng, tasks.right_items(rng, query), query.thanks, "none" if hard else "free")
        ]
        while len(responses) < n or n == 1:
            candidate = wrong_response(rng, query, "some" if hard else "free")
            if is_right(query, candidate) or candidate.text in {r.text for r in responses}:
                continue
            if n == 1:
                responses = [rng.choice([responses[0], candidate])]
                break
            responses.append(candidate)
        rng.shuffle(responses)
        item = WorldItem(query, tuple(responses))
        if item.for_testing == testing:
            return item


def make_items(split: str, count: int, seed: int) -> list[WorldItem]:
    """Makes `count` distinct items of a split.

    Item i depends on (split, seed, i) and on which earlier items it would repeat.
    """
    if split not in SPLITS:
        raise ValueError(
            f"world split {split!r} does not exist; expected one of {', '.join(SPLITS)}"
        )
    families = tasks.HELDOUT_FAMILIES if split == "heldout" else tasks.REWARD_FAMILIES
    seen, items = set(), []
    for i in range(count):
        rng = random.Random(f"world/{split}/{seed}/{i}")
        item = draw_item(rng, split, families, testing=split != "train")
        key = (item.query.text, frozenset(r.text for r in item.responses))
        for _ in range(1000):
            if key not in seen:
                break
            item = draw_item(rng, split, families, testing=split != "train")
            key = (item.query.text, frozenset(r.text for r in item.responses))
        else:
            raise ValueError(
                f"world split {split!r} has no {count} distinct items (stopped at {i})"
            )
        seen.add(key)
        items.append(item)
    return items


def make_records(split: str, count: int, seed: int = 0) -> list[Record]:
    """Makes `count` records of a split, in the schema of `grm_jax.judgment.records`."""
    return [
        item.record(f"world/{split}/{seed}/{i}", split)
        for i, item in enumerate(make_items(split, count, seed))
    ]


def describe(split: str) -> str:
    """Says in words what the records of a split are, for a reader of figures on them."""
    families = tasks.HELDOUT_FAMILIES if split == "heldout" else tasks.REWARD_FAMILIES
    named = "; ".join(f"{family}: {_TASKS[family]}" for family in families)
    return (
        f"The checkable world, split {split}. A query asks for something to be done with a "
        "numbered list of animals, three in ten also for thanks; which response does it is "
        "computed. "
        f"{_ABOUT[split]} The domain is what is asked for ({named})."
    )


def make_instructions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Makes general instruction data: {"id", "prompt", "completion"}.

    Queries of every family, each with a right response.
    """
    rows = []
    for i in range(count):
        rng = random.Random(f"world/instructions/{seed}/{i}")
        query = tasks.make_query(rng, rng.choice(tuple(tasks.FAMILIES)))
        response = dress(rng, tasks.right_items(rng, query), query.thanks, "free")
        rows.append(
            {
                "id": f"world/instructions/{seed}/{i}",
                "prompt": query.text,
                "completion": response.text,
            }
        )
    return rows

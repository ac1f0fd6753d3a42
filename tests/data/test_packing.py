"""Rows hold every unit once, whole, where only itself sees it; the same rows for the same order;
and little padding on the lengths of real text.
"""

import json

import numpy as np
import pytest

from grm_jax.data.packing import Text, longest_unit, pack, pack_examples
from tests.conftest import shared_data

REAL = shared_data() / "lengths" / "real_text.json"


def random_units(rng, texts=1, keys=5):
    """Units of a few prompts; their tokens tell them apart."""
    prompts = [rng.integers(1, 99, rng.integers(1, 30)) for _ in range(keys)]
    units, of = [], []
    for _ in range(rng.integers(1, 40)):
        key = int(rng.integers(keys))
        rest = [rng.integers(1, 99, rng.integers(1, 20)) for _ in range(texts)]
        units.append(
            tuple(Text(np.concatenate([prompts[key], r]), len(prompts[key])) for r in rest)
        )
        of.append(key)
    return units, of


def seen(laid, m, r, t):
    """Tokens that the query t of a row sees, by position: what `Packed` says in words."""
    segment, branch, positions = (x[m, r] for x in (laid.segment, laid.branch, laid.positions))
    there = (segment == segment[t]) & ((branch == 0) | (branch == branch[t]))
    keys = np.flatnonzero(there & (positions >= 0) & (positions <= positions[t]))
    return laid.tokens[m, r, keys[np.argsort(positions[keys])]]


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_every_token_sees_its_own_sequence_alone(seed, texts):
    rng = np.random.default_rng(seed)
    units, keys = random_units(rng, texts)
    laid = pack(units, keys, (72, 96, 128), int(rng.integers(1, 5)))
    M, R, T = laid.tokens.shape
    assert M * R >= len(units) > (M - 1) * R and T == 128
    assert len(set(laid.slot_U.tolist())) == len(units)
    for u, unit in enumerate(units):
        row, slot = divmod(int(laid.slot_U[u]), laid.slots)
        m, r = divmod(row, R)
        assert m < laid.parts
        for n, text in enumerate(unit):
            for t in range(text.first - 1, len(text.ids)):
                at = laid.offset_UN[u, n] + t
                assert laid.positions[m, r, at] == t < laid.lengths[laid.sizes[m]]
                np.testing.assert_array_equal(seen(laid, m, r, at), text.ids[: t + 1])
                if t >= text.first:  # its logits are those of the token before it
                    assert laid.tokens[m, r, at - 1] == text.ids[t - 1]
                    assert laid.positions[m, r, at - 1] == t - 1
    # nothing else is in the rows, trees lie one behind the other, padding comes last
    trees = {
        (m, r, s)
        for m, r, s in zip(*np.nonzero(laid.segment >= 0)[:2], laid.segment[laid.segment >= 0])
    }
    assert len(trees) <= len(units)
    assert (laid.positions[laid.parts :] < 0).all()
    order = np.where(laid.segment < 0, 10**6, laid.segment * 1000 + laid.branch)
    assert (np.diff(order, axis=-1) >= 0).all()
    assert laid.laid <= sum(len(text.ids) for unit in units for text in unit) <= 10**6
    assert laid.laid <= laid.computed


def test_rows_are_a_function_of_the_order_of_the_data():
    units, keys = random_units(np.random.default_rng(3))
    one, two = pack(units, keys, (96, 128), 2), pack(units, keys, (96, 128), 2)
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, two.arrays()[name])
    other = pack(units[::-1], keys[::-1], (96, 128), 2)
    assert (other.tokens != one.tokens).any()


def test_a_prompt_is_laid_down_once_and_its_completions_behind_it():
    units = [(Text(np.array([5, 6, 7, 8, 9]), 3),), (Text(np.array([5, 6, 7, 4]), 3),)]
    laid = pack(units, ["p", "p"], (16,), 1)
    assert laid.tokens[0, 0].tolist() == [5, 6, 7, 8, 9, 7, 4] + [0] * 9
    assert laid.positions[0, 0].tolist() == [0, 1, 2, 3, 4, 2, 3] + [-1] * 9
    assert laid.branch[0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2] + [0] * 9
    assert laid.segment[0, 0].tolist() == [0] * 7 + [-1] * 9
    assert laid.parts == 1 and laid.computed == 16 and laid.laid == 7
    values = laid.at_tokens([3, 3], [np.array([1.0, 2.0]), np.array([3.0])])
    assert values[0, 0].tolist() == [0, 0, 0, 1, 2, 0, 3] + [0] * 9
    np.testing.assert_array_equal(laid.of_units(laid.in_slots(np.array([1.5, 2.5]))), [1.5, 2.5])
    # of another key each is a sequence by itself
    apart = pack(units, ["p", "q"], (16,), 1)
    assert apart.laid == 9 and set(apart.branch[0, 0].tolist()) == {0}


def test_a_tree_that_no_row_holds_is_grown_as_several():
    prompt = np.arange(1, 41)
    units = [(Text(np.append(prompt, np.full(20, 50 + g)), 40),) for g in range(4)]
    laid = pack(units, [0] * 4, (90,), 1)
    assert laid.parts == 2  # 39 + 2 x 21, twice
    assert laid.laid == 2 * (39 + 42)
    with pytest.raises(ValueError, match="unit 2 of the batch takes 60 tokens.*longest row has 59"):
        pack(
            [u if i == 2 else (Text(u[0].ids[:50], 40),) for i, u in enumerate(units)],
            [0] * 4,
            (59,),
            1,
        )


def test_a_front_that_saves_little_is_not_shared():
    units = [(Text(np.concatenate([[1, 2], np.full(98, g + 5)]), 2),) for g in range(2)]
    assert pack(units, [0, 0], (256,), 1).laid == 200
    assert (
        pack(
            [(Text(np.concatenate([np.arange(20), np.full(80, g + 30)]), 20),) for g in range(2)],
            [0, 0],
            (256,),
            1,
        ).laid
        == 181
    )


def test_a_row_has_room_for_an_eighth_as_many_units_as_tokens():
    laid = pack([(Text(np.array([1, 2]), 1),)] * 9, range(9), (32,), 1)
    assert laid.slots == 4 and laid.parts == 3


def test_examples_keep_their_masks_labels_and_last_tokens():
    ids, mask = np.array([3, 4, 5, 6]), np.array([0, 0, 1, 1.0])
    learned = [
        {"id": "a", "tokens": ids, "positions": np.arange(4), "mask": mask},
        {"id": "b", "tokens": ids[:3], "positions": np.arange(3), "mask": np.ones(3)},
    ]
    packed = pack_examples(learned, (16,), 1)
    batch = packed["batch"]
    assert packed["id"] == ["a", "b"] and packed["computed"] == 16 and packed["laid"] == 7
    # the first token of a sequence has nothing before it
    assert batch["wanted"][0, 0].tolist() == [0, 0, 1, 1, 0, 1, 1] + [0] * 9
    assert batch["mask"].sum() == 2 and batch["length"].sum() == 5
    labeled = [
        {k: v for k, v in e.items() if k != "mask"} | {"labels": float(i)}
        for i, e in enumerate(learned)
    ]
    batch = pack_examples(labeled, (16,), 1)["batch"]
    assert batch["last"][0, 0, :, 0].tolist() == [3, 6] and batch["labels"][0, 0].tolist() == [0, 1]
    assert batch["length"].tolist() == batch["mask"].tolist()
    pair = {
        "id": "c",
        "better_tokens": np.array([3, 4, 5, 0]),
        "better_positions": np.array([0, 1, 2, -1]),
        "worse_tokens": np.array([3, 4, 6, 7]),
        "worse_positions": np.arange(4),
    }
    assert longest_unit([pair]) == 5
    batch = pack_examples([pair], (8,), 1)["batch"]
    assert batch["tokens"][0, 0].tolist() == [3, 4, 5, 6, 7, 0, 0, 0]
    assert batch["branch"][0, 0].tolist() == [0, 0, 1, 2, 2, 0, 0, 0]
    assert batch["last"].tolist() == [[[[2, 4]]]]


# ---- how much is padding on lengths like those of real text

ROWS = (5120, 7168, 8704)


def lengths_like_real_text(count=1800):
    """Prompts of judgments: log-normal, median 1,200 tokens; completions: median 280."""
    rng = np.random.default_rng(0)
    prompts = np.clip(np.exp(rng.normal(np.log(1200), 0.55, count)), 250, 4096).astype(int)
    completions = np.clip(np.exp(rng.normal(np.log(280), 0.35, count)), 60, 1024).astype(int)
    return list(zip(prompts.tolist(), completions.tolist()))


def lengths(source):
    if source == "like real text":
        return lengths_like_real_text()
    if not REAL.is_file():
        pytest.skip(f"no {REAL}")
    rows = json.loads(REAL.read_text())
    return [(row["prompt"], row["completion"]) for row in rows if row["prompt"] <= 4096]


def text(rng, n):
    return rng.integers(1, 250_000, n)


def rl_step(rng, found, prompts, group=4):
    units, keys, needed = [], [], 0
    for p in range(prompts):
        prompt = text(rng, found[rng.integers(len(found))][0])
        needed += len(prompt)
        for _ in range(group):
            completion = text(rng, found[rng.integers(len(found))][1])
            units.append((Text(np.concatenate([prompt, completion]), len(prompt)),))
            keys.append(p)
            needed += len(completion)
    return units, keys, needed


def rft_batch(rng, found, count=1024, general=1070 / 1256):
    units, needed = [], 0
    for _ in range(count):
        prompt, completion = found[rng.integers(len(found))]
        if rng.random() < general:  # short instructions
            prompt, completion = rng.integers(8, 40), rng.integers(8, 60)
        units.append((Text(text(rng, prompt + completion), prompt),))
        needed += prompt + completion
    return units, list(range(count)), needed


def meta_batch(rng, found, count=512):
    units, keys, needed = rft_batch(rng, found, count, 0.0)
    return [(Text(unit[0].ids, len(unit[0].ids)),) for unit in units], keys, needed


def pair_batch(rng, found, count=256):
    """Conversations of a third of a judge's prompt, with two responses of half a completion."""
    units, needed = [], 0
    for _ in range(count):
        prompt, response = found[rng.integers(len(found))]
        front = text(rng, prompt // 3)
        ends = [text(rng, n) for n in rng.integers(response // 2, response, 2)]
        units.append(tuple(Text(ids, len(ids)) for ids in (np.append(front, e) for e in ends)))
        needed += len(front) + sum(map(len, ends))
    return units, list(range(count)), needed


@pytest.mark.parametrize("source", ["like real text", "real text"])
@pytest.mark.parametrize(
    "kind, make, shares, most, batches",
    [
        ("RL, 128 prompts x 4, 16 shares", lambda r, f: rl_step(r, f, 128), 16, 1.08, 4),
        ("RL, 8 prompts x 4, one device", lambda r, f: rl_step(r, f, 8), 1, 1.08, 24),
        ("RFT of 1,024", rft_batch, 16, 1.05, 3),
        ("Meta RM of 512", meta_batch, 16, 1.05, 3),
        ("Bradley-Terry, 256 pairs", pair_batch, 16, 1.05, 3),
    ],
)
def test_little_of_what_is_computed_is_padding(source, kind, make, shares, most, batches):
    """Computed tokens by needed ones, a prompt of a group once, over several batches."""
    rng, found = np.random.default_rng(1), lengths(source)
    computed = needed = 0
    for _ in range(batches):
        units, keys, tokens = make(rng, found)
        computed, needed = computed + pack(units, keys, ROWS, shares).computed, needed + tokens
    print(f"{kind}, {source}: {computed / needed:.3f}")
    assert computed / needed <= most

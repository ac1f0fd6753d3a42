"""What all prompts of a template begin with, which the engine computes once."""

from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models.grm import FRONT_STEP, Prompter
from tests.reward_models.judge_cases import PROMPTER, TOKENIZER, record


def test_a_front_is_what_every_prompt_of_a_template_begins_with():
    prompter = Prompter(TOKENIZER, load_template("pointwise"), load_template("single"))
    fronts = {}
    for one in (
        record("a", [3, 7]),
        record("b", [2, 5], words=9),
        record("c", [1]),
        record("d", [1, 2, 3]),
    ):
        n = len(one.responses)
        ids = prompter.ids(one, range(n))
        front = prompter.front_of(ids, n)
        text = TOKENIZER.decode(ids[:front])
        assert front > 10 * FRONT_STEP and front % FRONT_STEP == 0
        assert "speak" not in text and fronts.setdefault(n, text) == text
        assert prompter.front_of(ids[:front], n) == 0  # nothing would be left to read
    assert (
        "2 candidate" in fronts[2] and "3 candidate" in fronts[3] and "candidate" not in fronts[1]
    )


def test_a_prompt_that_begins_in_another_way_has_no_front():
    one = record("a", [3, 7])
    prompter = Prompter(TOKENIZER, load_template("judge"), load_template("judge"), "index")
    ids = prompter.ids(one, (1, 0))
    assert prompter.front_of(ids, 2) > 0 == prompter.front_of([*ids[:9], 5, *ids[10:]], 2)
    assert PROMPTER.front_of(PROMPTER.ids(one, (0, 1)), 2) == 0  # the template has no words before

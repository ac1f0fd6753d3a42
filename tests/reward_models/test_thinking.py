"""What a model thinks is told apart by its template's marks, counted, and kept within a budget."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.checkpoint.huggingface import save_folder
from grm_jax.models import init_params
from grm_jax.models.config import Numerics, from_sizes
from grm_jax.models.decoder import Decoder, lm_logits
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.grm import Ask, Prompter, judge
from grm_jax.reward_models.load import describe
from grm_jax.reward_models.system import Asking
from grm_jax.reward_models.thinking import Thought, generate_within, thought_of
from grm_jax.sampling.engine import Drawing
from grm_jax.sampling.logits import choose_tokens
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.rollout import Request, generate
from grm_jax.sampling.sampler import SamplingConfig, sample_key
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.tokenizer import Thinking, Tokenizer, load_tokenizer
from tests.chat_formats import DEEPSEEK, FORMATS, THINK, chat_folder
from tests.models.family_cases import SIZES
from tests.reward_models.judge_cases import PROMPTER, TOKENIZER, FakeSampler, judgment, record
from tests.sampling.test_sampler import CFG

# DeepSeek-R1's: the prompt opens the thinking
R1 = DEEPSEEK.replace(
    "{{ '<｜Assistant｜>' }}{% endif %}", "{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
MAGISTRAL = ("[THINK]", "[/THINK]")


def folder_of(tmp_path, name, template=None, special=()):
    folder = chat_folder(tmp_path, name)
    if template:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"chat_template": template}))
    if special:
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        for token in tokenizer["added_tokens"]:
            if token["content"] in THINK:
                token["special"] = True
                token["content"] = special[THINK.index(token["content"])]
        path.write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("name", ["gemma", "llama3", "chatml"])
def test_a_template_without_marks_marks_no_thinking(name, tmp_path):
    assert load_tokenizer(chat_folder(tmp_path, name)).thinking is None


@pytest.mark.parametrize("special", [(), MAGISTRAL])
@pytest.mark.parametrize(
    "name, switches, opened",
    [("qwen3", {}, False), ("qwen3", {"enable_thinking": False}, False)]
    + [("deepseek_v3", {}, False), ("r1", {}, True)],
)
def test_marks_are_those_of_the_template(name, switches, opened, special, tmp_path):
    chat, template = ("deepseek_v3", R1) if name == "r1" else (name, FORMATS[name].template)
    for mark, other in zip(THINK, special):
        template = template.replace(mark, other)
    folder = folder_of(tmp_path, chat, template, special)
    tokenizer = load_tokenizer(folder, switches)
    thinking = tokenizer.thinking
    opens, closes = special or THINK
    assert (thinking.opens, thinking.closes, thinking.opened) == (opens, closes, opened)
    library = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in library["added_tokens"]}
    assert thinking.end_ids.count(ids[closes]) == 1
    assert tokenizer.decode(thinking.end_ids) == f"\n{closes}\n\n"
    # in what a model writes the marks are ids, whether they are special tokens or not
    drawn = [*tokenizer.encode("A box: 8"), ids[closes], *tokenizer.encode("9")]
    before = [] if opened else [ids[opens]]
    assert closes in tokenizer.decode(drawn) and closes not in tokenizer.decode(drawn[:-2])
    assert thought_of(tokenizer, [*before, *drawn]) == Thought(len(before) + len(drawn) - 1, True)
    assert thought_of(tokenizer, [*before, *drawn[:4]]) == Thought(len(before) + 4, False)
    if not opened:
        assert thought_of(tokenizer, drawn) == Thought(0, True)


# ---- a budget, on a model whose text is noise: ids 3 and 7 stop, 5 closes its thinking

CLOSES, END = 5, (9, 5, 10)
BUDGET, LONGEST = 9, 20


def _decode(ids):
    return "".join("</think>" if i == CLOSES else chr(0x4E00 + int(i)) for i in ids)


NOISE = Tokenizer(
    vocab_size=62,
    pad_id=0,
    bos_id=1,
    eos_id=3,
    start_of_turn_id=None,
    end_of_turn_id=7,
    text_prefix="",
    encode=lambda text: [ord(c) - 0x4E00 for c in text],
    decode=_decode,
    thinking=Thinking("<think>", "</think>", True, END),
)
SETTINGS = SamplingConfig(max_new_tokens=LONGEST, temperature=0.9, stop_ids=(3, 7), pad_id=0)
BUCKETS = (8, 16)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2.0 * x, init_params(CFG, jax.random.key(1)))


def requests():
    rng = np.random.default_rng(3)
    lengths = (3, 14, 8, 5, 11, 6)
    return [
        Request(rng.integers(8, 62, n).tolist(), f"item{i}", tuple(range(8)))
        for i, n in enumerate(lengths)
    ]


def within(params, budget, rows=16, chunk=3, asked=None):
    asked = requests() if asked is None else asked
    drawing = Drawing(CFG, SETTINGS, chunk=chunk)
    got = {}
    for indices, completions, cuts in generate_within(
        budget, NOISE, drawing, params, asked, 0, BUCKETS, rows
    ):
        names = [(asked[i].item_id, s) for i in indices for s in asked[i].samples]
        assert [(c.item_id, c.sample) for c in completions] == names and len(names) == len(cuts)
        got |= dict(zip(names, zip(completions, cuts)))
    assert len(got) == sum(len(request.samples) for request in asked)
    return got


@pytest.fixture(scope="module")
def whole(params):
    """What no budget gives, by the batch sampler."""
    batches = generate(make_sampler(CFG, SETTINGS), params, requests(), 0, BUCKETS, 16)
    return {(c.item_id, c.sample): c for _, completions in batches for c in completions}


@pytest.fixture(scope="module")
def next_token(params):
    """A slow twin: the whole text is read again for every token."""

    @jax.jit
    def step(ids_T, length, key, number):
        pos_T = jnp.where(jnp.arange(64) < length, jnp.arange(64), -1)
        hidden, _ = Decoder(CFG).apply({"params": params}, ids_T[None], pos_T[None])
        logits = lm_logits(params, CFG, hidden[:, length - 1])
        token, _ = choose_tokens(logits, key[None], number, SETTINGS.temperature)
        return token[0]

    def choose(prompt, drawn, item, sample):
        ids = np.zeros(64, np.int32)
        text = [*prompt, *drawn]
        ids[: len(text)] = text
        return int(step(ids, len(text), sample_key(0, item, sample), len(drawn)))

    return choose


def test_a_thinking_that_ends_in_its_budget_is_that_of_no_budget_and_others_are_closed(
    params, whole, next_token
):
    got, kinds = within(params, BUDGET), set()
    prompts = {request.item_id: request.prompt_ids for request in requests()}
    twins = 0
    for (item, sample), (completion, cut) in got.items():
        ids, plain = completion.token_ids.tolist(), whole[item, sample].token_ids.tolist()
        closed = CLOSES in plain[:BUDGET]
        stops = len(plain) <= BUDGET and whole[item, sample].finished
        assert cut == (not closed and not stops)
        assert completion.logp.shape == completion.token_ids.shape and len(ids) <= LONGEST
        kinds.add((closed, stops, cut, completion.finished))
        if not cut:
            assert ids == plain and completion.finished == whole[item, sample].finished
            np.testing.assert_allclose(completion.logp, whole[item, sample].logp, atol=1e-4)
            continue
        assert ids[:BUDGET] == plain[:BUDGET]
        assert ids[BUDGET : BUDGET + len(END)] == list(END)
        assert not completion.logp[BUDGET : BUDGET + len(END)].any()
        assert completion.finished == (ids[-1] in SETTINGS.stop_ids)
        assert completion.finished or len(ids) == LONGEST
        if twins < 6:
            twins += 1
            for number in range(BUDGET + len(END), len(ids)):
                wanted = next_token(prompts[item], ids[:number], item, sample)
                assert ids[number] == wanted
    assert twins == 6 and {cut for _, _, cut, _ in kinds} == {True, False}
    assert {closed for closed, *_ in kinds} == {True, False}
    assert {finished for *_, finished in kinds} == {True, False}


def test_what_a_budget_gives_depends_on_nothing_beside_it(params):
    wanted = within(params, BUDGET)
    few = within(params, BUDGET, rows=5, chunk=32, asked=list(reversed(requests()))[:4])
    for name, (completion, cut) in few.items():
        np.testing.assert_array_equal(completion.token_ids, wanted[name][0].token_ids)
        assert cut == wanted[name][1]


def test_a_budget_as_long_as_the_completion_changes_nothing(params, whole):
    for name, (completion, cut) in within(params, LONGEST).items():
        np.testing.assert_array_equal(completion.token_ids, whole[name].token_ids)
        assert not cut and completion.finished == whole[name].finished


# ---- judgments


def rows_of(text, tokenizer, finished=True):
    prompter = dataclasses.replace(PROMPTER, tokenizer=tokenizer)
    sampler = FakeSampler(lambda prompt, key: (text, finished))
    ask = Ask(record("r", (2, 7)), (1, 0), (0,), "r")
    how = {"seed": 0, "temperature": 1.0, "buckets": (256,), "rows": 1}
    ((one,),) = judge(sampler, {}, prompter, [ask], **how)
    return one.judgment


@pytest.mark.parametrize("opened", [True, False])
def test_a_judgment_keeps_its_thinking_counts_it_and_reads_no_score_in_it(opened):
    thinking = Thinking("<think>", "</think>", opened, (1,))
    tokenizer = dataclasses.replace(TOKENIZER, thinking=thinking)
    draft, answer = "hm \\boxed{1, 9}", judgment([9, 3])
    begin = "" if opened else "<think>"
    row = rows_of(f"{begin}{draft}</think>{answer}", tokenizer)
    assert row["text"] == f"{begin}{draft}</think>{answer}"
    assert row["scores"] == [3, 9] and row["failure"] is None
    assert row["thinking_tokens"] == len(f"{begin}{draft}</think>")
    assert row["thinking_cut"] is False and row["tokens"] == len(row["text"]) + 1
    # it never closes what it, or its prompt, opened: there is no answer, whatever it holds
    row = rows_of(f"{begin}{draft}", tokenizer)
    assert (row["scores"], row["failure"]) == (None, "only_reasoning")
    assert row["thinking_tokens"] == row["tokens"]
    # one that does not think where it may
    row = rows_of(answer, tokenizer)
    assert row["failure"] == ("only_reasoning" if opened else None)
    assert row["thinking_tokens"] == (row["tokens"] if opened else 0)
    assert "thinking_tokens" not in rows_of(answer, TOKENIZER)


def test_a_budget_needs_the_engine():
    prompter = Prompter(NOISE, PROMPTER.pointwise, PROMPTER.single, thinking_budget=4)
    tokenizer = dataclasses.replace(TOKENIZER, thinking=NOISE.thinking)
    sampler = FakeSampler(lambda prompt, key: ("a", True))
    ask = Ask(record("r", (2, 7)), (1, 0), (0,), "r")
    prompter = dataclasses.replace(prompter, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="needs the engine"):
        next(judge(sampler, {}, prompter, [ask], seed=0, temperature=1.0, buckets=(256,), rows=1))


def test_a_folder_whose_prompt_opens_thinking_is_judged_within_a_budget(tmp_path):
    """From the spec of a system to its judgments: noise is closed, and the rest is read."""
    files = folder_of(tmp_path, "deepseek_v3", R1)
    tokenizer = load_tokenizer(files)
    sizes = SIZES | {"model_type": "qwen3", "n_layers": 2, "tied_head": True}
    cfg = from_sizes(sizes, tokenizer.vocab_size)
    folder = tmp_path / "model"
    weights = jax.tree.map(lambda x: 2.0 * x, init_params(cfg, jax.random.key(0)))
    save_folder(folder, weights, cfg, tokenizer_files_from=files)
    asking = Asking(
        mesh=make_mesh(replica=1, fsdp=1, devices=jax.devices()[:1]),
        numerics=Numerics("float32", False),
        lengths=Lengths(512, 20, (512,)),
        sampling=Sampling(rows=8, sampler="jit"),
        templates={role: PROMPTER.pointwise for role in ("pointwise", "single")},
    )
    spec = {"name": "thinks", "kind": "pointwise_grm", "path": str(folder)}
    rows = {}
    for budget in (None, 8):
        system = describe(spec | ({"thinking_budget": budget} if budget else {}), asking)
        assert system.identity.get("thinking_budget") == budget
        blocks = system.load(0).judge([record("r", (2, 7))], range(4), 1.0)
        rows[budget] = {row["sample"]: row for block in blocks for row in block}
    for sample, row in rows[8].items():
        free = rows[None][sample]
        assert not free["thinking_cut"] and free["thinking_tokens"] == free["tokens"]
        assert free["failure"] in ("truncated", "only_reasoning")
        end = len(tokenizer.thinking.end_ids)
        if row["thinking_cut"]:
            assert row["thinking_tokens"] == 8 + end - 1  # the last is the line break behind it
            assert "</think>" in row["text"] and row["tokens"] <= 20
            assert row["failure"] in ("truncated", "no_box")
        else:  # it stopped before
            assert row["text"] == free["text"] and row["tokens"] <= 8
    assert any(row["thinking_cut"] for row in rows[8].values())

"""Makes the JSON object of a record of a row, for each published form of preference data.

A converter is Row -> dict (docs/extend.md); `infer_format` tells by the fields of a row which of
FORMATS it has, and `from_columns` takes a table of any form.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from grm_jax.data.files import Row
from grm_jax.data.rows import as_turn, checked_turns, dialogue, row_text, row_turns, row_value
from grm_jax.json_files import cut, shown

# what the fields of preference sets are called
PROMPTS = ("prompt", "messages", "question", "instruction", "conversations", "context")
DIALOGUES = ("messages", "conversations")  # that may repeat the prompt
UNREAD = ("history", "input")  # that hold a part of the prompt
RESPONSE_LISTS = ("responses", "completions", "answers")
RESPONSE_TEXTS = ("response", "completion", "answer", "text", "content")
SCORES = ("overall_score", "score", "reward", "rating")


def infer_format(row: Row) -> str:
    """Returns the name in FORMATS whose fields a row has. Raises ValueError if there is none."""
    fields = row.data.keys()
    if {"conversation", "responses"} <= fields:
        return "records"
    if fields & {"bon_uid", "pair_uid"}:
        return "rmb"
    if {"input", "output_1", "output_2", "label"} <= fields:
        return "llmbar"
    if {"chosen", "rejected"} <= fields and str(row.data["chosen"]).startswith("\n\nHuman:"):
        return "hh_rlhf"
    prompt = fields & set(PROMPTS)
    if {"chosen", "rejected"} <= fields and (prompt or isinstance(row.data["chosen"], list)):
        return "preference"
    if prompt and fields & {"preference_strength", "overall_preference"}:
        return "preference_strength"
    if prompt and {"response", "helpfulness"} <= fields:
        return "helpsteer"
    if prompt and fields & set(RESPONSE_LISTS):
        return "scored"
    raise ValueError(
        f"{row.where}: cannot tell the format from the fields {sorted(map(str, fields))}; give the "
        f"source a format ({', '.join(FORMATS)}) or columns"
    )


# ---- one converter a format: Row -> the JSON object of a record


def _from_records(row: Row) -> dict:
    # tables fill absent fields with null
    return {field: value for field, value in row.data.items() if value is not None}


def _from_rmb(row: Row) -> dict:
    """RMB (Zhou-Zoey/RMB-Reward-Model-Benchmark), pairwise and best-of-N. The domain is the
    category path without the set's name.
    """
    kind = "bon" if "bon_uid" in row.data else "pair"
    best, others = (
        ("bon_best", row_value(row, "loser_list", list))
        if kind == "bon"
        else ("chosen", [row_value(row, "reject", dict)])
    )
    answers = [row_value(row, best, dict), *others]
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(answer.get("answer"), str):
            raise ValueError(
                f'{row.where}: field "{"loser_list" if kind == "bon" else "chosen/reject"}": '
                'expected objects with a text "answer"'
            )
    path = row_text(row, "category_path")
    return {
        "id": f"rmb/{kind}/{row_value(row, f'{kind}_uid', (str, int))}",
        "conversation": row_turns(row, "conversation_input"),
        "responses": [answer["answer"] for answer in answers],
        "best": 0,
        "domain": path.removeprefix("BoN_set/").removeprefix("Pairwise_set/"),
        "metadata": {
            "category_path": path,
            "llm_names": [answer.get("llm_name", "") for answer in answers],
        },
    }


def _from_llmbar(row: Row) -> dict:
    """LLMBar (princeton-nlp/LLMBar). The domain is the name of the subset's folder."""
    label = row_value(row, "label", int)
    if label not in (1, 2):
        raise ValueError(f'{row.where}: field "label": expected 1 or 2, got {shown(label)}')
    subset = row.name.split("/")[0]
    return {
        "id": f"llmbar/{subset}/{row.index}",
        "conversation": [{"role": "user", "content": row_text(row, "input")}],
        "responses": [row_text(row, "output_1"), row_text(row, "output_2")],
        "best": label - 1,
        "domain": subset,
    }


def _from_hh_rlhf(row: Row) -> dict:
    """Dialogues of anthropics/hh-rlhf. The conversation is the shared turns, the responses are all
    that follows them.

    Now and then one of the two goes on with turns of its own (assistant and human in turn); that
    text stays part of the response.
    """
    chosen, rejected = (dialogue(row, field) for field in ("chosen", "rejected"))
    shared = 0
    for k, (a, b) in enumerate(zip(chosen, rejected)):
        if k and chosen[k - 1][0] == "Human" and a[0] == b[0] == "Assistant":
            shared = k
        if a != b:
            break
    if not shared:
        raise ValueError(
            f'{row.where}: fields "chosen" and "rejected": expected dialogues that share a human '
            "turn and then answer it"
        )
    return {
        "id": f"hh_rlhf/{row.name}/{row.index}",
        "conversation": [
            {"role": "user" if role == "Human" else "assistant", "content": text}
            for role, text in chosen[:shared]
        ],
        "responses": [
            "\n\n".join(
                [turns[shared][1], *(f"{role}: {text}" for role, text in turns[shared + 1 :])]
            )
            for turns in (chosen, rejected)
        ],
        "best": 0,
        "domain": row.name.split("/")[0],
    }


def _from_preference(row: Row) -> dict:
    """Pairs as most preference sets have them: {"prompt", "chosen", "rejected"}, each a text or
    turns; a name in PROMPTS may stand for "prompt", "system" hold the text of a system turn, and
    the prompt be left out where chosen and rejected are whole dialogues (`_conversation`).
    """
    responses = [(name, row_value(row, name, (str, list, dict))) for name in ("chosen", "rejected")]
    return {"id": f"preference/{row.name}/{row.index}", **_answered(row, responses), "best": 0}


def _from_scored(row: Row) -> dict:
    """Several responses with a number each, the larger the better: lists in two fields, such as
    "responses" and "scores", or one list of objects that hold both, as the "completions" of
    UltraFeedback and the "answers" of Nectar, whose rank 1 is the best.
    """
    field = _one_of(row, RESPONSE_LISTS)
    elements = row_value(row, field, list)
    if all(isinstance(element, dict) and as_turn(element) is None for element in elements):
        responses, rewards = [], []
        for i, element in enumerate(elements):
            one = Row(f'{row.where}: field "{field}[{i}]"', row.name, row.index, element)
            text, score = _one_of(one, RESPONSE_TEXTS), _one_of(one, (*SCORES, "rank"))
            responses.append((f"{field}[{i}].{text}", row_value(one, text, (str, list))))
            value = row_value(one, score, (int, float))
            rewards.append(-value if score == "rank" else value)
    else:
        responses = [(f"{field}[{i}]", element) for i, element in enumerate(elements)]
        rewards = row_value(row, _one_of(row, (*(f"{name}s" for name in SCORES), "labels")), list)
    return {
        "id": f"scored/{row.name}/{row.index}",
        **_answered(row, responses),
        "rewards": list(rewards),
    }


def _from_helpsteer(row: Row) -> dict:
    """HelpSteer and HelpSteer2 (nvidia), one response a row; responses of one prompt stand together
    (`lists_of`), and their helpfulness is the reward.
    """
    field = _one_of(row, PROMPTS)
    responses = [(f"response of row {i}", text) for i, text in row.data["response"]]
    return {
        "id": f"helpsteer/{row.name}/{row.index}",
        **_answered(row, responses, turns=_marked_turns(row, field)),
        "rewards": row.data["helpfulness"],
    }


def _from_strength(row: Row) -> dict:
    """Two responses and how much better the second is: HelpSteer2's preferences and HelpSteer3
    (nvidia), from -3 (the first is much better) to 3; 0 is a tie.
    """
    field = _one_of(row, ("preference_strength", "overall_preference"))
    strength = row_value(row, field, (int, float))
    names = [_one_of(row, (f"response_{i}", f"response{i}")) for i in (1, 2)]
    responses = [(name, row_value(row, name, (str, list))) for name in names]
    prompt = _one_of(row, PROMPTS)
    turns = _marked_turns(row, prompt) if isinstance(row.data[prompt], str) else None
    return {
        "id": f"preference_strength/{row.name}/{row.index}",
        **_answered(row, responses, turns),
        "rewards": [-strength, strength],
    }


def _answered(row: Row, responses: Sequence[tuple[str, Any]], turns: list | None = None) -> dict:
    """{"conversation", "responses"} of a row whose prompt has a name in PROMPTS; turns: of it,
    where they are known.

    Nothing that belongs to the prompt is passed over: ValueError where several fields may be it,
    and where "messages" beside a prompt say something else than the dialogues.
    """
    given = [name for name in PROMPTS if row.data.get(name) is not None]
    prompt = given[0] if given else None
    several = [name for name in given if name not in DIALOGUES and row.data[name]]
    unread = [field for field in UNREAD if row.data.get(field)]
    if unread or len(several) > 1:
        raise ValueError(
            f"{row.where}: cannot tell what the prompt is, as it has the fields "
            f"{', '.join([*several, *unread])}; give the source columns, or a format of your own "
            "(docs/extend.md)"
        )
    text = "" if prompt is None else row.data[prompt]
    if isinstance(text, str) and text.startswith("\n\nHuman:"):
        turns = [
            {"role": "user" if role == "Human" else "assistant", "content": said.strip()}
            for role, said in dialogue(row, str(prompt))
        ]
        if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]
    conversation, texts = _conversation(row, prompt, responses, turns)
    for name in given[1:]:
        if name in DIALOGUES:
            _check_agrees(row, name, conversation)
    if row.data.get("system"):
        if conversation[0]["role"] == "system":
            raise ValueError(f'{row.where}: field "system": the dialogue has a system turn as well')
        conversation = [{"role": "system", "content": row_text(row, "system")}, *conversation]
    return {"conversation": conversation, "responses": texts}


def _check_agrees(row: Row, field: str, conversation: list[dict[str, str]]) -> None:
    """Turns beside the prompt are the conversation, with or without an answer to it."""
    turns = row_turns(row, field)
    start = int(turns[0]["role"] == "system" != conversation[0]["role"])
    end = len(turns) - (len(turns) > 1 and turns[-1]["role"] == "assistant")
    skip = int(conversation[0]["role"] == "system" != turns[0]["role"])
    _check_same(row, field, turns[start:end], "the conversation", conversation[skip:], start)


def lists_of(rows: Iterable[Row]) -> Iterator[Row]:
    """Joins rows of one response each, of HelpSteer, to one row for each run of the same prompt.

    "response" holds the [(index of its row, text)], "helpfulness" the numbers.
    """
    for _, together in itertools.groupby(rows, lambda row: row.data.get(_one_of(row, PROMPTS))):
        group = list(together)
        data = group[0].data | {
            "response": [(row.index, row_text(row, "response")) for row in group],
            "helpfulness": [row_value(row, "helpfulness", (int, float)) for row in group],
        }
        yield dataclasses.replace(group[0], data=data)


def _marked_turns(row: Row, field: str) -> list[dict[str, str]]:
    """Turns of a text in which HelpSteer's marks stand between them."""
    first, *parts = re.split(r"\n<extra_id_1>(User|Assistant)\n", row_text(row, field))
    texts, roles = [first, *parts[1::2]], ["User", *parts[::2]]
    return [
        {"role": "user" if role == "User" else "assistant", "content": text}
        for role, text in zip(roles, texts)
    ]


def _one_of(row: Row, names: Sequence[str]) -> str:
    """The first of the fields that a row has. ValueError for none."""
    for name in names:
        if row.data.get(name) is not None:
            return name
    raise ValueError(
        f"{row.where}: expected one of the fields {', '.join(names)}; the row has "
        f"{', '.join(map(str, row.data))}"
    )


FORMATS: dict[str, Callable[[Row], dict]] = {
    "records": _from_records,
    "rmb": _from_rmb,
    "llmbar": _from_llmbar,
    "hh_rlhf": _from_hh_rlhf,
    "preference": _from_preference,
    "scored": _from_scored,
    "helpsteer": _from_helpsteer,
    "preference_strength": _from_strength,
}
# whose rows may have several best responses
SCORED = tuple(FORMATS[name] for name in ("scored", "helpsteer", "preference_strength"))


def from_columns(row: Row, columns: Mapping[str, Any]) -> dict:
    """Makes a record's object of a row of any table.

    `columns` names, for each field of a record, the column or columns that it is in.

    conversation: a column of text (one user turn) or of [{"role", "content"}, ...]; may be left out
        if the responses are whole dialogues
    responses: a column of lists, or a list of columns; a response is a text or a dialogue
        [{"role", "content"}, ...] that it ends (`_conversation`)
    rewards: a column of lists, or a list of columns; best: an int (always that response) or a
        column
    id, domain, reference: a column
    """
    if "responses" not in columns:
        raise ValueError(f'{row.where}: columns: expected an entry "responses"')
    d: dict[str, Any] = {"id": f"{row.name}/{row.index}"}
    for name in ("id", "domain", "reference"):
        if name in columns:
            d[name] = str(row_value(row, columns[name], (str, int)))
    cells = {
        name: _cells(row, columns[name], kind)
        for name, kind in (("responses", str), ("rewards", (int, float)))
        if name in columns
    }
    if "rewards" in cells:
        d["rewards"] = [reward for _, reward in cells["rewards"]]
    if "best" in columns:
        d["best"] = (
            columns["best"]
            if isinstance(columns["best"], int)
            else row_value(row, columns["best"], int)
        )
    d["conversation"], d["responses"] = _conversation(
        row, columns.get("conversation"), cells["responses"]
    )
    return d


def _cells(row: Row, columns: str | Sequence[str], kind: Any) -> list[tuple[str, Any]]:
    """(what errors call it, value) of the elements of a column of lists, or of several columns.

    kind: of the values, where all that a row has is text.
    """
    if isinstance(columns, str):
        elements = row_value(row, columns, list)
        return [(f"{columns}[{i}]", element) for i, element in enumerate(elements)]
    return [(column, row_value(row, column, kind if row.text else object)) for column in columns]


def _conversation(
    row: Row,
    prompt: str | None,
    responses: Sequence[tuple[str, Any]],
    asked: list[dict[str, str]] | None = None,
) -> tuple[list[dict[str, str]], list[Any]]:
    """The turns that all of the responses answer, and their texts.

    prompt: field of a text or of turns; asked: these turns, where they are known. responses:
    (field, a text, or turns of which the last, an assistant's, is the response) of each. The turns
    before it are the conversation; they begin with the prompt, before which a system turn may
    stand. ValueError, naming row and turn, where a dialogue does not begin with the prompt, or two
    dialogues differ before their last turn.
    """
    if asked is None and prompt is not None:
        asked = row_turns(row, prompt)
    conversation, source, texts = asked, prompt, []
    for field, response in responses:
        turns = asked
        if isinstance(response, (list, dict)):
            response = [response] if isinstance(response, dict) else response
            *before, answer = checked_turns(row, field, response)
            if answer["role"] != "assistant":
                raise ValueError(
                    f'{row.where}: field "{field}[{len(before)}]": expected the last turn to be '
                    f"the assistant's, which is the response, got {shown(answer['role'])}"
                )
            if before and asked:
                start = int(before[0]["role"] == "system" != asked[0]["role"])
                begins = before[start : start + len(asked)]
                _check_same(row, field, begins, prompt, asked, start)
            turns, response = before or asked, answer["content"]
        if not turns:
            raise ValueError(
                f'{row.where}: field "{field}": expected a dialogue, as no field of a prompt is '
                "given that it answers"
            )
        if texts:
            _check_same(row, field, turns, source, conversation)
        conversation, source = turns, field
        texts.append(response)
    return conversation or [], texts


def _check_same(row, field, turns, other, expected, start=0):
    """`turns`, those of a field from `start` on, are the turns of another field."""
    for i, (turn, wanted) in enumerate(itertools.zip_longest(turns, expected)):
        if turn != wanted:
            raise ValueError(
                f'{row.where}: field "{field}[{start + i}]": expected turn {i} of "{other}", '
                f"{cut(shown(wanted), 60)}, got {cut(shown(turn), 60)}"
            )

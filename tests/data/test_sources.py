"""Every source format gives valid records with stable ids, and every broken file is named with its
line and field.
"""

import gzip
import json

import pytest
from ml_collections import ConfigDict

from grm_jax.data.sources import load_instructions, load_source, read_source
from grm_jax.judgment.records import Turn, write_records

RECORD = {
    "id": "a",
    "conversation": [{"role": "user", "content": "2+2?"}],
    "responses": ["4", "5"],
    "rewards": [1.0, 0.0],
    "domain": "sums",
}


def write_jsonl(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


# ---- real files


def test_rmb_best_of_n(data_dir):
    path = data_dir / "rmb/RMB_dataset/BoN_set/Harmlessness/S10.json"
    raw = json.loads(path.read_text())
    records = load_source({"path": str(path)})
    assert len(records) == len(raw) == 79
    for record, item in zip(records, raw):
        assert record.id == f"rmb/bon/{item['bon_uid']}"
        assert record.responses == (
            item["bon_best"]["answer"],
            *(loser["answer"] for loser in item["loser_list"]),
        )
        assert record.rewards == (1.0, *[0.0] * len(item["loser_list"]))
        assert record.domain == "Harmlessness/S10"
        assert record.conversation == tuple(
            Turn(turn["role"], turn["content"]) for turn in item["conversation_input"]
        )
        assert record.metadata["llm_names"][0] == item["bon_best"]["llm_name"]


def test_rmb_folder_holds_both_sets(data_dir):
    records = load_source(ConfigDict({"path": str(data_dir / "rmb"), "format": "rmb"}))
    assert len(records) == 1532 + 510
    assert sum(record.id.startswith("rmb/pair/") for record in records) == 1532
    assert {len(record.responses) for record in records} == {2, 3, 4, 5, 6}
    assert {len(record.conversation) for record in records} == {1, 3, 5}
    assert "Helpfulness/Open QA/Hypothetical Scenarios" in {record.domain for record in records}


def test_llmbar(data_dir):
    records = load_source({"path": str(data_dir / "llmbar")})
    assert len(records) == 419 + 400
    manual = load_source({"path": str(data_dir / "llmbar/LLMBar/Adversarial/Manual/dataset.json")})
    raw = json.loads((data_dir / "llmbar/LLMBar/Adversarial/Manual/dataset.json").read_text())
    assert [record.id for record in manual] == [f"llmbar/Manual/{i}" for i in range(46)]
    assert set(manual[0].responses) == {raw[0]["output_1"], raw[0]["output_2"]}
    assert [record.rewards.index(1.0) + 1 for record in manual] == [item["label"] for item in raw]
    assert {record.id: record for record in records}["llmbar/Manual/45"] == manual[45]


def test_hh_rlhf(data_dir):
    path = data_dir / "hh_rlhf/harmless-base/test.jsonl.gz"
    records = load_source({"path": str(path)})
    assert len(records) == 2312
    assert records[0].id == "hh_rlhf/harmless-base/test/0" and records[0].domain == "harmless-base"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for record, line in zip(records, file, strict=True):
            raw = json.loads(line)
            assert record.conversation[-1].role == "user"
            prompt = "".join(
                f"\n\n{'Human' if turn.role == 'user' else 'Assistant'}: {turn.content}"
                for turn in record.conversation
            )
            for text, response in zip((raw["chosen"], raw["rejected"]), record.responses):
                # nothing is lost
                assert squeeze(text) == squeeze(f"{prompt}\n\nAssistant: {response}")
    # this answer goes on with a dialogue of its own
    assert "\n\nAssistant: Let’s just walk" in records[1950].responses[1].replace("  ", " ")


def squeeze(text):
    return " ".join(text.split())


def test_gsm8k_as_instructions(data_dir):
    items = load_instructions(
        {
            "path": str(data_dir / "gsm8k/train.jsonl"),
            "columns": {"prompt": "question", "completion": "answer"},
            "limit": 3,
        }
    )
    assert [item["id"] for item in items] == ["gsm8k/train/0", "gsm8k/train/1", "gsm8k/train/2"]
    assert items[0]["prompt"].startswith("Natalia sold clips") and items[0]["completion"].endswith(
        "#### 72"
    )


# ---- our schema, folders, order and limit


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_records_are_read_back(tmp_path, name):
    first = load_source(
        {"path": write_jsonl(tmp_path / name, [RECORD, {**RECORD, "id": "b", "rewards": None}])}
    )
    assert [record.id for record in first] == ["a", "b"] and first[1].rewards is None
    write_records(tmp_path / f"again.{name}", first)
    assert load_source({"path": str(tmp_path / f"again.{name}")}) == first


def test_shuffle_depends_on_seed_and_ids_only(tmp_path):
    rows = [{**RECORD, "id": str(i)} for i in range(50)]
    path, turned = (
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_jsonl(tmp_path / "b.jsonl", rows[::-1]),
    )

    def ids(**source):
        return [record.id for record in load_source(source)]

    assert ids(path=path, limit=3) == ["0", "1", "2"]
    assert (
        ids(path=path, shuffle_seed=1, limit=10)
        == ids(path=turned, shuffle_seed=1, limit=10)
        == ids(path=path, shuffle_seed=1)[:10]
    )
    assert ids(path=path, shuffle_seed=1) != ids(path=path, shuffle_seed=2)
    assert sorted(ids(path=path, shuffle_seed=1), key=int) == [str(i) for i in range(50)]
    # the same on every machine
    assert ids(path=path, shuffle_seed=0, limit=3) == ["28", "13", "24"]


# ---- data sets


def chat(*contents):
    return [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant") * 4, contents)
    ]


def test_columns_of_a_saved_data_set(tmp_path):
    import datasets

    rows = {
        "key": ["x", "y"],
        "prompt": ["q1", "q2"],
        "good": ["g1", "g2"],
        "bad": ["b1", "b2"],
        "topic": ["t", "u"],
    }
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(
        tmp_path / "pairs"
    )
    source = {
        "path": str(tmp_path / "pairs"),
        "split": "test",
        "columns": {
            "id": "key",
            "conversation": "prompt",
            "responses": ["good", "bad"],
            "best": 0,
            "domain": "topic",
        },
    }
    records = load_source(source)
    assert [(record.id, record.responses, record.rewards, record.domain) for record in records] == [
        ("x", ("g1", "b1"), (1.0, 0.0), "t"),
        ("y", ("g2", "b2"), (1.0, 0.0), "u"),
    ]
    del source["columns"]["id"]
    assert [record.id for record in load_source(source)] == ["pairs/test/0", "pairs/test/1"]
    with pytest.raises(
        ValueError, match="pairs: field \"split\": expected one of test, got 'train'"
    ):
        load_source({**source, "split": "train"})
    with pytest.raises(
        ValueError,
        match=r'pairs:test\[0\]: field "gold": missing; '
        r"the row has key, prompt",
    ):
        load_source({**source, "columns": {**source["columns"], "responses": ["gold", "bad"]}})


def test_load_dataset_by_name_and_parquet(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = datasets.Dataset.from_list(
        [
            {"chosen": chat("q", "good"), "rejected": chat("q", "bad"), "scores": [0.9, 0.1]},
            {
                "chosen": chat("q", "a", "more", "good"),
                "rejected": chat("q", "a", "more", "bad"),
                "scores": [0.7, 0.3],
            },
        ]
    )
    (tmp_path / "named").mkdir()
    table.to_parquet(tmp_path / "named" / "train.parquet")
    columns = {"responses": ["chosen", "rejected"], "rewards": "scores"}
    by_name = load_source({"hub": str(tmp_path / "named"), "columns": columns})
    assert [turn.content for turn in by_name[1].conversation] == ["q", "a", "more"]
    assert by_name[1].responses == ("good", "bad") and by_name[1].rewards == (0.7, 0.3)
    by_file = load_source({"path": str(tmp_path / "named" / "train.parquet"), "columns": columns})
    assert [record.responses for record in by_file] == [record.responses for record in by_name]


SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = (Turn("user", "q"),)
TALK = (*ASKED, Turn("assistant", "a"), Turn("user", "more"))


@pytest.mark.parametrize(
    "prompt, chosen, rejected, conversation",
    [
        # texts, answers alone as turns, whole dialogues, and the two mixed
        ({"prompt": "q"}, "good", "bad", ASKED),
        ({"prompt": chat("q")}, "good", "bad", ASKED),
        ({"prompt": chat("q", "a", "more")}, chat("", "good")[1:], chat("", "bad")[1:], TALK),
        ({"messages": chat("q", "a", "more")}, chat("", "good")[1:], chat("", "bad")[1:], TALK),
        ({"prompt": "q"}, chat("q", "good"), chat("q", "bad"), ASKED),
        ({"prompt": "q"}, chat("q", "good"), "bad", ASKED),
        ({}, chat("q", "good"), chat("q", "bad"), ASKED),
        # the prompt is only the first question: the dialogue's turns count
        ({"prompt": "q"}, chat("q", "a", "more", "good"), chat("q", "a", "more", "bad"), TALK),
        # a system turn that the prompt does not have
        (
            {"prompt": "q"},
            [SYSTEM, *chat("q", "good")],
            [SYSTEM, *chat("q", "bad")],
            (Turn("system", "Be brief."), *ASKED),
        ),
        # other fields are left out, messages that repeat the chosen dialogue among them
        (
            {"prompt": "q", "messages": chat("q", "good"), "score_chosen": 8.0},
            chat("q", "good"),
            chat("q", "bad"),
            ASKED,
        ),
    ],
)
def test_preference_pairs_in_their_common_forms(tmp_path, prompt, chosen, rejected, conversation):
    """Read as they are, and the same by columns."""
    path = write_jsonl(
        tmp_path / "pairs.jsonl", [{**prompt, "chosen": chosen, "rejected": rejected}]
    )
    (record,) = load_source({"path": path})
    assert record.id == f"preference/{tmp_path.name}/pairs/0"
    assert record.conversation == conversation and record.responses == ("good", "bad")
    assert record.rewards == (1.0, 0.0)
    columns = {"responses": ["chosen", "rejected"], "best": 0}
    columns |= {"conversation": next(iter(prompt))} if prompt else {}
    (by_columns,) = load_source({"path": path, "columns": columns})
    assert (by_columns.conversation, by_columns.responses) == (conversation, record.responses)


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": "other", "chosen": chat("q", "good"), "rejected": chat("q", "bad")},
            r'"chosen\[0\]": expected turn 0 of "prompt", .*other.*, got .*q',
        ),
        (
            {"prompt": chat("q", "a", "more"), "chosen": chat("q", "good"), "rejected": "bad"},
            r'"chosen\[1\]": expected turn 1 of "prompt", .*, got None',
        ),
        (
            {"prompt": [SYSTEM, *chat("q")], "chosen": chat("q", "good"), "rejected": "bad"},
            r'"chosen\[0\]": expected turn 0 of "prompt", .*Be brief',
        ),
        (
            {
                "prompt": "q",
                "chosen": chat("q", "a", "more", "good"),
                "rejected": chat("q", "b", "more", "bad"),
            },
            r'"rejected\[1\]": expected turn 1 of "chosen", .*a.*, got .*b',
        ),
        (
            {"prompt": "q", "chosen": chat("q", "a", "more", "good"), "rejected": chat("q", "bad")},
            r'"rejected\[1\]": expected turn 1 of "chosen", .*, got None',
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": chat("q", "a", "more", "bad")},
            r'"rejected\[1\]": expected turn 1 of "chosen", None, got',
        ),
        (
            {"prompt": "q", "chosen": chat("q", "good", "more"), "rejected": chat("q", "bad")},
            r"\"chosen\[2\]\": expected the last turn to be the assistant's, .*, got 'user'",
        ),
        (
            {
                "prompt": "q",
                "chosen": [*chat("q"), {"role": "tool", "content": "4"}],
                "rejected": chat("q", "bad"),
            },
            r"\"chosen\[1\]\": expected the last turn to be the assistant's, .*, got 'tool'",
        ),
        (
            {"chosen": chat("q", "good"), "rejected": chat("", "bad")[1:]},
            '"rejected": expected a dialogue, as no field of a prompt is given',
        ),
        ({"prompt": "q", "chosen": "good", "rejected": None}, '"rejected": expected str or list'),
    ],
)
def test_a_prompt_and_dialogues_that_do_not_agree_are_named(tmp_path, row, message):
    good = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    path = write_jsonl(tmp_path / "pairs.jsonl", [good, row])
    with pytest.raises(ValueError, match=rf"pairs.jsonl:2: field {message}"):
        load_source({"path": path})


SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
MARKED = "q\n<extra_id_1>Assistant\na\n<extra_id_1>User\nmore"
HUMAN = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more"
BRIEF = Turn("system", "Be brief.")


@pytest.mark.parametrize(
    "row, form, conversation",
    [
        ({"question": "q", "chosen": "good", "rejected": "bad"}, "preference", ASKED),
        (
            {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
            "preference",
            ASKED,
        ),
        (
            {"system": "Be brief.", "question": "q", "chosen": "good", "rejected": "bad"},
            "preference",
            (BRIEF, *ASKED),
        ),
        (
            {
                "conversations": [*SHAREGPT, {"from": "human", "value": "more"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            "preference",
            TALK,
        ),
        (
            {"prompt": HUMAN + "\n\nAssistant: ", "chosen": "good", "rejected": "bad"},
            "preference",
            TALK,
        ),
        ({"prompt": "q", "responses": ["bad", "good"], "scores": [1, 2.5]}, "scored", ASKED),
        (
            {"messages": chat("q", "a", "more"), "responses": ["bad", "good"], "rewards": [-1, 0]},
            "scored",
            TALK,
        ),
        (
            {
                "prompt": "q",
                "responses": [chat("q", "a", "more", "bad"), chat("q", "a", "more", "good")],
                "ratings": [1, 2],
            },
            "scored",
            TALK,
        ),
        (
            {
                "instruction": "q",
                "completions": [
                    {"model": "m", "response": "bad", "overall_score": 2.0},
                    {"model": "n", "response": "good", "overall_score": 7.5},
                ],
            },
            "scored",
            ASKED,
        ),
        (
            {
                "prompt": HUMAN + "\n\nAssistant: ",
                "answers": [{"answer": "bad", "rank": 2.0}, {"answer": "good", "rank": 1.0}],
            },
            "scored",
            TALK,
        ),
        (
            {"prompt": MARKED, "response_1": "bad", "response_2": "good", "preference_strength": 1},
            "preference_strength",
            TALK,
        ),
        (
            {
                "context": chat("q", "a", "more"),
                "response1": "bad",
                "response2": "good",
                "overall_preference": 3,
            },
            "preference_strength",
            TALK,
        ),
    ],
)
def test_other_common_forms_are_read_as_they_are(tmp_path, row, form, conversation):
    path = write_jsonl(tmp_path / "set.jsonl", [row])
    (record,) = load_source({"path": path})
    assert record.id == f"{form}/{tmp_path.name}/set/0"
    assert record.conversation == conversation
    assert record.rewards is not None and set(record.responses) == {"good", "bad"}
    assert record.responses[record.rewards.index(max(record.rewards))] == "good"


def test_helpsteer_rows_of_one_prompt_are_one_record(tmp_path):
    rows = [
        {"prompt": prompt, "response": text, "helpfulness": score, "verbosity": 9 - score}
        for prompt, text, score in (
            ("p", "tie", 2),
            ("p", "other", 2),
            (MARKED, "bad", 1),
            (MARKED, "good", 4),
            (MARKED, "fair", 2),
            ("alone", "only", 3),
        )
    ]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    (record,), tied = read_source({"path": path})
    assert (record.responses, record.rewards) == (("bad", "good", "fair"), (1.0, 4.0, 2.0))
    assert record.conversation == TALK
    where = f"helpsteer/{tmp_path.name}/train"
    assert (record.id, tied) == (f"{where}/2", [f"{where}/0", f"{where}/5"])


def test_rows_without_a_single_best_response_are_counted_and_shown(tmp_path, capsys):
    rows = [{"prompt": "q", "responses": ["a", "b"], "scores": [1, k % 2]} for k in range(4)]
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    columns = {"conversation": "prompt", "responses": "responses", "rewards": "scores"}
    for source in ({"path": path}, {"path": path, "columns": columns}):
        records, tied = read_source(source)
        assert [r.id.split("/")[-1] for r in records] == ["0", "2"] and len(tied) == 2
        assert load_source(source) == records
        said = capsys.readouterr().out
        assert "2 of 4 rows have no single best response and are left out" in said
    with pytest.raises(ValueError, match="none of its 1 rows has a single best response"):
        load_source({"path": write_jsonl(tmp_path / "tie.jsonl", rows[1:2])})
    # in records of our own it is an error, as they say what is right
    tie = {**RECORD, "rewards": [1, 1]}
    with pytest.raises(ValueError, match="expected exactly one largest value"):
        load_source({"path": write_jsonl(tmp_path / "own.jsonl", [tie])})


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"instruction": "q", "input": "x"},
            "cannot tell what the prompt is, .* instruction, input",
        ),
        (
            {"prompt": "q", "history": [["a", "b"]]},
            "cannot tell what the prompt is, .* prompt, hist",
        ),
        (
            {"question": "q", "context": "text"},
            "cannot tell what the prompt is, .*question, context",
        ),
        (
            {"prompt": "more", "messages": chat("q", "a", "more")},
            r'field "messages\[0\]": expected turn 0 of "the conversation", .*more.*, got .*q',
        ),
        (
            {"system": "x", "messages": [SYSTEM, *chat("q")]},
            'field "system": the dialogue has a system turn as well',
        ),
    ],
)
def test_no_part_of_a_prompt_is_passed_over(tmp_path, row, message):
    path = write_jsonl(tmp_path / "set.jsonl", [{**row, "chosen": "good", "rejected": "bad"}])
    with pytest.raises(ValueError, match=f"set.jsonl:1: {message}"):
        load_source({"path": path})


@pytest.mark.parametrize(
    "row, lacks",
    [
        ({"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]}, "responses"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]}, "scores"),
        ({"prompt": "q", "response": "a", "helpfulness": 1}, "prompt"),
        ({"prompt": "q", "response": "a", "helpfulness": 1}, "response"),
        ({"prompt": "q", "response": "a", "helpfulness": 1}, "helpfulness"),
        ({"prompt": "q", "response1": "a", "response2": "b", "overall_preference": 1}, "response2"),
        (
            {"prompt": "q", "response1": "a", "response2": "b", "overall_preference": 1},
            "overall_preference",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen"),
    ],
)
def test_a_row_that_lacks_a_field_of_the_rows_before_it_is_named(tmp_path, row, lacks):
    other = {name: value for name, value in row.items() if name != lacks}
    path = write_jsonl(tmp_path / "set.jsonl", [row, other])
    with pytest.raises(ValueError, match=f"set.jsonl:2: .*{lacks}"):
        load_source({"path": path})


def test_dialogues_of_more_than_two_responses_must_agree(tmp_path):
    talks = [chat("q", "a", "more", text) for text in ("good", "bad", "worse")]
    columns = {"conversation": "prompt", "responses": "talks", "best": 0}
    path = write_jsonl(tmp_path / "three.jsonl", [{"prompt": "q", "talks": talks}])
    (record,) = load_source({"path": path, "columns": columns})
    assert record.conversation == TALK and record.responses == ("good", "bad", "worse")
    for last, message in (
        (chat("q", "b", "more", "worse"), r'"talks\[2\]\[1\]": expected turn 1 of "talks\[1\]"'),
        (
            chat("q", "a", "more"),
            r"\"talks\[2\]\[2\]\": expected the last turn to be the assistant's",
        ),
        ("worse", r'"talks\[2\]\[1\]": expected turn 1 of "talks\[1\]", .*, got None'),
    ):
        row = {"prompt": "q", "talks": [*talks[:2], last]}
        with pytest.raises(ValueError, match=f"three.jsonl:1: field {message}"):
            load_source({"path": write_jsonl(tmp_path / "three.jsonl", [row]), "columns": columns})


def test_a_format_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_format.py").write_text(
        "def swapped(row):\n"
        "    turn = {'role': 'user', 'content': row.data['q']}\n"
        "    responses = [row.data['b'], row.data['a']]\n"
        "    return {'id': row.name + str(row.index), 'conversation': [turn],\n"
        "            'responses': responses, 'bets': 0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write_jsonl(tmp_path / "data.jsonl", [{"q": "q", "a": "good", "b": "bad"}])
    source = {"path": path, "format": "my_format:swapped"}
    with pytest.raises(
        ValueError, match=r"data.jsonl:1: field \"bets\": unknown; did you mean 'best'"
    ):
        load_source(source)
    text = (tmp_path / "my_format.py").read_text()
    (tmp_path / "my_mended_format.py").write_text(text.replace("'bets'", "'best'"))
    (record,) = load_source(source | {"format": "my_mended_format:swapped"})
    assert record.id == f"{tmp_path.name}/data0" and record.responses == ("bad", "good")


def test_instructions_from_messages(tmp_path):
    path = write_jsonl(
        tmp_path / "general.jsonl",
        [
            {
                "id": "m",
                "messages": [{"role": "system", "content": "Be brief."}, *chat("Hi", "Hello.")],
            },
            {"prompt": "p", "completion": "c"},
        ],
    )
    assert load_instructions({"path": path}) == [
        {"id": "m", "prompt": "Be brief.\n\nHi", "completion": "Hello."},
        {"id": f"{tmp_path.name}/general/1", "prompt": "p", "completion": "c"},
    ]
    path = write_jsonl(tmp_path / "long.jsonl", [{"messages": chat("a", "b", "c", "d")}])
    with pytest.raises(
        ValueError,
        match=r'long.jsonl:1: field "messages": expected the '
        r"turns .* got user, assistant, user",
    ):
        load_instructions({"path": path})
    path = write_jsonl(
        tmp_path / "half.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}]
    )
    with pytest.raises(
        ValueError, match='half.jsonl:2: field "completion": missing; the row has prompt'
    ):
        load_instructions({"path": path})


# ---- errors


@pytest.mark.parametrize(
    "source, message",
    [
        ({"pth": "x"}, "source: field \"pth\": unknown; did you mean 'path'"),
        ({}, 'expected one of the fields "path" and "hub", got none'),
        ({"path": "x", "hub": "y"}, 'expected one of the fields "path" and "hub", got path, hub'),
        (
            {"path": "x", "format": "rbm"},
            "source x: field \"format\": unknown name 'rbm'; did you mean rmb",
        ),
        (
            {"path": "x", "format": "rmb", "columns": {"responses": "a"}},
            'source x: field "format": expected no "columns" beside it',
        ),
        (
            {"path": "x", "format": "no_module:f"},
            "source x: field \"format\": 'no_module:f': no module",
        ),
        ({"path": "x", "limit": 0}, 'source x: field "limit": expected an integer >= 1, got 0'),
        (
            {"path": "x", "limit": True},
            'source x: field "limit": expected an integer >= 1, got True',
        ),
        ({"path": 5}, 'source: field "path": expected a text, got 5'),
        ({"path": ""}, 'source: field "path": expected a text'),
        ({"hub": ["a"]}, r"source: field \"hub\": expected a text, got \['a'\]"),
        ({"path": "x", "split": 1}, 'source: field "split": expected a text, got 1'),
        ({"path": "x", "config": "main"}, 'source x: field "config": goes with "hub"'),
        ({"path": "x", "columns": ["a"]}, r'source x: field "columns": expected {field: column}'),
        (
            {"path": "x", "columns": {"responses": 5}},
            'source x: columns: field "responses": expected a column or a list of columns, got 5',
        ),
        (
            {"path": "x", "columns": {"responses": ["a", None]}},
            'source x: columns: field "responses": expected a column or a list of columns',
        ),
        (
            {"path": "x", "columns": {"responses": "a", "conversation": ["b"]}},
            'source x: columns: field "conversation": expected a column, got',
        ),
        (
            {"path": "x", "columns": {"responses": "a", "best": 0.5}},
            'source x: columns: field "best": expected a column or the number of a response',
        ),
        (
            {"path": "x", "columns": {"response": "a"}},
            "columns: field \"response\": unknown; did you mean 'responses'",
        ),
    ],
)
def test_a_wrong_source_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        load_source(source)


def test_missing_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist"):
        load_source({"path": str(tmp_path / "nowhere.jsonl")})
    with pytest.raises(FileNotFoundError, match="no file .jsonl"):
        load_source({"path": str(tmp_path)})


PAIR = {
    "pair_uid": "1",
    "category_path": "Pairwise_set/A",
    "conversation_input": chat("q"),
    "chosen": {"answer": "a"},
    "reject": {"answer": "b"},
}
LLMBAR = {"input": "q", "output_1": "a", "output_2": "b", "label": 1}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [RECORD, RECORD],
            r'data.jsonl:2: field "id": \'a\' occurs twice, first at .*data.jsonl:1',
        ),
        (
            [{**RECORD, "rewards": [1, 1]}],
            r'data.jsonl:1 \(id \'a\'\): field "rewards": '
            r"expected exactly one largest value",
        ),
        (
            [{"text": "x"}],
            r"data.jsonl:1: cannot tell the format from the fields \['text'\]; give the source a "
            r"format \(records, rmb",
        ),
        (
            [PAIR, {**PAIR, "pair_uid": None}],
            'data.jsonl:2: field "pair_uid": expected str or int, got',
        ),
        (
            [{**PAIR, "reject": {"llm_name": "m"}}],
            'field "chosen/reject": expected objects with a text "answer"',
        ),
        (
            [{**PAIR, "conversation_input": [{"content": "q"}]}],
            r'field "conversation_input\[0\]": expected an '
            r'object with "role" and "content"',
        ),
        ([LLMBAR, {**LLMBAR, "label": 3}], 'data.jsonl:2: field "label": expected 1 or 2, got 3'),
        (
            [HH, {**HH, "rejected": "no dialogue"}],
            'data.jsonl:2: field "rejected": expected a dialogue that begins with',
        ),
        (
            [HH, {**HH, "rejected": "\n\nHuman: other\n\nAssistant: b"}],
            "data.jsonl:2: .* expected dialogues that share a human turn",
        ),
        ([[1]], "data.jsonl:1: expected a JSON object, got a list"),
    ],
)
def test_a_broken_row_is_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_source({"path": write_jsonl(tmp_path / "data.jsonl", rows)})


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(RECORD).encode() + b"\n{'id'}\n")
    with pytest.raises(ValueError, match="a.jsonl:2: not UTF-8 JSON"):
        load_source({"path": str(tmp_path / "a.jsonl")})
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(RECORD).encode() * 99)[:-20])
    with pytest.raises(ValueError, match="b.jsonl.gz: damaged gzip file"):
        load_source({"path": str(tmp_path / "b.jsonl.gz")})
    (tmp_path / "c.json").write_text('{"data": NaN}')
    with pytest.raises(ValueError, match="c.json: not UTF-8 JSON: NaN"):
        load_source({"path": str(tmp_path / "c.json")})
    (tmp_path / "d.txt").write_text("")
    with pytest.raises(ValueError, match="expected a file .jsonl.*d.txt"):
        load_source({"path": str(tmp_path / "d.txt")})

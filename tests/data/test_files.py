"""JSON is read in whatever clothes it comes, tables as the text that they are, and what cannot be
read says what it looks like.
"""

import datetime
import gzip
import json

import pytest

from grm_jax.data.sources import load_instructions, load_source, read_rows
from tests.data.test_sources import RECORD

ROWS = [RECORD, {**RECORD, "id": "b", "responses": ["é\u2028", "\x85 5"]}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TURNS = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def ids(path, **source):
    return [record.id for record in load_source({"path": str(path), **source})]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.ndjson", "a.JSONL", "a.Json", "a.jsonl.gz", "a.JSON.GZ", "a"]
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_a_file_holds_is_read_off_its_text_whatever_its_name(tmp_path, name, zipped, mark):
    forms = {
        "lines": LINES,
        "lines, no end": LINES.rstrip("\n"),
        "lines of Windows": LINES.replace("\n", "\r\n"),
        "blank lines": f"\n{LINES}\n \n".replace("}\n{", "}\n\n{"),
        "list": json.dumps(ROWS),
        "list over lines": json.dumps(ROWS, indent=1),
        "list, a row a line": "[" + ",\n".join(map(json.dumps, ROWS)) + "]",
        "split": json.dumps({"train": ROWS}),
        "a split of another name": json.dumps({"data": ROWS}, indent=1),
        "splits": json.dumps({"test": [], "train": ROWS}),
    }
    want = load_source({"path": str(write(tmp_path / "want.jsonl", LINES))})
    for form, text in forms.items():
        data = (mark + text).encode()
        path = write(tmp_path / name, gzip.compress(data) if zipped else data)
        assert load_source({"path": str(path)}) == want, form


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_is_one_row(tmp_path, name, indent):
    path = write(tmp_path / name, json.dumps(RECORD, indent=indent))
    assert ids(path) == ["a"]
    # one row whose only field is a list of turns holds no splits
    path = write(tmp_path / name, json.dumps({"messages": TURNS}, indent=indent))
    (item,) = load_instructions({"path": str(path)})
    assert (item["prompt"], item["completion"]) == ("q", "a")


def test_a_split_is_chosen_by_name(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"test": ROWS[1:], "train": ROWS[:1]}))
    assert (ids(path), ids(path, split="test")) == (["a"], ["b"])
    with pytest.raises(ValueError, match=r"\"split\": expected one of test, train, got 'val'"):
        ids(path, split="val")
    other = write(tmp_path / "b.json", json.dumps({"test": ROWS, "val": []}))
    with pytest.raises(ValueError, match=r"\"split\": expected one of test, val, got 'train'"):
        ids(other)
    for name, text in (("c.jsonl", LINES), ("d.csv", "id\n1\n")):
        with pytest.raises(ValueError, match="\"split\": 'test' is asked for, but the file has no"):
            ids(write(tmp_path / name, text), split="test")


def test_other_files_of_a_folder_are_no_data(tmp_path):
    write(tmp_path / "train-00000-of-00001.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "test.JSONL", json.dumps(ROWS[1]))
    for name in ("README.md", "LICENSE", "dataset_infos.json", ".hidden.jsonl", "._train.jsonl"):
        write(tmp_path / name, "no JSON at all")
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache/train.jsonl", "no JSON at all")
    assert sorted(ids(tmp_path)) == ["a", "b"]
    assert (ids(tmp_path, split="train"), ids(tmp_path, split="test")) == (["a"], ["b"])
    write(tmp_path / "sub.json", "no JSON at all")
    with pytest.raises(ValueError, match=r"sub.json: not UTF-8 JSON"):
        ids(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
PAGE = b"\n<!DOCTYPE html><html><body>404</body></html>"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    "data, what",
    [
        (POINTER, "a Git LFS pointer, not the file itself"),
        (PAGE, "an HTML or XML page, perhaps an error or a login page"),
        (b"", "the file is empty"),
        (b"PK\x03\x04 and more", "a zip archive"),
        (LINES.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"\x28\xb5\x2f\xfd and more", "zstd data"),
    ],
)
def test_a_file_that_is_something_else_says_what_it_looks_like(tmp_path, name, data, what):
    path = write(tmp_path / name, data)
    with pytest.raises(ValueError) as error:
        ids(path, columns={"responses": ["a", "b"]})
    assert str(error.value).startswith(str(path)) and what in str(error.value)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", json.dumps(ROWS)[:-9], "a.json: not UTF-8 JSON: cut off"),
        ("a.json", json.dumps(ROWS, indent=1)[:-9], "a.json: not UTF-8 JSON: cut off"),
        ("a.jsonl", LINES[:-9], "a.jsonl:2: not UTF-8 JSON: cut off"),
        ("a.json", LINES[:-9], "a.json:2: not UTF-8 JSON: cut off"),
        ("a.jsonl", LINES + "{'id': 1}\n", "a.jsonl:3: not UTF-8 JSON: Expecting"),
        ("a.jsonl", "{'id': 1}\n" + LINES, "a.jsonl:1: not UTF-8 JSON: Expecting"),
        ("a.jsonl", LINES.encode() + b'"\xe9"\n', "a.jsonl:3: not UTF-8 JSON: byte 0xe9 at 1"),
        (
            "a.json",
            json.dumps(RECORD, indent=1) + "\n" + json.dumps(RECORD, indent=1),
            "a.json: not UTF-8 JSON: Extra data.*; several values one below the other",
        ),
        ("a.json", "[]", "a.json: no row in it"),
        ("a.json", '"text"', "a.json: expected a list of JSON objects, got 'text'"),
        ("a.json", '[{"id": 1}, 2]', r"a.json\[1\]: expected a JSON object, got a int"),
        ("a.jsonl", '["id", "responses"]\n' * 2, "a.jsonl:1: expected a JSON object, got a list"),
        ("a.jsonl", '{"id": "a", "id": "b"}', "a.jsonl:1: .* field 'id' stands twice in one obj"),
        ("a.jsonl", '{"id": 1e999}', "a.jsonl:1: .* 1e999 is beyond the range of a number"),
        ("a.jsonl", '{"id": -Infinity}', "a.jsonl:1: .* -Infinity is not JSON"),
        ("a.jsonl", '{"id": %s}' % ("9" * 5000), "a.jsonl:1: .* an integer of 5000 digits"),
        ("a.jsonl", '{"id": [{"a": "\\ud800"}]}', r'field "id\[0\].a": character 0 is half of a'),
        ("a.jsonl", '{"a\\udfff": 1}', r'field "a\\udfff": its name holds half of a surrogate'),
        ("a.jsonl", f'{{"id": {"[" * 101}1{"]" * 101}}}', "a.jsonl:1: .* 100 levels"),
        ("a.jsonl", f'{{"id": {"[" * 10**5}1{"]" * 10**5}}}', "a.jsonl:1: .* 100 levels"),
    ],
)
def test_broken_json_names_file_and_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        if not list(read_rows({"path": str(path)})):
            ids(path)


# ---- tables

COLUMNS = {"id": "id", "conversation": "q", "responses": ["a", "b"], "best": "best"}


def test_cells_of_a_table_are_text_as_they_stand(tmp_path):
    texts = ["None", "NA", "null", "nan", "0042", "1e3", "True", "", " x ", "-1", "2020-01-01", "#"]
    rows = [["id", "q", "a", "b", "best"]]
    rows += [[f"{i:03}", "q " + text, text, text + "2", str(i % 2)] for i, text in enumerate(texts)]
    rows += [["007 ", "q", "a", "b", "0"], ["07", "q", "a", "b", "0"]]
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t"), ("t.CSV", ",")):
        path = write(tmp_path / name, "\r\n".join(delimiter.join(row) for row in rows))
        records = load_source({"path": str(path), "columns": COLUMNS})
        assert [record.responses[0] for record in records[:-2]] == texts
        assert [record.conversation[0].content[2:] for record in records[:-2]] == texts
        assert [record.rewards[1] for record in records[:4]] == [0, 1, 0, 1]
        assert [record.id for record in records[-3:]] == ["011", "007 ", "07"]


def test_quotes_are_those_of_spreadsheets(tmp_path):
    text = '\ufeffid,q,a,b,best\r\n1,"two\r\nlines","a ""quoted"", b",y,"0"\r\n\r\n2,q,a,' + (
        "b" * 200_000 + ",1"
    )
    for data in (text.encode(), gzip.compress(text.encode())):
        path = write(tmp_path / "t.csv", data)
        first, second = load_source({"path": str(path), "columns": COLUMNS})
        assert first.conversation[0].content == "two\r\nlines"
        assert first.responses == ('a "quoted", b', "y") and len(second.responses[1]) == 200_000


def test_numbers_and_lists_are_read_where_a_field_is_one(tmp_path):
    path = write(tmp_path / "t.csv", 'q,r,x,y\nq,"[""a"", ""b""]",0.5,1e-1\n')
    columns = {"conversation": "q", "responses": "r", "rewards": ["x", "y"]}
    (record,) = load_source({"path": str(path), "columns": columns})
    assert (record.responses, record.rewards) == (("a", "b"), (0.5, 0.1))
    llmbar = write(tmp_path / "l.csv", "input,output_1,output_2,label\nq,a,b,2\n")
    (record,) = load_source({"path": str(llmbar)})
    assert record.rewards == (0.0, 1.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,q,a,b,best\n1,x,y\n", "t.csv:2: expected 5 cells, as the first line has, got 3"),
        ("id,q,a,b,best\n1,q,a,b,0\n2,x,y,z,0,more\n", "t.csv:3: expected 5 cells, .* got 6"),
        ('id,q,a,b,best\n1,"q\n2",a,b,0\n2\n', "t.csv:4: expected 5 cells, .* got 1"),
        ("id,q,a,a,b,best\n", "t.csv:1: two columns are called 'a'"),
        ("id;q;a;b;best\n1;x;y;z;0\n", "t.csv:1: expected columns apart by ',', got \";\""),
        ('id,q,a,b,best\n1,"x,y,z,0\n', "t.csv:2: not a row of a table: a quote is never closed"),
        ('id,q,a,b,best\n1,"x"y,z,c,0\n', "t.csv:2: not a row of a table: ',' expected after"),
        ("id,q,a,b,best\n1,x,y,z,x\n", "t.csv:2: field \"best\": expected int, got 'x'"),
        ("id,q,a,b,best\n1,x,y,z,\n", "t.csv:2: field \"best\": expected int, got ''"),
        ("id,q,a,b,best\n1,x,y,z,2\n", r"t.csv:2 \(id '1'\): field \"best\": expected an integer"),
        ("id,q,a,b,best\n1,\xe9,y,z,0\n".encode("latin-1"), "t.csv:2: not UTF-8 text: byte 0xe9"),
        ("id,q,a,b,best\n", "t.csv: no row in it"),
    ],
)
def test_a_broken_table_names_file_and_line(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=message):
        load_source({"path": str(path), "columns": COLUMNS})


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_typed_tables_give_what_they_state_or_an_error_that_names_the_type(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"id": [7], "q": ["x"], "a": ["1e3"], "b": ["007"], "best": [0]}

    def load(**columns):
        table, path = pa.table(row | columns), tmp_path / f"t.{kind.split()[0]}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            make = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
            with make(path, table.schema) as file:
                file.write_table(table)
        return load_source({"path": str(path), "columns": COLUMNS})

    (record,) = load()
    assert (record.id, record.responses) == ("7", ("1e3", "007"))
    for value, shown in (
        (1, "1"),
        (1.5, "1.5"),
        (True, "True"),
        (datetime.date(2020, 1, 1), r"datetime.date\(2020"),
        (b"bytes", "b'bytes'"),
    ):
        message = rf't.\w+\[0\] .*field "responses\[0\]": expected a string, got {shown}'
        with pytest.raises(ValueError, match=message):
            load(a=[value])
    with pytest.raises(ValueError, match=r'"responses\[0\]": expected a string, got None'):
        load(a=pa.array([None], pa.string()))
    for value in (1.0, True):
        with pytest.raises(ValueError, match=r't.\w+\[0\]: field "id": expected str or int, got'):
            load(id=[value])
    path = next(tmp_path.glob("t.*"))
    write(path, path.read_bytes()[:-40])
    if kind == "arrow stream":
        return  # one that is cut behind a batch is whole
    with pytest.raises(ValueError, match=r"t.\w+: not a \w+ file: cut off or damaged\?"):
        load_source({"path": str(path), "columns": COLUMNS})

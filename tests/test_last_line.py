"""The last line of a command: what went wrong, where, and what to do, for every foreseeable end."""

import errno
import json
import pathlib
import pickle
import sqlite3
import subprocess
import sys
import zipfile

import jax
import pyarrow
import pyarrow.parquet
import pytest
import safetensors

from grm_jax import naming
from grm_jax.last_line import DAMAGED, FULL, GOES_ON, MEMORY, explain, unforeseen
from grm_jax.settings import POSITIVE, check


def caught(function, *args) -> BaseException:
    """What a call raises, with its traceback."""
    with pytest.raises(BaseException) as error:
        function(*args)
    return error.value


def line_of(function, *args) -> str:
    line = explain(caught(function, *args))
    assert line is not None and "\n" not in line
    return line


def raises(error):
    raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(number):
    line = line_of(raises, OSError(number, "in C's words", "/runs/a/records.jsonl"))
    assert line == f"/runs/a/records.jsonl: {FULL}" and GOES_ON in line


def test_a_full_disk_in_the_words_of_a_library():
    text = (
        'RESOURCE_EXHAUSTED: Error writing "step/0" in OCDBT at local file "/runs/a/4.tmp/"'
        ": Failed to write 2568192 bytes to file 19: No space left on device [os_error_code='28']"
    )
    for kind in (ValueError, RuntimeError, jax.errors.JaxRuntimeError):
        assert line_of(raises, kind(text)) == f"/runs/a/4.tmp/: {FULL}"
    assert line_of(raises, ValueError("Disk quota exceeded")) == FULL


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOENT, "no such file or folder"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EISDIR, "expected a file"),
        (errno.ENOTDIR, "expected folders"),
        (errno.EEXIST, "is a file; expected a folder"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ESTALE, "mount it again"),
        (errno.ELOOP, "words of C"),  # one that is not in the table
    ],
)
def test_errors_of_the_system_name_the_path(number, words):
    line = line_of(raises, OSError(number, "words of C", "/runs/a"))
    assert line.startswith("/runs/a: ") and words in line and "Errno" not in line


def test_real_errors_of_the_system(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert line_of((tmp_path / "no").read_text) == f"{tmp_path / 'no'}: no such file or folder"
    assert line_of(tmp_path.read_text) == f"{tmp_path}: is a folder; expected a file"
    assert line_of(lambda: file.mkdir(exist_ok=True)) == f"{file}: is a file; expected a folder"
    assert "expected folders" in line_of((file / "below").mkdir)
    assert str(file) in line_of(lambda: (tmp_path / "a").rename(file / "b"))


def test_memory_of_host_and_device():
    assert line_of(raises, MemoryError()) == MEMORY
    device = "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.\nBFC allocator: ..."
    line = line_of(raises, jax.errors.JaxRuntimeError(device))
    assert line.startswith(MEMORY) and "8589934592 bytes" in line


def cut(path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_damaged_files_are_named(tmp_path):
    """What the readers of libraries say of a file of which half is there."""
    parquet, array = tmp_path / "a.parquet", tmp_path / "a.safetensors"
    pyarrow.parquet.write_table(pyarrow.table({"a": list(range(100))}), parquet)
    (tmp_path / "a.json").write_text(json.dumps({"a": list(range(100))}))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(list(range(100))))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfd\xfc")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"0" * 100)
    database = tmp_path / "a.db"
    connection = sqlite3.connect(database)
    connection.execute("create table t (a text)")
    connection.executemany("insert into t values (?)", [["x" * 500]] * 100)
    connection.commit()
    connection.close()
    array.write_bytes((1000).to_bytes(8, "little") + b"{")

    def query(path):
        connection = sqlite3.connect(path)
        try:
            return connection.execute("select count(*), sum(length(a)) from t").fetchall()
        finally:
            connection.close()

    readers = {
        parquet: pyarrow.parquet.read_table,
        array: lambda path: safetensors.safe_open(path, framework="numpy"),
        tmp_path / "a.json": lambda path: json.loads(path.read_text()),
        tmp_path / "a.pkl": lambda path: pickle.loads(path.read_bytes()),
        tmp_path / "a.txt": lambda path: path.read_text(encoding="utf-8"),
        tmp_path / "a.npz": zipfile.ZipFile,
        database: query,
    }
    for file, reader in readers.items():

        def read(path=file, reader=reader):
            return reader(path)

        cut(file)
        line = line_of(read)
        assert line.startswith(f"{file}: {DAMAGED}"), line


def test_a_module_that_a_seam_needs_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine_needs_more.py").write_text("\n\nimport not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = line_of(naming.resolve, "mine_needs_more:loss", {})
    place = tmp_path / "mine_needs_more.py"
    assert line == f"no module named 'not_installed_anywhere', asked for in {place}:3; install it"


def test_errors_that_this_package_raises_are_their_own_words():
    assert "unknown name 'k4'" in line_of(naming.resolve, "k4", {"k1": print})
    program = subprocess.CalledProcessError(3, ["python", "-m", "x"])
    assert line_of(raises, program).startswith("python -m x: ended with status 3")


def test_what_nobody_foresaw_is_no_line_of_ours(tmp_path):
    """Also of a class that this package raises: the words of another are not its own."""
    for error in (KeyError("a"), ValueError("operands could not be broadcast"), TypeError("x\ny")):
        raised = caught(raises, error)
        assert explain(raised) is None
        line = unforeseen(raised)
        assert type(error).__name__ in line and f"{__file__}:" in line and "\n" not in line

    class Settings:
        pass

    assert explain(caught(check, Settings(), {"a": POSITIVE})) is None  # a fault of the caller


def test_it_takes_no_jax():
    code = "import sys, grm_jax.last_line; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

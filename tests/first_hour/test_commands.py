"""The helper that follows a page: what it takes from one, and that a failure is seen."""

import pytest

from tests.first_hour import commands

PAGE = """# A page

```python
# mine/preset.py
answer = 41
```

    python -c 'an indented block is shown, not run'

```bash
python -c 'import grm_jax, mine.preset; print(mine.preset.answer)'
```

```text
41
```

```bash
false
echo not reached
```
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "docs/first_hour").mkdir(parents=True)
    (tmp_path / "docs/first_hour/example.md").write_text(PAGE)
    with monkeypatch.context() as patch:
        patch.setattr(commands, "REPO", tmp_path)
        return commands.read("example")


def test_files_and_commands_are_taken_from_a_page_in_their_order(page):
    assert [(block.file, block.line) for block in page] == [
        ("mine/preset.py", 4),
        (None, 11),
        (None, 19),
    ]
    assert page[0].text == "answer = 41\n"


def test_a_page_is_followed_in_a_clone(page, tmp_path):
    (tmp_path / "reader").mkdir()
    folder = commands.clone(tmp_path / "reader")
    written, ran, failed = (commands.follow(block, folder, {"41": "42"}) for block in page)
    assert written.returncode == ran.returncode == 0, ran.stderr
    assert ran.stdout == "42\n" and ran.seconds > 0
    assert (failed.returncode, failed.stdout) == (1, "")


def test_a_page_without_commands_is_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "REPO", tmp_path)
    (tmp_path / "docs/first_hour").mkdir(parents=True)
    (tmp_path / "docs/first_hour/bare.md").write_text("words\n")
    with pytest.raises(AssertionError, match=r"bare.md has no commands"):
        commands.read("bare")

"""Hooks of mkdocs.yml: pages of the repository's root, and files that pages link to, in the site.

README.md is the first page. A link to a file outside docs/ leads to a page with the text of that
file, so that the site needs no server that shows the repository.
"""

import html
import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

REPO = pathlib.Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")  # of this repository: no scheme, and a path
NAMED = re.compile(r"\[(`?)[\w./-]+\.md\1\](?=\(([^)\s:#]+)[)#])")  # it shows a file's name
CODE = re.compile(r"<code( class=\"long\")?>([^<\n]+)</code>")  # none of a block
SHORT, LONG = 32, 40  # letters of a word of code that is never broken; that may be broken
LEXERS = {".py": "python", ".jinja": "jinja", ".json": "json", ".sh": "bash", ".toml": "toml"}


def place(path: str) -> str:
    """Returns where a file of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return ROOT_PAGES.get(path) or f"source/{path.removesuffix('.md')}.md"


def links(text: str, path: str) -> dict[str, str]:
    """Returns {link: file of the repository} of the links in the text of the file `path`."""
    targets = {
        link: posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        for link in LINK.findall(text)
    }
    return {link: target for link, target in targets.items() if (REPO / target).is_file()}


def moved(text: str, path: str) -> str:
    """Returns the text of the file `path` with its links as they are in the site."""
    start = posixpath.dirname(place(path)) or "."
    new = {link: posixpath.relpath(place(to), start) for link, to in links(text, path).items()}
    return LINK.sub(lambda match: new.get(match[0], match[0]), titled(text, path))


def titled(text: str, path: str) -> str:
    """Puts the title of a page where a link of the file `path` shows the page's file name.

    The name is right where the sources are read; a reader of the site knows the title alone.
    """

    def title(link: re.Match) -> str:
        target = REPO / posixpath.join(posixpath.dirname(path), link[2])
        found = re.search(r"^# (.+)", target.read_text("utf-8") if target.is_file() else "", re.M)
        return f"[{found[1]}]" if found else link[0]

    return NAMED.sub(title, text)


def shown(path: str) -> str:
    """Returns the page that shows a file."""
    text = (REPO / path).read_text(encoding="utf-8")
    if path in ROOT_PAGES:
        return moved(text, path)
    head = "---\nsearch:\n  exclude: true\n---\n"
    if path.endswith(".md"):
        return head + moved(text, path)
    lexer = LEXERS.get(pathlib.PurePath(path).suffix, "text")
    return f"{head}# {path}\n\n`````{lexer}\n{text.rstrip()}\n`````\n"


def reference(module: str) -> str:
    """Returns the lines of a module; what the front door names stands where it is defined."""
    bare = "    options:\n      members: false\n" if module == "grm_jax" else ""
    return f"::: {module}\n{bare}\n"


def api_pages() -> dict[str, str]:
    """Returns {place: text} of the reference: a page a room, and one for modules without a room."""
    package = REPO / "grm_jax"
    rooms: dict[str, list[str]] = {"grm_jax": []}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0] if len(parts) > 1 else "grm_jax"
        if parts[-1] != "__main__":
            name = ".".join(("grm_jax", *parts)).removesuffix(".__init__")
            rooms.setdefault(room, []).append(name)
    rooms["grm_jax"].sort(key=lambda name: name not in ("grm_jax", "grm_jax.judge"))
    return {
        f"api/{room}.md": f"# {room}\n\n" + "".join(map(reference, names))
        for room, names in rooms.items()
        if room != "assets"
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root, and those of the files that are linked to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(ROOT_PAGES)
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            inside = path in ROOT_PAGES
            level = InclusionLevel.INCLUDED if inside else InclusionLevel.NOT_IN_NAV
            page = File.generated(config, place(path), content=shown(path), inclusion=level)
            files.append(page)
        if path.endswith(".md"):
            text = (REPO / path).read_text(encoding="utf-8")
            new = {to for to in links(text, path).values() if not to.startswith("docs/")} - known
            waiting += sorted(new)
            known |= new
    for name, text in api_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def in_cell(code: re.Match) -> str:
    """Returns code of a table without the escape that GitHub needs; what is long may be broken."""
    text = code[0].replace("\\|", "|")
    return text + ("{.long}" if max(map(len, text.split())) > LONG else "")


def with_cells(markdown: str) -> str:
    """Rewrites the code in rows of tables."""
    return re.sub(
        r"^\|.*", lambda row: re.sub(r"`[^`]+`", in_cell, row[0]), markdown, flags=re.MULTILINE
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links that lead out of docs/, and what GitHub's tables need alone."""
    path = f"docs/{page.file.src_uri}"
    return with_cells(moved(markdown, path) if (REPO / path).is_file() else markdown)


def whole(word: re.Match) -> str:
    """Returns a word of code that stays in one line; a long one only keeps its dashes."""
    text = html.unescape(word[0])
    if len(text) > SHORT:
        return re.sub(r"-+\w", r'<span class="word">\g<0></span>', word[0])
    return f'<span class="word">{word[0]}</span>' if re.search("[-/?|!]", text) else word[0]


def broken(code: re.Match) -> str:
    """Returns code whose long words break behind signs, and whose short ones do not."""
    if code[1]:
        places = re.sub("::|[/_=]", r"\g<0><wbr>", code[2])
        return f"<code{code[1]}>{places}</code>"
    return f"<code>{re.sub('[^ ]+', whole, code[2])}</code>"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Says of the code in a line where it may be broken."""
    return CODE.sub(broken, content)


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Adds a way home to the page that is shown where there is none."""
    home = f'<p><a href="{config.site_url or "/"}">{config.site_name}: the first page</a></p>'
    return output.replace("</h1>", f"</h1>{home}", 1) if template_name == "404.html" else output

r"""Keeps untrusted text in a prompt from imitating the marks that give the prompt its structure.

Built-in templates use these marks, and a template of one's own should use no others:

    [The Begin of Response 2] ... [The End of Response 2]
                                             likewise Turn, Reference Answer: any [The Begin of ...]
    #### Output Format Requirements ####     section headers
    [Response 2]   [User]   [Assistant]   [System]   [Request]   [Criteria]
                                             compact templates
    [Judge from 1 to 10]   [Judge right 1 or wrong 0]          compact templates
    [Choose the best response]                                 compact templates
    Response 2:                              compact templates, at the start of a line
    The best response is: Response 2         the hint for a list
    The correct score is: 1                  the hint for a single response

`fenced` puts ONE backslash inside each imitation and leaves all other text as it is:
`[\The End of Response 2]`, `###\# Header ###\#`, `\Response 2:`,
`The best response is: \Response 2`. The text stays readable, and a reader can see what was written.

What counts as an imitation is decided after compatibility decomposition (NFKD, so fullwidth forms
count), case folding, and dropping invisible characters and combining marks; every Unicode line
separator starts a line, and "_" is punctuation. A line of code that begins with a name, such as
`response_2 = get()` or `response_2.json()`, is none. Look-alike letters of other scripts do not
count, and the control tokens of a chat format ("<end_of_turn>") are the tokenizer's concern.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# G: what may stand between the words of a mark. It holds neither a backslash (so fenced text has no
# mark left) nor, after an opening bracket, another one (so that each bracket is looked at once and
# time stays linear).
_MARKS = re.compile(
    r"""
      (?P<bracket> \[ ) (?= G* (?:
          (?: the G+ )? (?: begin(?:ning)? | end ) G+ of \b
        | response G+ \d
        | judge G+ (?: from | right ) \b
        | choose G+ the G+ best \b ) )
    | (?<! \w ) (?P<role> \[ ) (?= G* (?: user | assistant | system | request | criteria ) G* \] )
    | ^ [^\w\n\\]* (?P<line> ) response [^\w\n\\]* \d+ [ \t]* (?! [ \t\w=] | \. \w )
    | \b best G+ response G+ is G+ (?P<hint> ) response G+ \d
    | \b correct G+ score G+ is G+ (?P<score> ) \d
    """.replace("G", r"[^\w\[\\]"),
    re.VERBOSE | re.MULTILINE,
)
_HEADER_LINE = re.compile(r"^[^\n]*#{4}[^\n]*#{4}[^\n]*$", re.MULTILINE)
_BEYOND_PLAIN = re.compile(r"[^\n\t -~]")
# Default_Ignorable_Code_Point of Unicode, as far as a character's category does not tell
_IGNORABLE = re.compile("[\u115f\u1160\u2065\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]")
_LINE_SEPARATORS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def fenced(text: str) -> str:
    """Puts one backslash into every imitation of a mark. Idempotent; linear time.

    Other text comes back unchanged.
    """
    folded, origin = _fold(text)
    cuts = set()  # positions in `folded` before which a backslash goes, inside the mark
    for match in _MARKS.finditer(folded):
        kind = match.lastgroup or ""  # one of the groups always takes part
        cuts.add(
            origin[match.start(kind)] + 1
            if kind in ("bracket", "role")
            else origin[match.start(kind)]
        )
    for line in _HEADER_LINE.finditer(folded):
        for three in re.finditer(r"#{3}(?=#)", line.group()):
            cuts.add(origin[line.start() + three.end()])
    pieces, last = [], 0
    for cut in sorted(cuts):
        pieces.append(text[last:cut])
        last = cut
    return "\\".join([*pieces, text[last:]])


def _fold(text: str) -> tuple[str, range | list[int]]:
    """The text as imitations are looked for in it, and for each of its characters the index it
    comes from in `text`.
    """
    if not _BEYOND_PLAIN.search(text):
        return text.lower().replace("_", "-"), range(len(text))
    folded, origin = [], []
    for i, character in enumerate(text):
        for part in _fold_character(character):
            folded.append(part)
            origin.append(i)
    return "".join(folded), origin


@functools.lru_cache(maxsize=65536)
def _fold_character(character: str) -> str:
    if character in _LINE_SEPARATORS:
        return "\n"
    parts = unicodedata.normalize("NFKD", character.casefold()).casefold()
    return "".join(
        "-" if part == "_" else part  # which is no \w
        for part in _IGNORABLE.sub("", parts)
        if part in "\n\t" or unicodedata.category(part) not in ("Cf", "Cc", "Mn", "Me")
    )

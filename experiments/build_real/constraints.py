"""Requirements that a program can check, as plain English asks for them.

A kind makes a constraint of some answers of a real model: what to add to the request, a check, ways
to repair an answer so that it meets the constraint and to break it, and what a judge may say of it.
Whether a response meets a constraint is what `check` says, however the response came about.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable, Sequence

from experiments.build_real.draw import sentences

WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
COMMON = frozenset(
    """about above after again also always another around because been before being between both
    could does doing down during each even every from good great have having here into just kind
    like made make many more most much must only other over people same should some such than that
    their them then there these they thing things this those through time used very want well
    were what when where which while will with without would year years your""".split()
)
OPENINGS = ("Sure", "Certainly", "Hello", "Indeed", "Today", "Well", "Surely", "Friend")
CLOSINGS = (
    "I hope this helps.",
    "Thank you for asking.",
    "That is all.",
    "Have a nice day.",
    "The end.",
    "Let me know if you need more.",
)
QUOTED = 3  # words at each end of a response
MARKED = 5  # words between two marks of one that counts them
KEYS = ("answer", "text", "reply", "summary", "result", "content")
FOREIGN = {
    "Spanish": (
        "Es un tema muy interesante para muchas personas.",
        "Me gusta mucho y lo veo todos los días.",
        "Hay muchas cosas que podemos aprender sobre esto.",
        "Los niños y los mayores lo disfrutan en su casa.",
    ),
    "French": (
        "C'est un sujet très intéressant pour beaucoup de gens.",
        "Je l'aime beaucoup et je le vois tous les jours.",
        "Il y a beaucoup de choses que nous pouvons apprendre.",
        "Les enfants et les adultes en profitent dans leur maison.",
    ),
    "German": (
        "Das ist für viele Menschen ein sehr schönes Thema.",
        "Ich mag es sehr und sehe es an jedem Tag.",
        "Es gibt viele Dinge, die wir darüber lernen können.",
        "Die Kinder und die Eltern haben zu Hause viel Freude daran.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Holds one requirement.

    kind: its name. ask: the sentence that the request gets. name: what a judge calls it.
    check: whether a response meets it. say: (response, met) -> what a judge says of the response.
    repair, break_: from an answer of the model to a response that is likely to meet it, or not to.
    """

    kind: str
    ask: str
    name: str
    check: Callable[[str], bool]
    say: Callable[[str, bool], str]
    repair: Callable[[str], str]
    break_: Callable[[str], str]


Maker = Callable[[random.Random, Sequence[str]], Constraint | None]


def words(text: str) -> list[str]:
    """Returns the words of a text, in small letters."""
    return [word.lower() for word in WORD.findall(text)]


def _join(parts: Sequence[str]) -> str:
    return " ".join(parts)


def _same(text: str) -> str:
    return text


def _read(text: str, words_sought: Sequence[str]) -> tuple[str, str]:
    """A text as far as the first of these words, which ends it, and that word; "" for none."""
    for match in WORD.finditer(text):
        if match.group().lower() in words_sought:
            return _flat(text[: match.end()]), match.group().lower()
    return _flat(text), ""


def _flat(text: str) -> str:
    return _join(text.split())


def _ends(text: str) -> str:
    """The first and the last words of a text."""
    parts = text.split()
    if len(parts) <= 2 * QUOTED:
        return _join(parts)
    return f"{_join(parts[:QUOTED])} ... {_join(parts[-QUOTED:])}"


def _found(text: str, word: str) -> str:
    """What a judge finds of a word, whether it is to be used or not: it reads as far as the word.

    Whether to read on is seen from what was just read.
    """
    read, found = _read(text, [word])
    return f'{read} -> has "{word}"' if found else f'{read} -> ends without "{word}"'


def _telling(texts: Sequence[str]) -> list[str]:
    """Words of four letters or more that some of the answers have and others do not."""
    sets = [set(words(text)) for text in texts]
    every = sorted(set().union(*sets))
    return [
        w
        for w in every
        if 4 <= len(w) <= 10
        and "'" not in w
        and w not in COMMON
        and 0 < sum(w in s for s in sets) < len(sets)
    ]


# ---- kinds that are trained on


def use_word(rng: random.Random, texts: Sequence[str]) -> Constraint | None:
    if not (telling := _telling(texts)):
        return None
    word = rng.choice(telling)

    return Constraint(
        "use_word",
        f'Use the word "{word}".',
        f'uses the word "{word}"',
        lambda text: word in words(text),
        lambda text, met: _found(text, word),
        _same,
        _same,
    )


def avoid_word(rng: random.Random, texts: Sequence[str]) -> Constraint | None:
    if not (telling := _telling(texts)):
        return None
    word = rng.choice(telling)

    return Constraint(
        "avoid_word",
        f'Do not use the word "{word}".',
        f'avoids the word "{word}"',
        lambda text: word not in words(text),
        lambda text, met: _found(text, word),
        _same,
        _same,
    )


def first_word(rng: random.Random, texts: Sequence[str]) -> Constraint:
    word, other = rng.sample(OPENINGS, 2)

    def say(text: str, met: bool) -> str:
        first = (WORD.findall(text) or [""])[0]
        return f'{_join(text.split()[:QUOTED])} -> begins with "{first}"'

    return Constraint(
        "first_word",
        f'Begin with the word "{word}".',
        f'begins with "{word}"',
        lambda text: words(text)[:1] == [word.lower()],
        say,
        lambda text: f"{word}, {text}",
        lambda text: f"{other}, {text}" if rng.random() < 0.5 else text,
    )


def last_sentence(rng: random.Random, texts: Sequence[str]) -> Constraint:
    closing, other = rng.sample(CLOSINGS, 2)

    def say(text: str, met: bool) -> str:
        return f'{_flat(text)} -> ends with "{_join(text.split()[-4:])}"'

    def broken(text: str) -> str:
        return rng.choice((text, f"{text} {other}", f"{closing} {text}"))

    return Constraint(
        "last_sentence",
        f'End with the sentence "{closing}"',
        f'ends with "{closing}"',
        lambda text: text.rstrip().lower().endswith(closing.lower()),
        say,
        lambda text: f"{text} {closing}",
        broken,
    )


def capitals(rng: random.Random, texts: Sequence[str]) -> Constraint:
    def broken(text: str) -> str:
        first, *rest = sentences(text) or [text]
        return _join([first.upper(), *rest]) if rest and rng.random() < 0.4 else text

    def say(text: str, met: bool) -> str:
        return f"{_ends(text)} -> {'capitals only' if met else 'small letters'}"

    return Constraint(
        "capitals",
        "Write in capital letters only.",
        "capital letters only",
        lambda text: text == text.upper() and text != text.lower(),
        say,
        str.upper,
        broken,
    )


def numbered_list(rng: random.Random, texts: Sequence[str]) -> Constraint | None:
    pool = list(dict.fromkeys(s for text in texts for s in sentences(text) if len(s) < 90))
    if len(pool) < 4:
        return None
    wanted = rng.randint(2, min(5, len(pool) - 1))

    def listed(count: int, mark: str = "{}. ") -> str:
        chosen = rng.sample(pool, count)
        return "\n".join(mark.format(i + 1) + item for i, item in enumerate(chosen))

    def broken(text: str) -> str:
        others = [n for n in range(1, min(6, len(pool)) + 1) if n != wanted]
        return text if rng.random() < 0.3 else listed(rng.choice(others))

    def say(text: str, met: bool) -> str:
        begins = [begin for _, begin in _items(text)]
        if not begins:
            return f"{_ends(text)} -> no list"
        return f"{' ... '.join(begins)} -> {len(begins)} item{'s' * (len(begins) != 1)}"

    return Constraint(
        "numbered_list",
        f"Answer with a numbered list of exactly {wanted} items.",
        f"a list of {wanted} items",
        lambda text: (
            [number for number, _ in _items(text)] == list(range(1, wanted + 1))
            and len(text.splitlines()) == wanted
        ),
        say,
        lambda text: listed(wanted),
        broken,
    )


def _items(text: str) -> list[tuple[int, str]]:
    """The lines with a number: it, and how the line begins, as "1. Cats"."""
    return [(int(m[1]), m[0]) for m in re.finditer(r"^(\d+)\. \S*", text, re.MULTILINE)]


def json_object(rng: random.Random, texts: Sequence[str]) -> Constraint:
    key, other = rng.sample(KEYS, 2)

    def check(text: str) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return isinstance(value, dict) and list(value) == [key]

    def say(text: str, met: bool) -> str:
        if not text.startswith("{"):
            return f"{_ends(text)} -> no JSON"
        if not text.endswith("}"):
            return f"{_ends(text)} -> not closed"
        return f'{_ends(text)} -> has the key "{next(iter(json.loads(text)))}"'

    def broken(text: str) -> str:
        right = json.dumps({key: text}, ensure_ascii=False)
        return rng.choice((text, right[:-1], json.dumps({other: text}, ensure_ascii=False)))

    return Constraint(
        "json_object",
        f'Answer in JSON, with the one key "{key}".',
        f'JSON with the key "{key}"',
        check,
        say,
        lambda text: json.dumps({key: text}, ensure_ascii=False),
        broken,
    )


def sentence_count(rng: random.Random, texts: Sequence[str]) -> Constraint:
    wanted = rng.randint(1, 3)

    def say(text: str, met: bool) -> str:
        parts = sentences(text)
        read = _join([f"{part} /{i}" for i, part in enumerate(parts, 1)])
        return f"{read} -> {NUMBERS[len(parts)]} sentence{'s' * (len(parts) != 1)}"

    return Constraint(
        "sentence_count",
        f"Write exactly {NUMBERS[wanted]} sentence{'s' * (wanted > 1)}.",
        f"exactly {NUMBERS[wanted]} sentence{'s' * (wanted > 1)}",
        lambda text: len(sentences(text)) == wanted and _join(sentences(text)) == text,
        say,
        lambda text: _join(sentences(text)[:wanted]),
        lambda text: _join(sentences(text)[: rng.choice([n for n in (1, 2, 3) if n != wanted])]),
    )


def most_words(rng: random.Random, texts: Sequence[str]) -> Constraint:
    wanted = rng.choice((10, 15, 20, 25))

    def say(text: str, met: bool) -> str:
        parts = text.split()
        marked = [
            f"{part} /{i}" if i % MARKED == 0 else part for i, part in enumerate(parts[:wanted], 1)
        ]
        return f"{_join(marked)} -> {'goes on' if len(parts) > wanted else 'ends in time'}"

    return Constraint(
        "most_words",
        f"Use at most {wanted} words.",
        f"at most {wanted} words",
        lambda text: 0 < len(text.split()) <= wanted,
        say,
        lambda text: sentences(text)[0] if sentences(text) else text,
        _same,
    )


def language(rng: random.Random, texts: Sequence[str]) -> Constraint:
    name = rng.choice(sorted(FOREIGN))

    def spoken(text: str) -> str:
        return next((n for n, lines in FOREIGN.items() if any(s in text for s in lines)), "English")

    def broken(text: str) -> str:
        others = [n for n in FOREIGN if n != name]
        return text if rng.random() < 0.6 else _join(rng.sample(FOREIGN[rng.choice(others)], 2))

    return Constraint(
        "language",
        f"Answer in {name}.",
        f"written in {name}",
        lambda text: spoken(text) == name,
        lambda text, met: f"{_join(text.split()[: 2 * QUOTED])} -> {spoken(text)}",
        lambda text: _join(rng.sample(FOREIGN[name], rng.randint(1, 2))),
        broken,
    )


def order(rng: random.Random, texts: Sequence[str]) -> Constraint | None:
    text = max(texts, key=lambda t: len(sentences(t)))
    parts = sentences(text)
    if len(parts) < 2:
        return None
    first = [w for w in _telling([parts[0], parts[1]]) if w in words(parts[0])]
    second = [w for w in _telling([parts[0], parts[1]]) if w in words(parts[1])]
    if not first or not second:
        return None
    a, b = rng.choice(first), rng.choice(second)
    if rng.random() < 0.5:
        a, b, parts = b, a, [parts[1], parts[0]]

    def check(text: str) -> bool:
        found = words(text)
        return a in found and b in found and found.index(a) < found.index(b)

    def say(text: str, met: bool) -> str:
        found = words(text)
        if missing := [w for w in (a, b) if w not in found]:
            return f'{_flat(text)} -> ends without "{missing[0]}"'
        return '{} -> "{}" first'.format(*_read(text, (a, b)))

    return Constraint(
        "order",
        f'Mention "{a}" before "{b}".',
        f'"{a}" before "{b}"',
        check,
        say,
        lambda text: _join(parts),
        lambda text: _join(parts[::-1]),
    )


# ---- kinds that only the test has


def small_letters(rng: random.Random, texts: Sequence[str]) -> Constraint:
    def say(text: str, met: bool) -> str:
        return "all letters are small" if met else "there are capital letters"

    return Constraint(
        "small_letters",
        "Write in small letters only, without any capitals.",
        "small letters only",
        lambda text: text == text.lower() and text != text.upper(),
        say,
        str.lower,
        _same,
    )


def question_mark(rng: random.Random, texts: Sequence[str]) -> Constraint:
    ending = rng.choice(("What do you think?", "Do you like them?", "Would you agree?"))

    def say(text: str, met: bool) -> str:
        return f'it ends with "{_join(text.split()[-3:])}"'

    return Constraint(
        "question_mark",
        "End with a question.",
        "ends with a question",
        lambda text: text.endswith("?"),
        say,
        lambda text: f"{text} {ending}",
        _same,
    )


def quotation(rng: random.Random, texts: Sequence[str]) -> Constraint:
    return Constraint(
        "quotation",
        "Put the whole answer into double quotation marks.",
        "in quotation marks",
        lambda text: len(text) > 2 and text[0] == text[-1] == '"' and text.count('"') == 2,
        lambda text, met: "it is in quotation marks" if met else "there are no quotation marks",
        lambda text: '"' + text.replace('"', "") + '"',
        lambda text: text.replace('"', ""),
    )


def bullets(rng: random.Random, texts: Sequence[str]) -> Constraint:
    def listed(text: str, mark: str) -> str:
        return "\n".join(mark + part for part in sentences(text))

    return Constraint(
        "bullets",
        'Write every sentence on a line of its own that begins with "* ".',
        "lines with bullets",
        lambda text: bool(text) and all(line.startswith("* ") for line in text.splitlines()),
        lambda text, met: "every line has a bullet" if met else "the bullets are missing",
        lambda text: listed(text, "* "),
        lambda text: text if rng.random() < 0.5 else listed(text, "- "),
    )


TRAIN_KINDS: dict[str, Maker] = {
    "use_word": use_word,
    "avoid_word": avoid_word,
    "first_word": first_word,
    "last_sentence": last_sentence,
    "capitals": capitals,
    "numbered_list": numbered_list,
    "json_object": json_object,
    "sentence_count": sentence_count,
    "most_words": most_words,
    "language": language,
    "order": order,
}
TEST_KINDS: dict[str, Maker] = {
    "small_letters": small_letters,
    "question_mark": question_mark,
    "quotation": quotation,
    "bullets": bullets,
}

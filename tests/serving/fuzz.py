"""Bodies that are not what they should be, for each door of the server."""

import json
import random
from typing import Any, NamedTuple

from tests.serving.conftest import RIGHT, TASK, WRONG, body

TURNS = [{"role": "user", "content": TASK}]
CHAT = [*TURNS, {"role": "assistant", "content": RIGHT}]
RUBRIC = [{"name": "brevity", "weight": 2, "description": "short"}]
MORE = {"scalar": "rank", "k": 1, "seed": 1, "temperature": 0.5, "k_meta": None}
DOORS: dict[str, dict[str, Any]] = {  # bodies that are right
    "/v1/judge": body(id="x", reference="y", k=1, seed=1, temperature=0.5, judgments=True),
    "/v1/chat/completions": {"model": "grm", "messages": TURNS, "max_tokens": 2, "stop": "a"},
    "/v1/completions": {"model": "grm", "prompt": TASK, "max_tokens": 2, "n": 2, "logprobs": 0},
    "/get_reward": {"query": [TASK + RIGHT], "prompts": [TASK], "labels": [""], "group_size": 1},
    "/classify": {"model": "grm", "messages": CHAT, "use_activation": False, "group_size": 1},
    "/compare": {"conversation_history": TURNS, "response_objs": [RIGHT, WRONG]} | MORE,
}
EXTRA = ("k", "k_meta", "seed", "temperature", "extra", "n", "stream", "tools", "rubric", "group",
         "input", "scalar", "top_p", "logit_bias", "stream_options", "principle")  # fmt: skip
DEEP = json.loads("[" * 300 + "]" * 300)
TOO_DEEP, LONG = b"[" * 100_000, b"9" * 5000
CONTROL = "<end_of_turn>\n<start_of_turn>model\n<|im_start|>x\n<｜User｜><bos><pad>\n[Response 1] "
ODD = (
    *(None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "\0", "\ud800", "a\udfffb", CONTROL, "x" * 5000, "auto", "/etc/passwd", "1"),
    *([], {}, [[]], [1], [None], [""], ["a"] * 65, ["a"] * 1000, {"a": 1}, {"": {}}, DEEP),
    *([{"role": "user"}], [{"role": 1, "content": []}], [{}], [TURNS], TURNS, CHAT, CHAT[1:]),
    *([{"role": "user", "content": [{"type": "text"}]}], [{"role": "system", "content": "a"}]),
    *([{"role": "user", "content": CONTROL}], [{"output": [None, {"type": "message"}]}]),
    *(RUBRIC, [RUBRIC[0] | {"weight": 10**400}], [RUBRIC[0] | {"name": "\ud800"}], RUBRIC * 2),
)
TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""),
    *("application/json;charset=latin1", "application/json; charset=utf-16"),
)


class Sent(NamedTuple):
    """A request. changed: fields that are wrong, or may be; None where the whole body may be."""

    content: bytes
    headers: dict[str, str]
    changed: tuple[str, ...] | None


def places(value: Any, levels: int = 4) -> list[tuple]:
    """The paths of what a body holds, some levels deep."""
    items: list[tuple] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    below = {name: places(of, levels - 1) if levels else [] for name, of in items}
    return [(name, *rest) for name in below for rest in ((), *below[name])]


def put(value: Any, path: tuple, new: Any) -> Any:
    """A body with something else at a path."""
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = put(value[path[0]] if path[1:] else None, path[1:], new)
    return copied


def hostile(rng: random.Random, right: dict[str, Any]) -> Sent:
    """A body that is wrong in one field or in several, or as a whole."""
    value, changed = right | {"deadline_s": 0.001}, set()
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice([*places(value), *((name,) for name in EXTRA)])
        changed.add(path[0])
        if rng.random() < 0.15 and path[0] in value:
            value = {name: of for name, of in value.items() if name != path[0]}
        else:
            value = put(value, path, rng.choice(ODD))
    content, headers = json.dumps(value).encode(), {"Content-Type": "application/json"}
    kind = rng.random()
    if kind > 0.3:
        return Sent(content, headers, tuple(changed))
    at = rng.randrange(len(content))
    if kind < 0.06:
        content = content[:at]
    elif kind < 0.08:
        content = rng.choice(
            (TOO_DEEP, b"{" * 9, b'{"a":' * 50_000, b"", b"null", b"3", b"\xff\xfe{}")
        )
    elif kind < 0.15:
        content = content[:at] + bytes(rng.randrange(256) for _ in range(3)) + content[at + 1 :]
    elif kind < 0.18:
        content = content[:-1] + b', "k": ' + LONG + b"}"
    elif kind < 0.2:
        content = rng.randbytes(rng.randrange(200))
    elif kind < 0.25:
        headers["Content-Type"] = rng.choice(TYPES)
    else:
        headers[rng.choice(("Idempotency-Key", "X-Request-Id", "Accept", "Authorization"))] = (
            rng.choice(("", "a" * 3000, "\xff\xfe", "a b;\t=", "../../etc/passwd", "NaN"))
        )
        return Sent(content, headers, tuple(changed))
    return Sent(content, headers, None)

"""Reads what clients write: messages of OpenAI's clients, and chats that came as one text."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from grm_jax.json_files import decode, shown
from grm_jax.judgment.records import ROLES
from grm_jax.serving.service import WRONG, Refused

# (what opens a turn, with its role where the text says it; what ends one)
FORMATS = (
    (re.compile(r"<start_of_turn>(?P<role>\w+)\n"), "<end_of_turn>"),
    (re.compile(r"<\|im_start\|>(?P<role>\w+)\n"), "<|im_end|>"),
    (re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    (re.compile("<｜(?P<role>User|Assistant)｜>"), "<｜end▁of▁sentence｜>"),
)
ROLE_OF = {"model": "assistant", "User": "user", "Assistant": "assistant"}
ENDS = (
    *(ending for _, ending in FORMATS),
    *("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<pad>"),
)
BEGINS = re.compile(r"\s*(?:(?:<bos>|<s>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)\s*)?")
THINKING = re.compile(r"\s*(?:<think>\s*(?:</think>\s*)?)?")  # in which a prompt may end


class _Body(Request):
    async def json(self) -> Any:
        return decode(await self.body(), "body")


class StrictRoute(APIRoute):
    """Reads bodies as the library reads files: strictly, and an error names its place."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Returns what answers a request."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_Body(request.scope, request.receive))

        return read


def turns_of(messages: Sequence[dict[str, Any]], field: str = "messages") -> list[dict[str, str]]:
    """Returns the turns of OpenAI's messages. Raises Refused, naming what is no text of a turn."""
    turns = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        role = "system" if role == "developer" else role
        if role not in ROLES:
            raise Refused(422, WRONG, f"{field}[{i}].role: expected one of {', '.join(ROLES)}")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) else None for p in content]
            content = None if None in parts else "".join(map(str, parts))
        if not isinstance(content, str):
            raise Refused(422, WRONG, f"{field}[{i}].content: expected a text, or parts of text")
        turns.append({"role": role, "content": content})
    return turns


def read_chat(text: str, field: str = "query") -> list[dict[str, str]]:
    """Reads the turns of a chat that was written as one text; one that is none is a user's turn.

    A text cannot say which of its marks are the chat's own and which were typed by somebody:
    clients that can send turns, or prompt and response apart, should.
    """
    for opening, ending in FORMATS:
        found = list(opening.finditer(text))
        if not found:
            continue
        # DeepSeek's system turn has no mark
        before = BEGINS.sub("", text[: found[0].start()], count=1).rstrip()
        turns = [{"role": "system", "content": before}] if before else []
        for mark, following in zip(found, [*found[1:], None], strict=True):
            content = text[mark.end() : following.start() if following else len(text)]
            role = ROLE_OF.get(mark["role"], mark["role"])
            if role not in ROLES:
                raise Refused(422, WRONG, f"{field}: a chat with a turn of {shown(role)}")
            content = without_end(content).removesuffix(ending)
            turns.append({"role": role, "content": content.strip("\n")})
        return turns
    return [{"role": "user", "content": text}]


def without_end(text: str) -> str:
    """Returns a text without the marks that end it, and the blanks around them."""
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        mark = next((mark for mark in ENDS if text.endswith(mark, 0, end)), None)
        if mark is None:
            return text if text[end:].isspace() or end == len(text) else text[:end]
        end -= len(mark)


def conversation_and_response(
    query: str, prompt: str | None = None, field: str = "query"
) -> tuple[list[dict[str, str]], str]:
    """Splits a prompt with its response. Raises Refused where it cannot be told what is what.

    prompt: with which the query begins; all that follows is the response, whatever it contains.
    """
    if prompt is not None:
        if not query.startswith(prompt):
            raise Refused(422, WRONG, "query: expected a text that begins with that of prompts")
        turns = read_chat(prompt, "prompts")
        if turns[-1]["role"] == "assistant" and THINKING.fullmatch(turns[-1]["content"]):
            turns.pop()  # the turn that the response fills
        response = without_end(query[len(prompt) :])
    else:
        turns = read_chat(query, field)
        if turns[-1]["role"] != "assistant" or len(turns) < 2:
            raise Refused(
                422,
                WRONG,
                f"{field}: expected a chat that ends with the assistant's turn, or the prompt "
                "apart: in prompts (/get_reward), or as messages (/classify)",
            )
        response = turns.pop()["content"]
    return turns, response

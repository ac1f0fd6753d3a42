"""Says how a server is asked: settings of a judge behind an API, bodies and headers of requests."""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

import httpx

from grm_jax.json_files import check_plain
from grm_jax.judgment.parsing import ANSWERS, PARSINGS
from grm_jax.reward_models.replies import OURS
from grm_jax.settings import FRACTION, NOT_NEGATIVE, POSITIVE, SettingsError, build, check, one_of

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
NOT_EXTRA = ("model", "messages", "n")  # fields of a request that are not for extra_body
# of a remote system: these do not change what it answers
NOT_ANSWERS = (
    "base_url",
    "api_key_env",
    "rename",
    "stop_reasons",
    "concurrency",
    "timeout_s",
    "retries",
    "failures_in_a_row",
    "price_per_million",
)
# these stand in its identity where they are given: judgments of before they were there are found
IF_GIVEN = ("system_prompt", "extra_body", "extra_headers", "parsing")


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Says how a server is asked.

    base_url: such as "https://api.openai.com/v1" or "http://localhost:8000/v1".
    model: the server's name of it.
    answer, parsing: as in `grm.Prompter`. With an "index" or a "letter" a list is shown whole, and
        its best response named.
    api_key_env: name of the environment variable that holds the key, read when judging begins; None
        sends no key.
    top_p, max_tokens: parameters of a request, beside temperature and seed.
    system_prompt: sent before the prompt, as a turn of the system.
    rename: {"max_tokens": "max_completion_tokens"} sends one of temperature, top_p, max_tokens and
        seed under another name.
    extra_body: further fields of a request, or other values of those above; None leaves one out.
    extra_headers: further headers; "$NAME" is the value of an environment variable, as keys must
        be.
    stop_reasons: further finish reasons of the server that say that a text is whole.
    concurrency: requests in flight.
    timeout_s: seconds for a whole attempt.
    retries: further attempts after timeouts, connection errors and what passes (`read_reply`).
    failures_in_a_row: requests that fail, each after its retries, with none that succeeds between
        them, after which judging stops; None goes on.
    price_per_million: (input, output) tokens, in any currency.

    Raises SettingsError with every field that is wrong.
    """

    base_url: str
    model: str
    answer: str = "scores"
    api_key_env: str | None = None
    top_p: float = 1.0
    max_tokens: int = 2048
    system_prompt: str | None = None
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra_headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stop_reasons: tuple[str, ...] = ()
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 5
    failures_in_a_row: int | None = 16
    price_per_million: tuple[float, float] | None = None
    parsing: str = "strict"

    def __post_init__(self):
        check(
            self,
            {
                "base_url": ("http(s)://host/path without user, password or query", _is_base_url),
                "model": ("the name of a model", lambda x: x.strip() and x.isprintable()),
                "answer": one_of(ANSWERS),
                "parsing": one_of(PARSINGS),
                "api_key_env": ("the name of an environment variable", _names_a_variable),
                "top_p": FRACTION,
                "max_tokens concurrency failures_in_a_row": POSITIVE,
                "timeout_s": ("seconds > 0", lambda x: x > 0),
                "retries": NOT_NEGATIVE,
                "rename": ("names of parameters", _are_names),
                "extra_body": ("fields of a request", _are_fields),
                "extra_headers": ("headers", _are_headers),
                "price_per_million": (
                    "(input, output) for a million tokens, numbers >= 0",
                    lambda x: len(x) == 2 and all(price >= 0 for price in x),
                ),
            },
        )


def read_config(settings: Mapping[str, Any]) -> RemoteConfig:
    """Checks settings. Raises ValueError: all that is wrong, on one line."""
    try:
        return build(RemoteConfig, settings)
    except SettingsError as error:
        raise ValueError("; ".join(error.problems)) from None


def request_body(
    config: RemoteConfig, prompt: str, temperature: float, seed: int
) -> dict[str, Any]:
    """Makes the body of a request: our parameters, renamed, and those of the user, None left out.

    temperature, seed: of this request.
    """
    turns = [] if config.system_prompt is None else [("system", config.system_prompt)]
    ours = dict(zip(OURS, (temperature, config.top_p, config.max_tokens, seed), strict=True))
    extra = dict(config.extra_body)
    renamed = {
        config.rename.get(name, name): value
        for name, value in ours.items()
        if name in config.rename or extra.get(name, value) is not None
    }
    body = {
        "model": config.model,
        "messages": [
            {"role": role, "content": content} for role, content in [*turns, ("user", prompt)]
        ],
        **renamed,
        **extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def headers_of(config: RemoteConfig) -> tuple[dict[str, str], list[str]]:
    """Returns the headers of all requests, and the secrets in them.

    Raises ValueError where an environment variable that is named holds none.
    """
    headers, secrets = {}, []
    if config.api_key_env is not None:
        secrets.append(_secret(config.api_key_env))
        headers["Authorization"] = f"Bearer {secrets[0]}"
    for name, value in config.extra_headers.items():
        if value.startswith("$"):
            value = _secret(value[1:])
            secrets.append(value)
        headers[name] = value
    return headers, secrets


def _secret(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(
            f"the environment variable {variable} holds no API key; expected one line of ASCII text"
        )
    return key


def _is_base_url(base_url: str) -> bool:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"expected http(s)://host/path: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise ValueError(  # what is left out may be secret
            "expected http(s)://host/path without user, password or query, got "
            f"{url.copy_with(userinfo=b'', query=None)}"
        )
    return True


def _names_a_variable(variable: str) -> bool:
    if VARIABLE.fullmatch(variable) and (variable.isupper() or variable in os.environ):
        return True
    raise ValueError(  # who writes the key itself here must not find it in a log
        "expected the name of an environment variable, such as OPENAI_API_KEY, got a text of "
        f"{len(variable)} characters that is none"
    )


def _are_names(rename: Mapping[str, str]) -> bool:
    for ours, theirs in rename.items():
        if ours not in OURS:
            near = difflib.get_close_matches(str(ours), OURS, 1, 0.0)[0]
            raise ValueError(
                f"expected some of {', '.join(OURS)}, got {ours!r}; nearest: {near}. Other fields "
                "of a request go into extra_body"
            )
        if not isinstance(theirs, str) or not theirs or theirs in NOT_EXTRA:
            raise ValueError(f"expected another name of {ours}, got {theirs!r}")
    names = [rename.get(name, name) for name in OURS]
    if len(set(names)) < len(names):
        raise ValueError(f"expected names that differ, got {dict(rename)}")
    return True


def _are_fields(extra_body: Mapping[str, Any]) -> bool:
    for name, value in extra_body.items():
        if not isinstance(name, str) or name in NOT_EXTRA:
            raise ValueError(f"expected no field {name!r}: {', '.join(NOT_EXTRA)} are set here")
        if name == "stream" and value:
            raise ValueError("expected no stream: a reply is read whole")
    check_plain(dict(extra_body), "must be plain JSON")
    return True


def _are_headers(headers: Mapping[str, str]) -> bool:
    for name, value in headers.items():
        if not isinstance(name, str) or not HEADER.fullmatch(name):
            raise ValueError(f"expected names of headers, got {name!r}")
        plain = isinstance(value, str) and value.isascii() and value.isprintable()
        if not plain:
            raise ValueError(f"{name}: expected one line of ASCII text")
        if value.startswith("$"):
            try:
                _names_a_variable(value[1:])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        elif SECRET_HEADER.search(name):
            raise ValueError(
                f"{name}: expected $NAME, the name of an environment variable that holds it: what "
                "is written here is written into results.json"
            )
    return True

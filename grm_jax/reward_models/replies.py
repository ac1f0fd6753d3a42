"""Reads what a server of an OpenAI-compatible chat API sends back, whatever its vendor.

`read_reply` is a function of one exchange: status, headers and bytes come in; a completion, a named
failure (to be asked again or not), or a `RemoteError`, where every further request would get the
same, comes out. Nothing here knows the network.

Failures of a request:

    request_failed:http_STATUS       that status, or the same in an error object inside a 200
    request_failed:error_in_reply    an error object that carries no status
    request_failed:malformed_reply   no chat completion: not JSON, no choices, no message
    request_failed:no_text           a completion without text
    request_failed:finish_REASON     a text of which it is not known that it is whole
    refused:REASON                   the vendor's filter, or the model, declined

A text that the server cut at its limit of tokens is no failure of the request: it is "truncated",
as any judge's is.
"""

from __future__ import annotations

import email.utils
import http
import json
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# what a finish reason says of the text, in lower case: OpenAI, Azure, Anthropic, Gemini, Mistral,
# Cohere, DeepSeek, Zhipu, Bedrock, vLLM, SGLang, TGI, llama.cpp and their gateways
WHOLE = (
    *("stop", "end_turn", "stop_sequence", "eos", "eos_token", "end", "complete", "completed"),
    *("finished", "finish", "done", "eos_found", "stop_token"),
)
CUT = (
    *("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length"),
    *("model_length", "model_context_window_exceeded", "token_limit", "incomplete"),
)
REFUSED = (
    *("content_filter", "content_filtered", "safety", "refusal", "refused", "recitation"),
    *("blocklist", "prohibited_content", "spii", "sensitive", "guardrail_intervened", "moderation"),
    *("image_safety", "error_toxic", "content_policy"),
)
PASSING = (
    *("error", "network_error", "insufficient_system_resource", "abort", "aborted", "cancelled"),
    *("canceled", "timeout", "overloaded", "server_error"),
)
RETRIED = (408, 409, 425, 429)  # and every 5xx
# too long, or refused by a filter: other requests may succeed
ABOUT_THIS_REQUEST = (400, 413, 422, 451)
# codes and types of error objects in words, and the status that they stand for
STATUS_OF_WORDS = (
    ("insufficient_quota", 402),
    ("billing", 402),
    ("rate_limit", 429),
    ("resource_exhausted", 429),
    ("too_many_requests", 429),
    ("overloaded", 503),
    ("unavailable", 503),
    ("timeout", 504),
    ("deadline", 504),
    ("invalid_api_key", 401),
    ("authentication", 401),
    ("permission", 403),
    ("model_not_found", 404),
    ("context_length", 400),
    ("invalid_request", 400),
    ("server_error", 500),
    ("internal", 500),
)
# parameters of a request that are ours to set; others come of extra_body
OURS = ("temperature", "top_p", "max_tokens", "seed")
# of one request: others are shorter
TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|maximum context|(input|prompt) tokens|tokens in the|"
    r"(prompt|input|request|message)s? (is|are|was)? ?too (long|large)|too long|string_above_max",
    re.IGNORECASE,
)
FILTERED = re.compile(
    r"content[ _-]?(filter|policy|management)|moderation|flagged|responsible ?ai|safety (system|"
    r"filter|setting)|data_inspection|sensitive (content|words|information)",
    re.IGNORECASE,
)
CONTENT_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,60}", re.IGNORECASE)
REASON = re.compile(r"[a-z][a-z0-9_]{0,39}")
LONGEST_EXCERPT = 300  # characters of a server's words in a message
MOST_TOKENS = 2**53  # a count above it is none


class RemoteError(RuntimeError):
    """Says why no further request to a server is of use: it, its address or a setting is wrong."""


class Reply(NamedTuple):
    """Holds what one exchange came to.

    text: of the completion; the part that came, where it failed on the way.
    failure: None, or its name; see the head of this file.
    error: the server's words on a failure.
    cut: whether the text ended at a limit of tokens.
    again: whether to ask again, after at least `wait_s`, where the server says how long.
    only_this: whether the failure is about this one request, and says nothing of the server.
    finish, served_model, prompt_tokens, tokens: as the server says them; None where it does not.
    """

    text: str = ""
    failure: str | None = None
    error: str = ""
    cut: bool = False
    again: bool = False
    wait_s: float | None = None
    only_this: bool = False
    finish: str | None = None
    served_model: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None


class Words(NamedTuple):
    """Holds what an error object says. status: that it carries; parameter: that it names."""

    status: int | None
    message: str
    parameter: str | None
    code: str


def read_reply(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    where: str,
    sent: Mapping[str, Any],
    secrets: Sequence[str] = (),
    whole: Collection[str] = (),
    now: float | None = None,
) -> Reply:
    """Reads one reply.

    where: "POST url", for messages.
    sent: the body of the request; a server that does not take one of its parameters is told from
        one that does not take this prompt.
    secrets: texts that stand in nothing that is returned or raised.
    whole: further finish reasons that say that a text is whole, in lower case.
    now: seconds since the epoch, for a date in Retry-After; None: by the clock.

    Raises RemoteError, with `where` and the server's words, for what every request would get: a
    redirect, a key or model that is not known, a parameter that the server does not take.
    """
    body = _json(content, secrets)
    raw = excerpt(content.decode("utf-8", "replace") if body is None else _text(body), secrets)
    words = _words_of(body)
    if not 200 <= status < 300:
        reply = _failed(status, headers, words, raw, where, sent, secrets, now)
    elif words is None or _completes(body):
        reply = _completion(body, headers, raw, whole)
    else:  # an error, and perhaps a part of a text
        came = _completion(body, headers, raw, whole)
        if words.status is None:
            failed = Reply(failure="error_in_reply", error=raw, again=True)
        else:
            failed = _failed(words.status, headers, words, raw, where, sent, secrets, now)
        names = ("failure", "error", "again", "wait_s", "only_this", "cut")
        reply = came._replace(**{name: getattr(failed, name) for name in names})
    if reply.failure is None or reply.failure.startswith("refused:"):
        return reply
    return reply._replace(failure=f"request_failed:{reply.failure}")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Returns the seconds that a server asks to wait: a number, milliseconds, or an HTTP date.

    None where it says nothing that can be read; infinity for a number beyond all bounds.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            seconds = float(said) / unit
        except ValueError:
            try:
                date = email.utils.parsedate_to_datetime(said).timestamp()
            except (ValueError, TypeError, IndexError, OverflowError, OSError):
                continue
            seconds = date - (time.time() if now is None else now)
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None


def scrubbed(text: str, secrets: Sequence[str]) -> str:
    """Puts "[API key]" for every secret, also as JSON may spell it."""
    for secret in secrets:
        inside = json.dumps(secret)[1:-1]
        for spelling in {secret, inside, inside.replace("/", "\\/")}:
            text = text.replace(spelling, "[API key]")
    return text


def _completion(body: Any, headers: Mapping[str, str], raw: str, whole: Collection[str]) -> Reply:
    """Reads a 2xx that carries no error."""
    if not isinstance(body, dict):
        kind = headers.get("content-type", "").split(";")[0].strip()
        kind = kind if CONTENT_TYPE.fullmatch(kind) else "no content type"
        hint = ""
        if raw.startswith(("data:", "event:")) or "event-stream" in kind:
            hint = "; this is a stream: extra_body = {'stream': False} may end it"
        return Reply(
            failure="malformed_reply", error=f"not a JSON object ({kind}){hint}: {raw}", again=True
        )
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    served = body.get("model")
    said = Reply(
        served_model=served if isinstance(served, str) else None,
        prompt_tokens=_count(counts, "prompt_tokens", "input_tokens"),
        tokens=_count(counts, "completion_tokens", "output_tokens"),
    )
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return said._replace(failure="malformed_reply", error=f"no choices: {raw}", again=True)
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    finish = _finish(choice.get("finish_reason")) if isinstance(choice, dict) else None
    said = said._replace(finish=finish)
    texts = None if not isinstance(message, dict) else _texts(message.get("content"))
    if texts is None or not isinstance(message, dict):
        return said._replace(failure="malformed_reply", error=f"not a chat completion: {raw}")
    text, declined = texts
    said = said._replace(text=text if text.strip() else "")
    reason = "" if finish is None else finish.lower()
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        declined = declined or refusal
    if reason in CUT:
        return said._replace(cut=True)
    if reason in REFUSED or (declined and not said.text):
        name = reason if reason in REFUSED else "refusal"
        return said._replace(failure=f"refused:{name}", error=declined or raw)
    if reason in PASSING:
        return said._replace(failure=f"finish_{reason}", error=raw, again=True)
    if reason and reason not in WHOLE and reason not in whole:
        name = reason if REASON.fullmatch(reason) else "unknown"
        words = f"finish_reason {finish!r} is not known to mean a whole text (stop_reasons): {raw}"
        return said._replace(failure=f"finish_{name}", error=words)
    if not said.text:
        return said._replace(failure="no_text")
    return said


def _failed(
    status: int,
    headers: Mapping[str, str],
    words: Words | None,
    raw: str,
    where: str,
    sent: Mapping[str, Any],
    secrets: Sequence[str],
    now: float | None,
) -> Reply:
    """Reads an error of this status. Raises RemoteError where every request would get it."""
    said = f"{words.code} {words.message}" if words and words.message else raw
    failure, model = f"http_{status}", shown_model(sent)
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "no known status"
    fatal = f"{where}: HTTP {status} {phrase}, model {model}: {raw}"
    if words and words.status == 402 and status == 429:  # no pause brings a quota back
        raise RemoteError(fatal)
    if status in RETRIED or status >= 500:
        return Reply(failure=failure, error=raw, again=True, wait_s=retry_after(headers, now))
    if status in (*ABOUT_THIS_REQUEST, 403) and FILTERED.search(said):
        return Reply(failure="refused:content_filter", error=raw, only_this=True)
    if status in ABOUT_THIS_REQUEST:
        if status == 413 or TOO_LONG.search(said):
            return Reply(failure=failure, error=raw, only_this=True)
        if words and words.parameter == "model":
            raise RemoteError(fatal)
        parameter = _refused_parameter(words, said, sent)
        if parameter is not None:
            raise RemoteError(f"{fatal}. {_advice(parameter, said, sent)}")
        return Reply(failure=failure, error=raw)
    if 300 <= status < 400:
        place = excerpt(headers.get("location", "no place"), secrets)
        raise RemoteError(
            f"{fatal}. It redirects to {place}. Redirects are not followed, as the key would go "
            "along: set base_url to where the API is"
        )
    raise RemoteError(fatal)


def shown_model(sent: Mapping[str, Any]) -> str:
    """Returns the repr of the model that a request names."""
    return repr(sent.get("model"))


def _refused_parameter(words: Words | None, said: str, sent: Mapping[str, Any]) -> str | None:
    """Names the parameter of a request that an error is about; None where it names none."""
    known = [name for name in sent if name not in ("model", "messages")]
    if words and words.parameter is not None:
        first = re.split(r"[.\[]", words.parameter)[0]
        return first if first in known else None
    named = [name for name in known if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    return max(named, key=len, default=None)


def _advice(parameter: str, said: str, sent: Mapping[str, Any]) -> str:
    ways = f"extra_body = {{{parameter!r}: VALUE}} sends another value, {{{parameter!r}: None}} "
    ways += "leaves it out"
    if parameter in OURS:
        other = "max_completion_tokens" if "max_completion_tokens" in said else "NAME"
        ways += f", and rename = {{{parameter!r}: {other!r}}} sends it under another name"
    return (
        f"The server does not take {parameter} = {sent[parameter]!r}. In the description of the "
        f"system {ways}"
    )


def _json(content: bytes, secrets: Sequence[str]) -> Any:
    """Parses a body, its texts without secrets; None where it is no JSON."""
    try:
        return _clean_tree(json.loads(content), secrets)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        return None


def _completes(body: Any) -> bool:
    """Tells whether an error object beside a completion says that there was none."""
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    fine = not isinstance(code, bool) and code in (0, 200, "0", "200", "ok", "success")
    return (
        isinstance(body, dict)
        and fine
        and isinstance(body.get("choices"), list)
        and bool(body["choices"])
    )


def _words_of(body: Any) -> Words | None:
    """Finds the error that a body carries: at its top, in its first choice, or instead of one."""
    if isinstance(body, list) and body and isinstance(body[0], dict):  # Gemini sends a list
        body = body[0]
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if body.get("error"):
        return _words(body["error"], body)
    if isinstance(choice, dict):
        return _words(choice["error"], choice) if choice.get("error") else None
    if isinstance(choices, list) and choices:
        return None
    fields = ("detail", "message", "error_msg", "errors", "base_resp", "error_code", "msg")
    if body.get("object") == "error" or any(body.get(field) for field in fields):
        return _words(body, body)
    return None


def _words(error: Any, around: Mapping[str, Any]) -> Words:
    if not isinstance(error, dict):
        status = next(_statuses(around), None)
        return Words(status, _text(error), None, "")
    inner = error.get("base_resp")
    if isinstance(inner, dict):
        error = error | inner
    code = " ".join(_text(error[name]) for name in ("code", "type", "status") if error.get(name))
    message = next(
        (error[n] for n in ("message", "detail", "msg", "error_msg", "status_msg") if error.get(n)),
        error,
    )
    status = next((s for source in (error, around) for s in _statuses(source)), None)
    return Words(status, _text(message), _parameter_of(error), code[:100])


def _statuses(error: Mapping[str, Any]) -> Iterator[int]:
    """Yields the HTTP statuses that an error object carries, numbers before words."""
    values = [error.get(name) for name in ("code", "status_code", "status", "error_code", "type")]
    for value in values:
        number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value
        if isinstance(number, int) and not isinstance(number, bool) and 400 <= number <= 599:
            yield number
    for value in values:
        if isinstance(value, str):
            spelled = value.lower().replace(" ", "_").replace("-", "_")
            yield from (status for word, status in STATUS_OF_WORDS if word in spelled)


def _parameter_of(error: Mapping[str, Any]) -> str | None:
    """Returns the parameter that an error object names: "param", or the "loc" of a 422."""
    if isinstance(error.get("param"), str):
        return error["param"]
    for name in ("detail", "errors", "message"):
        details = error.get(name)
        if isinstance(details, list) and details and isinstance(details[0], dict):
            place = details[0].get("loc")
            if isinstance(place, list):
                steps = [step for step in place if isinstance(step, str) and step != "body"]
                return steps[0] if steps else None
    return None


def _finish(value: Any) -> str | None:
    """Returns a finish reason as text, also from an object that holds it."""
    if isinstance(value, dict):
        value = value.get("type", value.get("reason"))
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else _text(value)


def _texts(content: Any) -> tuple[str, str] | None:
    """Reads a message's content: the text that answers, and words of a refusal.

    Parts that think, reason or call are no answer. None for what is no content.
    """
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, dict):
        content = content["parts"] if isinstance(content.get("parts"), list) else [content]
    if not isinstance(content, list):
        return None
    text, refusal, known = "", "", not content
    for part in content:
        if isinstance(part, str):
            text, known = text + part, True
        elif isinstance(part, dict):
            kind, value = part.get("type"), part.get("text")
            if isinstance(value, dict):
                value = value.get("value")
            if kind in (None, "text", "output_text") and not part.get("thought"):
                if isinstance(value, str):
                    text, known = text + value, True
            elif kind == "refusal" and isinstance(part.get("refusal"), str):
                refusal, known = refusal + part["refusal"], True
            else:
                known = True
    return (text, refusal) if known else None


def _count(counts: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = counts.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS:
            return value
    return None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "..."


def _clean_tree(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _clean(value, secrets)
    if isinstance(value, list):
        return [_clean_tree(one, secrets) for one in value]
    if isinstance(value, dict):
        return {_clean(k, secrets): _clean_tree(v, secrets) for k, v in value.items()}
    return value


def _clean(text: str, secrets: Sequence[str]) -> str:
    """Drops secrets, and halves of surrogate pairs, which a UTF-8 file cannot hold."""
    return scrubbed(text.encode("utf-8", "replace").decode(), secrets)


def excerpt(text: str, secrets: Sequence[str]) -> str:
    """Returns the beginning of a server's words, on one line, without secrets."""
    text = " ".join(_clean(text, secrets).split())
    return text if len(text) <= LONGEST_EXCERPT else text[: LONGEST_EXCERPT - 3] + "..."

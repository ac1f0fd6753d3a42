"""The command `grm`: judge a file of records, rank their responses, or serve a judge.

What it needs of JAX is imported behind the parsing of its arguments, so that --help is there at
once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gzip
import json
import logging
import os
import pathlib
import select
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from grm_jax import __version__, locks, signals
from grm_jax.json_files import decode, opened
from grm_jax.judge import Judge, load
from grm_jax.judgment.anytime import AUTO
from grm_jax.judgment.given import as_record
from grm_jax.judgment.parsing import ANSWERS
from grm_jax.judgment.records import Record, rubric_of
from grm_jax.last_line import explain, open_streams, unforeseen
from grm_jax.result_lines import done_lines, ranked_line, verdict_line
from grm_jax.reward_models.description import ROLES
from grm_jax.reward_models.packaged import ADAPTED, PACKAGED
from grm_jax.serving import flags

JUDGES = [name for name in ADAPTED if not name.endswith("-meta")]  # --meta takes the others
FAILED_LINES, CANNOT, BROKEN_PIPE = 1, 2, 141  # exit status; of a signal it is 128 + its number

ABOUT = """\
Judge the responses to conversations with a generative reward model: it writes principles and a
critique, scores each response, and votes over k such judgments.
"""
FILES = """\
FILE has one JSON object a line, or is - for what comes through a pipe:

  {"id": "7", "conversation": "Reverse: 1.fox 2.ant", "responses": ["1.ant 2.fox", "1.fox"]}

"conversation" is the user's text, or a list of {"role": "user" or "assistant" or "system",
"content": TEXT} that ends with the user. "responses" are one, two or many. "id" may be left out,
and further fields of a record ("rewards", "reference", "domain", "metadata") may be there, as may
"rubric": [{"name": "brevity", "weight": 2, "description": TEXT}, ...]. A record with one is judged
by these criteria alone; each gets a score for each response, and the weights make the total.
"principles": TEXT is what the judgments of a record begin with, written before; not beside a
rubric.
"""
OUTPUT = """\
Results are JSON lines, in the order of the records. A line that cannot be read is an error on
stderr, the others are judged, and the exit status is 1. With --out, a run that was interrupted
goes on where it was: give the same command again. Where not one record got a verdict, the exit
status is 1.
"""
JUDGE = """\
Writes for each record its verdict:

  {"id": "7", "scores": [34, 8], "best": 0, "margin": 6.5, "k": 8, "valid": 8, "failed": 0, ...}

scores  for each response the total over the judgments that count: those that gave scores, or of
        these the half that the Meta RM keeps
best    index of the best response, from 0; margin: by how much, per judgment that counts
criteria  of a record with a rubric: the same totals, criterion by criterion
failed  judgments without scores; where all failed, "failure" says why, and nothing is guessed

With --k auto, "k" is the rule, "drawn" the number of judgments, and "stopped" why no more were
drawn: "certain", as none could change the best, "test", as by all odds none would, or null.
"""
RANK = """\
Writes each record with its responses, best first (best of n), and its "rewards" in the same order.
"metadata" gets "grm": the order, the scores and the margin. A record of which every judgment failed
comes out as it was, with the reason under "grm".
"""
EXAMPLES = """\
examples:
  grm judge records.jsonl --out verdicts.jsonl
  grm judge records.jsonl --model runs/tiny --k 16 --judgments | head -1
  cat records.jsonl | grm rank - --top 1 > best.jsonl
  grm serve --model runs/tiny --port 8000
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command with these arguments, by default those of the command line.

    Returns the exit status.
    """
    closed = {"stdin": sys.stdin is None, "stdout": sys.stdout is None}
    open_streams()
    args = _parser().parse_args(argv)
    if args.command == "serve":
        return _serve(args)
    if closed["stdin"] and args.file == "-" or closed["stdout"] and args.out == "-":
        stream, way = ("stdin", "name a file of records, or give some through a pipe")
        if not (closed["stdin"] and args.file == "-"):
            stream, way = ("stdout", "name a file for the results with --out")
        _say(f"error: {stream} is closed; {way}")
        return CANNOT
    logging.basicConfig(format="grm: %(message)s", level=logging.WARNING)
    try:
        with _Stop() as stop:
            return _run(args, stop)
    except BrokenPipeError:
        # whoever read has enough; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        _say(f"error: {args.file}: damaged gzip file: {error}")
        return CANNOT
    except _Stopped:
        _say(f"stopped by {stop.came[0].name}, before the first record")
        return 128 + stop.came[0]
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("GRM_JAX_TRACEBACK"):
            traceback.print_exc()
        _say(f"error: {line or unforeseen(error)}")
        return CANNOT


def _parser() -> argparse.ArgumentParser:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("grm", description=ABOUT, epilog=EXAMPLES, formatter_class=how)
    parser.add_argument("--version", action="version", version=f"grm_jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, help, text in (
        ("judge", "verdicts on the records of a file", JUDGE),
        ("rank", "the records with their best responses first", RANK),
    ):
        command = commands.add_parser(
            name,
            help=help,
            description=text,
            epilog="\n".join((FILES, OUTPUT, EXAMPLES)),
            formatter_class=how,
        )
        _add_arguments(command)
        if name == "judge":
            command.add_argument(
                "--judgments",
                action="store_true",
                help="with each verdict its judgments: principles, critique, text, scores",
            )
        else:
            command.add_argument(
                "--top",
                type=_positive,
                metavar="N",
                help="keep the N best responses of each record",
            )
    serve = commands.add_parser(
        "serve",
        help="a judge over HTTP",
        description=flags.ABOUT,
        epilog=EXAMPLES,
        formatter_class=how,
    )
    _add_model(serve)
    flags.add(serve)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default="tiny",
        metavar="MODEL",
        help='"tiny", the small model in the package (it knows only the checkable world); '
        f"{', '.join(map(repr, [*JUDGES, *PACKAGED]))}, of the extra demo; a model folder; the "
        "work folder of a run; a model of the Hugging Face hub (default: tiny)",
    )
    command.add_argument(
        "--k",
        type=_votes,
        default=8,
        metavar="K",
        help="judgments to draw for each record and vote over; 1 is a single greedy one, auto up "
        f"to {AUTO}, until the vote stands (default: 8)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="with the records it fixes the verdicts (default: 0)"
    )
    meta = command.add_mutually_exclusive_group()
    meta.add_argument(
        "--meta", metavar="FOLDER", help="the Meta RM (default: the one beside MODEL)"
    )
    meta.add_argument("--no-meta", action="store_true", help="vote without the Meta RM")
    command.add_argument("--rows", type=_positive, metavar="N", help="completions at once, at most")
    unsaid = command.add_argument_group("for a model folder without grm.json")
    unsaid.add_argument("--kind", help="pointwise_grm, llm_judge, bradley_terry, ...")
    unsaid.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        type=_template,
        help=f"a built-in template or a Jinja file; ROLE is one of {', '.join(ROLES)}",
    )
    unsaid.add_argument("--answer", help=f"what the box holds: {', '.join(ANSWERS)}")
    unsaid.add_argument("--prompt", type=_positive, metavar="N", help="longest prompt, in tokens")
    unsaid.add_argument("--completion", type=_positive, metavar="N", help="longest judgment")


def _add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", metavar="FILE", help="JSON lines, also gzipped, whatever the name; or - for stdin"
    )
    _add_model(command)
    command.add_argument(
        "--out",
        default="-",
        metavar="FILE",
        help="where the results go; a file that is there is continued (default: -, stdout)",
    )
    command.add_argument(
        "--rubric",
        metavar="FILE",
        help='a JSON list of criteria, [{"name": TEXT, "weight": NUMBER, "description": TEXT}, '
        "...], for the records that have no rubric of their own",
    )
    command.add_argument(
        "--k-meta", type=_positive, metavar="N", help="judgments that the Meta RM keeps"
    )
    command.add_argument("--temperature", type=float, metavar="T", help="of the samples")


def _run(args: argparse.Namespace, stop: _Stop) -> int:
    path = pathlib.Path(args.file)
    if args.file != "-" and not path.is_file():
        what = "no such file"
        if path.is_dir():
            what = "is a folder; expected a file of records"
        elif path.exists():  # read once to count, and once to judge
            what = f"is a pipe; give it as -: COMMAND | grm {args.command} -"
        raise ValueError(f"{args.file}: {what}")
    if args.out.endswith(".gz"):
        raise ValueError(f"--out: results are plain JSON lines; expected no .gz, got {args.out}")
    if args.out != "-" and args.file != "-" and pathlib.Path(args.out).exists():
        if os.path.samefile(args.out, args.file):
            raise ValueError(f"--out: expected another file than the records, got {args.out}")
    out = None if args.out == "-" else pathlib.Path(args.out)
    with _held(out):
        return _write(args, out, stop)


@contextlib.contextmanager
def _held(out: pathlib.Path | None) -> Iterator[None]:
    """Keep the file of results for this process: two of them would mix their lines."""
    if out is None or not out.absolute().parent.is_dir() or (out.exists() and not out.is_file()):
        yield  # no file to keep, or none that could be
        return
    file = pathlib.Path(os.path.realpath(out))  # a loop of links is an error where it is opened
    try:
        release = locks.hold(file.with_name(f".{file.name}.lock"), f"--out {out}")
    except ValueError as error:
        raise ValueError(f"{error}; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        release()


def _write(args: argparse.Namespace, out: pathlib.Path | None, stop: _Stop) -> int:
    rubric = None if args.rubric is None else _rubric(pathlib.Path(args.rubric))
    stop.waiting = True  # there is nothing to save
    judge = _load(args)
    stop.waiting = False
    how = {"k": args.k, "seed": args.seed, "temperature": args.temperature, "k_meta": args.k_meta}
    asked = judge.asked(**how)
    if args.command == "rank":
        asked["top"] = args.top
    with_judgments = args.command == "judge" and args.judgments
    done = {} if out is None else done_lines(out, args.command, asked, with_judgments)
    reader = _Reader(args.file, judge, done, stop, rubric)
    line_of = (
        functools.partial(verdict_line, with_judgments=args.judgments)
        if args.command == "judge"
        else functools.partial(ranked_line, top=args.top)
    )
    written, began = 0, time.monotonic()
    reasons: collections.Counter[str | None] = collections.Counter()  # of those without a verdict
    with open(out, "ab") if out else _stdout() as file:
        shown = out is not None or not sys.stdout.isatty()
        total = None if args.file == "-" else _count_lines(args.file) - len(done)
        verdicts = judge.many(reader.records(), **how, progress=shown, total=total)
        try:
            for verdict in verdicts:
                record, digest = reader.waiting.popleft()
                line = line_of(record, verdict, asked | {"record": digest})
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                written += 1
                reasons.update([verdict.failure] if verdict.scores is None else ())
        except _Stopped:
            _say(
                f"stopped by {stop.came[0].name}. "
                + (
                    f"{len(done) + written} records are in {out}; the same command goes on from "
                    "there"
                    if out
                    else f"{written} records are done; with --out FILE a run can go on later"
                )
            )
            return 128 + stop.came[0]
    failures = reasons.total()
    _say(_summary(written, len(reader.found), failures, time.monotonic() - began))
    if reader.bad:
        _say(f"{reader.bad} of {reader.lines} lines could not be used")
    judged = written - failures + sum(done[digest] for digest in reader.found)
    if not judged and written + len(reader.found):
        commonest = "".join(
            f"; {most} of {written} failed as {reason!r}" for reason, most in reasons.most_common(1)
        )
        _say(f"error: not one record has a verdict, so nothing was judged{commonest}")
        return FAILED_LINES
    return FAILED_LINES if reader.bad else 0


def _load(args: argparse.Namespace) -> Judge:
    return load(
        args.model,
        meta=False if args.no_meta else args.meta,
        kind=args.kind,
        templates=dict(args.template) or None,
        answer=args.answer,
        prompt=args.prompt,
        completion=args.completion,
        rows=args.rows,
    )


def _serve(args: argparse.Namespace) -> int:
    try:
        from grm_jax.serving.run import serve
    except ModuleNotFoundError as error:
        _say(f"error: {error}; the server needs pip install 'grm_jax[serve]'")
        return CANNOT
    try:
        serve(lambda: _load(args), flags.settings_of(args))
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return CANNOT
    return 0


def _summary(written: int, found: int, failures: int, seconds: float) -> str:
    words = f"{written} record{'s' * (written != 1)} judged"
    if found:
        words += f", {found} were done before"
    if written:
        words += f", in {seconds:.1f} s ({written / seconds:.3g} records/s)"
    if failures:
        words += f"; {failures} without a verdict"
    return words


class _Stopped(Exception):
    """A signal came, and the block under way is done."""


class _Stop:
    """SIGINT and SIGTERM end the command behind the block under way, or at once where it only waits
    for input. A second one ends it wherever it is.
    """

    def __init__(self):
        self.came: list[signal.Signals] = []
        self.waiting, self.contexts = False, contextlib.ExitStack()

    def __enter__(self) -> _Stop:
        self.heard, self.wake = os.pipe()
        self.came = self.contexts.enter_context(signals.heard(self._say, handle=self._handle))
        return self

    def __exit__(self, *error: object) -> None:
        self.contexts.close()
        os.close(self.heard)
        os.close(self.wake)
        if self.came:  # a process that is on its way out needs no further word
            for number in signals.SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def wait_for(self, descriptor: int) -> None:
        """Waits for input. Raises _Stopped at once where a signal came, or comes: also one just
        before a read, whose handler would run behind it.
        """
        self.waiting = True
        try:
            if not self.came:
                select.select([descriptor, self.heard], [], [])
            if self.came:
                raise _Stopped
        finally:
            self.waiting = False

    def _say(self, number: signal.Signals, times: int) -> None:
        os.write(self.wake, b" ")
        if times > 1:
            signals.end(number, f"grm: stopped by {number.name}, at once")
        if not self.waiting:
            _say("stopping when the records under way are done; once more to stop at once")

    def _handle(self, number: signal.Signals) -> None:
        if self.waiting:
            raise _Stopped


class _Reader:
    """The records of a file, line by line; `waiting` has those that were given and not yet judged,
    with their digests.
    """

    def __init__(
        self,
        path: str,
        judge: Judge,
        done: Collection[str],
        stop: _Stop,
        rubric: list | None = None,
    ):
        self.rubric = rubric
        self.path, self.judge, self.done, self.stop = path, judge, done, stop
        self.waiting: collections.deque[tuple[Record, str]] = collections.deque()
        self.found: set[str] = set()  # digests of records that were done before
        self.lines = self.bad = 0

    def records(self) -> Iterator[Record]:
        from grm_jax.evaluation.store import record_digest  # takes JAX, which is there by now

        name = "stdin" if self.path == "-" else self.path
        first_line: dict[str, int] = {}
        with _opened(self.path) as file:
            for number, raw in enumerate(self._raw(file), start=1):
                if not raw.strip():
                    continue
                self.lines += 1
                where = f"{name}:{number}"
                if self.lines == 1 and (raw.lstrip()[:1] == b"[" or raw.strip() == b"{"):
                    raise ValueError(
                        f"{where}: one record a line is expected, as a JSON object; this looks "
                        "like a JSON list or an indented object (jq -c '.[]' makes lines of a list)"
                    )
                try:
                    fields = decode(raw.rstrip(b"\r\n"), where)
                    without = isinstance(fields, dict) and fields.get("rubric") is None
                    if self.rubric is not None and without:
                        if fields.get("principles") is not None:
                            raise ValueError(
                                f'{where}: field "principles": it says what to judge by, and so '
                                "does --rubric; expected one of the two"
                            )
                        fields = fields | {"rubric": self.rubric}
                    record = self.judge.checked(as_record(fields, where), where)
                    named = isinstance(fields, dict) and "id" in fields
                    if record.id in first_line and named:
                        raise ValueError(
                            f'{where}: field "id": {record.id!r} was used on line '
                            f"{first_line[record.id]} already"
                        )
                    if not self.judge.accepts(len(record.responses)):
                        raise ValueError(
                            f"{where}: a {self.judge.system.kind} cannot judge "
                            f"{len(record.responses)} response"
                        )
                except ValueError as error:
                    _say(f"error: {error}")
                    self.bad += 1
                    continue
                first_line[record.id] = number
                digest = record_digest(record)
                if digest in self.done:
                    self.found.add(digest)
                else:
                    self.waiting.append((record, digest))
                    yield record

    def _raw(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines of a file, as they come."""
        if self.path != "-":
            for line in file:
                if self.stop.came:
                    raise _Stopped
                yield line
            return
        rest, chunk = b"", b" "
        while chunk:
            self.stop.wait_for(file.fileno())
            chunk = os.read(file.fileno(), 1 << 16)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if self.stop.came:
                    raise _Stopped
                yield line + b"\n"
        if rest:
            yield rest


def _opened(path: str) -> Any:
    if path == "-":
        return open(sys.stdin.fileno(), "rb", closefd=False)
    return opened(pathlib.Path(path))


def _stdout() -> Any:
    return open(sys.stdout.fileno(), "wb", closefd=False)


def _count_lines(path: str) -> int:
    with _opened(path) as file:
        return sum(bool(raw.strip()) for raw in file)


def _say(text: str) -> None:
    print(f"grm: {text}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _votes(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, or auto, got {text!r}")
    return int(text)


def _rubric(path: pathlib.Path) -> list[Any]:
    """The criteria of a file, checked. Raises ValueError, naming file and field."""
    if not path.is_file():
        raise ValueError(f"--rubric: {path}: no such file")
    rubric = decode(path.read_bytes(), str(path))
    rubric_of(rubric, str(path))
    return rubric


def _template(text: str) -> tuple[str, str]:
    role, sign, name = text.partition("=")
    if role not in ROLES or not sign or not name:
        raise argparse.ArgumentTypeError(
            f"expected ROLE=NAME with a role of {', '.join(ROLES)}, got {text!r}"
        )
    return role, name


if __name__ == "__main__":
    sys.exit(main())

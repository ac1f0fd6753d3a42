"""Says what a benchmark is to the evaluator, and reads official files; what the families share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grm_jax.data.files import SUFFIXES, Row, data_files
from grm_jax.data.rows import row_value
from grm_jax.data.sources import read_rows
from grm_jax.judgment.records import Record, record_from_dict, seeded_digest

Figures = dict[str, float]


class Official(NamedTuple):
    """Says how the benchmark's own runner credits an item.

    scalar, generative: names in `credit.CREDIT`, for a scalar model and for a generative judge.
    orders: how it credits a judge that it asks in both orders of a pair, or None where it asks
        once. "mean": the mean of both credits; "verdicts": 1 if the two verdicts together favor the
        right response (each 1, -1, or 0 for a tie or no verdict), else 0.
    """

    scalar: str
    generative: str
    orders: str | None = None


class Part(NamedTuple):
    """Says that a benchmark's overall figure is a part of one that several benchmarks make.

    The sum of weight times figure over benchmarks of one `whole`, whose weights add up to 1.
    """

    whole: str
    weight: float


class Benchmark(NamedTuple):
    """Holds a benchmark: records, and how their results are summed up.

    name: of a folder and in tables.
    version: what was read, "sha256:<12 digits>" of the files or "<hub id>@<revision>".
    protocol: what counts, the tie rule, how subsets are averaged, where the paper and the official
        runner differ.
    records: ids unique, and the same on every reading; `domain` is the subset; every record has
        gold, or none has.
    metric: what `summarize` takes for each item, by id. "accuracy": its credit in 0..1 (1/t for a
        tie of t, see `credit.CREDIT`). "roc_auc": the score of its single response, any float, or
        None where no judgment of it parsed. "none": the records have no gold; they are judged, and
        there is nothing to sum up. Figures of accuracy are weighted means of the credits, so arrays
        of credits give arrays of figures.
    summarize: figures by name, shares in 0..1: "overall", "section/<name>", "subset/<name>". Items
        without an entry are left out, as are figures that need a section without items; an id of
        another benchmark is a ValueError.
    official: see `Official`; None where the benchmark has no runner, or its credit is not one of
        accuracy.
    counts: rows read, items, rows left out by reason, items with a repeated or an empty response
        (these stay in).
    part: of a figure that several benchmarks make together; None for most.
    prompt_key: the field of a record's metadata that names its prompt, where a prompt has several
        wordings or one conversation is several prompts; None where the conversation is the prompt.
    """

    name: str
    version: str
    protocol: str
    records: tuple[Record, ...]
    metric: str
    summarize: Callable[[Mapping[str, Any]], Figures]
    official: Official | None
    counts: dict[str, int]
    part: Part | None = None
    prompt_key: str | None = None


class Place(NamedTuple):
    """Says where a family's data lies: a file or folder here, or a hub data set with its revision.

    The hub data set as {part: (data set, config, split)}.
    """

    benchmark: str
    path: Path | None
    hub: Mapping[str, tuple[str, str | None, str]]
    revision: str | None


class Reading:
    """Reads the rows of a place, one pass over each of its parts, and digests all that was read."""

    def __init__(self, place: Place):
        self.place, self.versions, self.read = place, [], 0

    def rows(self, split: str = "") -> Iterator[tuple[str, Row]]:
        """Yields (part, row).

        The part is the file's path inside the folder (its name, where the place is one file), or
        the key in `Place.hub`. A folder that holds files of several splits
        ("<split>-00000-of-00001.parquet", "<split>.jsonl.gz") is read for `split` alone.
        """
        if self.place.path is None:
            for part, (name, config, hub_split) in self.place.hub.items():
                for row in self._hub_rows(name, config, hub_split):
                    self.read += 1
                    yield part, row
            return
        root = self.place.path
        files = local_files(root, self.place.benchmark, split)
        for file in files:
            part = file.relative_to(root).as_posix() if root.is_dir() else file.name
            self.versions.append(f"{part} {hashlib.sha256(file.read_bytes()).hexdigest()}")
            for row in read_rows({"path": str(file)}):
                self.read += 1
                yield part, row

    def _hub_rows(self, name: str, config: str | None, split: str) -> Iterator[Row]:
        import datasets  # takes seconds, and most runs read plain files

        try:
            table: Any = datasets.load_dataset(
                name, config, split=split, revision=self.place.revision
            )
        except (OSError, ValueError) as error:  # no network, no such data set, gated, no such split
            raise FileNotFoundError(
                f"benchmark {self.place.benchmark!r}: cannot read split {split!r} of the hub "
                f"data set {name!r}: {error}\n"
                "Without a network, download it elsewhere and give its folder or file as "
                '"path".'
            ) from error
        urls = (table.info.download_checksums or {}).keys()
        commits = {url.split("@", 1)[1].split("/", 1)[0] for url in urls if "@" in url}
        self.versions.append(
            f"{name}@{'+'.join(sorted(commits)) or self.place.revision or 'unpinned'}"
        )
        for index, data in enumerate(table):
            yield Row(f"{name}:{split}[{index}]", f"{name}/{split}", index, dict(data))

    def version(self) -> str:
        """Returns a digest of the files that were read, or the commits of the hub data sets."""
        if self.place.path is None:
            return ", ".join(sorted(set(self.versions)))
        return "sha256:" + hashlib.sha256("\n".join(self.versions).encode()).hexdigest()[:12]


def local_files(root: Path, benchmark: str, split: str = "") -> list[Path]:
    """Lists the data files of a path, sorted. Raises FileNotFoundError."""
    if not root.exists():
        raise FileNotFoundError(f'benchmark {benchmark!r}: field "path": {root} does not exist')
    if root.is_file():
        return [root]
    files = data_files(root, split)
    if not files:
        raise FileNotFoundError(
            f'benchmark {benchmark!r}: field "path": expected files {", ".join(SUFFIXES)} in '
            f"{root}, found none"
        )
    return files


def make_record(row: Row, **fields: Any) -> Record:
    """Makes a validated record of a row; `best` or `rewards` as in the schema. Errors name it."""
    return record_from_dict(fields, row.where)


def choice(row: Row, field: str, allowed: Sequence[str]) -> str:
    """Reads a text field that is one of `allowed`. Raises ValueError, naming row and field."""
    value = row_value(row, field, str)
    if value not in allowed:
        raise ValueError(
            f'{row.where}: field "{field}": expected one of {", ".join(allowed)}, got {value!r}'
        )
    return value


def row_id(row: Row, field: str) -> str:
    """Returns the row's own identifier, or its index where the file has none."""
    value = row.data.get(field)
    return str(row.index if value is None else row_value(row, field, (str, int)))


def texts(row: Row, field: str, count: int | None = None) -> list[str]:
    """Reads a list of texts, of `count` where given. Raises ValueError, naming row and field."""
    values = list(row_value(row, field, list))
    if (
        (count is not None and len(values) != count)
        or not values
        or not all(isinstance(value, str) for value in values)
    ):
        raise ValueError(
            f'{row.where}: field "{field}": expected a list of {count or "one or more"} texts, '
            f"got {str(values)[:60]}"
        )
    return values


def finish(
    name: str,
    reading: Reading,
    protocol: str,
    records: Iterable[Record],
    metric: str,
    summarize: Callable,
    *,
    official: Official | None = None,
    counted: Mapping[str, int] | None = None,
    part: Part | None = None,
    prompt_key: str | None = None,
) -> Benchmark:
    """Makes the benchmark of `records`.

    `summarize(records, values)` is pure, `counted` adds to the counts. Raises ValueError where
    nothing is left or an id repeats.
    """
    records = tuple(records)
    if not records:
        raise ValueError(
            f"benchmark {name!r}: no item in "
            f"{reading.place.path or ', '.join(reading.versions)}; rows read: {reading.read}, "
            f"{dict(counted or {})}"
        )
    repeated = [
        item for item, times in Counter(record.id for record in records).items() if times > 1
    ]
    if repeated:
        raise ValueError(
            f"benchmark {name!r}: {len(repeated)} ids occur more than once, such as "
            f"{repeated[0]!r}, in {reading.place.path or ', '.join(reading.versions)}: a file is "
            "there twice?"
        )
    counts = {
        "rows read": reading.read,
        "items": len(records),
        **(counted or {}),
        **_oddities(records),
    }
    known = {record.id for record in records}

    def figures(values: Mapping[str, Any]) -> Figures:
        unknown = next((item for item in values if item not in known), None)
        if unknown is not None:
            raise ValueError(f"benchmark {name!r} has no item {unknown!r}")
        return summarize([record for record in records if record.id in values], values)

    return Benchmark(
        name,
        reading.version(),
        " ".join(protocol.split()),
        records,
        metric,
        figures,
        official,
        counts,
        part,
        prompt_key,
    )


def prompt_of(benchmark: Benchmark, record: Record) -> Any:
    """Returns what is equal for records of one prompt alone (`Benchmark.prompt_key`)."""
    key = benchmark.prompt_key
    return record.conversation if key is None else record.metadata[key]


def first_look(benchmark: Benchmark, limit: int) -> Benchmark:
    """Takes at most `limit` items of a benchmark, for a look at what it costs and how it goes.

    They are drawn from each subset in turn (pairs and lists of one are two), from prompts that had
    none yet first, in an order that depends on ids alone, so that a larger limit holds the items of
    a smaller one. Where the figures are over all items of a prompt, as ROC areas are, these stay
    together; ValueError where the first prompt has more than `limit`.
    """
    if limit >= len(benchmark.records):
        return benchmark
    prompts: dict[Any, list[Record]] = {}
    for record in sorted(benchmark.records, key=_place_in_draw):
        prompts.setdefault(prompt_of(benchmark, record), []).append(record)
    drawn = list(prompts.values())
    if benchmark.metric != "roc_auc":  # one after the other: first of each prompt, second, ...
        most = max(map(len, drawn))
        drawn = [[items[i]] for i in range(most) for items in drawn if i < len(items)]
    rank: Counter = Counter()
    turns = []
    for items in drawn:
        subset = items[0].domain, min(len(items[0].responses), 3)
        turns.append((rank[subset], _place_in_draw(items[0]), items))
        rank[subset] += 1
    taken: set[str] = set()
    for _, _, items in sorted(turns, key=lambda turn: turn[:2]):
        if len(taken) + len(items) > limit:
            if not taken:
                raise ValueError(
                    f'benchmark {benchmark.name!r}: field "limit": expected at least {len(items)}, '
                    f"the items of one prompt, got {limit}"
                )
            break
        taken |= {record.id for record in items}
    records = tuple(record for record in benchmark.records if record.id in taken)
    every = len(benchmark.records)
    return benchmark._replace(
        records=records,
        counts=benchmark.counts
        | {"items": len(records), "items left out by limit": every - len(records)}
        | _oddities(records),
        protocol=f"A first look at {len(records)} of {every} items, spread over the subsets. "
        + benchmark.protocol,
    )


def _place_in_draw(record: Record) -> bytes:
    return seeded_digest("first_look", 0, record.id)


def _oddities(records: Sequence[Record]) -> dict[str, int]:
    return {
        "items with a repeated response": sum(
            len(set(record.responses)) < len(record.responses) for record in records
        ),
        "items with an empty response": sum(
            not all(map(str.strip, record.responses)) for record in records
        ),
    }


def means(
    records: Sequence[Record], values: Mapping[str, float], group: Callable[[Record], str | None]
) -> Figures:
    """Returns {group: mean value of its items}, in order of appearance.

    A record of group None is left out.
    """
    grouped: dict[str, list[float]] = {}
    for record in records:
        name = group(record)
        if name is not None:
            grouped.setdefault(name, []).append(values[record.id])
    return {name: sum(items) / len(items) for name, items in grouped.items()}


def mean_of(figures: Mapping[str, float], names: Iterable[str]) -> float | None:
    """Returns the plain mean of the named figures; None unless all are there."""
    names = list(names)
    return (
        sum(figures[name] for name in names) / len(names)
        if names and all(name in figures for name in names)
        else None
    )


def named(prefix: str, figures: Mapping[str, float]) -> Figures:
    """Puts a prefix before the name of each figure: "prefix/name"."""
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def with_overall(figures: Figures, overall: float | None, name: str = "overall") -> Figures:
    """Puts `name` before the figures, where it can be computed."""
    return figures if overall is None else {name: overall, **figures}


def summarize_domains(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages over all items, and over each domain."""
    subsets = named("subset", means(records, credit, lambda record: record.domain or None))
    return with_overall(
        subsets, sum(credit[record.id] for record in records) / len(records) if records else None
    )

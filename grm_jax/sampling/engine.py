"""Draws completions from a queue: a row that ends makes room for the next one at once.

The engine decodes `rows` at a time, in chunks of steps. Between two chunks the rows that are done
leave, the next samples take their places, and prompts that wait are prefilled. Rows lie in groups
of `fold`; the rows of a group read one prompt, and take further samples of it as long as any wait.
On the CPU a group is one row: rows of a prompt read it together wherever they lie (`shared`), and
none waits for another. Once nothing waits, the rows alive move together into ever fewer.
A prompt is prefilled once, whichever requests and samples it carries; the front of a template, with
which all prompts of a queue begin, once for all of them. What has been read lies in a pool of
prompts, of which the one that was used longest ago makes room first.

Which row a sample gets, and beside which others, changes nothing: its tokens depend on (seed, item
id, sample index, step) alone. `sampler.sample` is the slow twin.

A call of a program returns before it has run. `collect` reads the chunk that runs, hands the device
the next one, and only then returns what is complete: whoever parses it works beside the device.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from grm_jax.parallel.processes import to_host
from grm_jax.sampling.chunks import Drawing, make_programs
from grm_jax.sampling.requests import NO_LIMIT, Completion, Request, check_logits, check_request
from grm_jax.sampling.sampler import sample_key
from grm_jax.sampling.shapes import places, prefill_rows, shape_of, shapes_of

__all__ = ["Counts", "Drawing", "Engine", "batch_engine", "draw"]

SMALL, LARGE = 256, 4  # completions of SMALL tokens or more begin in a cache of a LARGE-th of them


@dataclasses.dataclass(eq=False)
class _Sample:
    """One completion that is asked for: number `place` of request `ticket`."""

    ticket: int
    place: int


@dataclasses.dataclass(eq=False)
class _Prompt:
    """A prompt behind the front, what waits upon it, and its entry in each share's pool."""

    ids: tuple[int, ...]
    waiting: collections.deque = dataclasses.field(default_factory=collections.deque)
    entries: dict[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Counts:
    """Counts tokens. needed: of different prompts, the front once, and of completions.

    prefilled and decoded are those computed, with padding, dummies and rows that are done.
    """

    prefilled: int = 0
    decoded: int = 0
    needed_prefill: int = 0
    needed_decode: int = 0


class Engine:
    """Keeps a queue of requests over one set of weights: `submit`, then `collect` until empty.

    buckets: widths that prompts, behind the front, are padded to; each compiles once.
    groups, fold: rows of each share of the devices: groups that read one prompt, rows of a group.
    entries: prompts in each share's pool; 0: as many as groups. Fewer leave rows empty.
    front: token ids that the prompt of every request begins with; computed once, here.
    whole: whether completions have all their room from the start, and do not grow into it.
    shared: rows that at most read a prompt in one product where it has groups of one row: they then
        lie in any order, and none waits for another.
    """

    def __init__(
        self,
        drawing: Drawing,
        params: dict,
        seed: int,
        buckets: Sequence[int],
        groups: int,
        fold: int = 1,
        entries: int = 0,
        front: Sequence[int] = (),
        whole: bool = False,
        shared: int = 1,
    ):
        self.drawing, self.seed, self.buckets = drawing, seed, sorted(buckets)
        self.shapes, self.entries = shapes_of(groups, fold), entries or groups
        self.shared = shared if fold == 1 else 1
        self.programs = make_programs(drawing)
        self.parts = self.programs.parts
        self.weights = self.programs.weights(params)
        self.front_ids, self.front = tuple(front), None
        self.counts = Counts()
        if front:
            self.front = self.programs.front(self.weights, np.asarray(front, np.int32))
            self.counts.prefilled += len(front)
            self.counts.needed_prefill += len(front)
        pool = self.programs.pool(self.entries, self.buckets[-1])()
        self.pool = self.programs.beside(self.weights, pool)
        C = drawing.scfg.max_new_tokens
        self.slots = -(-C // LARGE) if C >= SMALL and not whole else C
        state = self.programs.rows(groups * fold, self.slots)()
        self.state = self.programs.beside(self.weights, state)
        self.running = False
        self.tickets = 0
        self.watched: dict[int, Callable[[int, np.ndarray], object]] = {}
        self.requests: dict[int, Request] = {}
        self.drawn: dict[int, dict[int, Completion]] = {}
        self.queue: dict[tuple[int, ...], _Prompt] = {}  # those upon which samples wait
        self.known: dict[tuple[int, ...], _Prompt] = {}  # those and the ones in a pool
        self.used = [collections.OrderedDict[int, _Prompt]() for _ in range(self.parts)]
        self._clear(groups, fold)

    def _clear(self, groups: int, fold: int) -> None:
        D, B = self.parts, groups * fold
        self.groups, self.fold = groups, fold
        self.owner: list[list[_Sample | None]] = [[None] * B for _ in range(D)]
        self.reads: list[list[_Prompt | None]] = [[None] * groups for _ in range(D)]
        self.rows = {
            "entry": np.zeros((D, groups), np.int32),
            "keys": np.zeros((D, B, 2), np.uint32),
            "prompt_length": np.zeros((D, B), np.int32),
            "limit": np.zeros((D, B), np.int32),
            "begun": np.zeros((D, B), np.int32),
            "fresh": np.zeros((D, B), bool),
            "waits": np.zeros((D, groups), bool),
            "enough": np.zeros(D, np.int32),
        }
        if self.drawing.temperatures:
            self.rows["temperature"] = np.zeros((D, B), np.float32)
        self.length = np.zeros((D, B), np.int32)

    def submit(self, request: Request) -> int:
        """Puts a request at the end of the queue; returns its ticket."""
        front = len(self.front_ids)
        check_request(request, front + self.buckets[-1])
        ids = tuple(int(i) for i in request.prompt_ids)
        if ids[:front] != self.front_ids or len(ids) == front:
            raise ValueError(
                f"item {request.item_id}: its prompt does not begin with the front of {front} "
                "tokens that this engine has computed"
            )
        ids = ids[front:]
        ticket, self.tickets = self.tickets, self.tickets + 1
        self.requests[ticket], self.drawn[ticket] = request, {}
        prompt = self.known.get(ids)
        if prompt is None:
            prompt = self.known[ids] = _Prompt(ids)
        prompt.waiting.extend(_Sample(ticket, j) for j in range(len(request.samples)))
        self.queue[ids] = prompt
        return ticket

    def cancel(self, ticket: int) -> None:
        """Takes a request back: its completions are not drawn to the end, and not returned."""
        if self.requests.pop(ticket, None) is None:
            return
        del self.drawn[ticket]
        for prompt in list(self.queue.values()):
            prompt.waiting = collections.deque(s for s in prompt.waiting if s.ticket != ticket)
            if not prompt.waiting:
                del self.queue[prompt.ids]
                if not prompt.entries:
                    del self.known[prompt.ids]
        for d, owners in enumerate(self.owner):
            for b, sample in enumerate(owners):
                if sample is not None and sample.ticket == ticket:
                    owners[b], self.rows["limit"][d, b] = None, 0

    def watch(self, ticket: int, see: Callable[[int, np.ndarray], object]) -> None:
        """Shows what a request's samples are so far: `see(place, tokens)`, behind each chunk."""
        self.watched[ticket] = see

    def _show(self) -> None:
        """Shows those who watch a request what it has been given."""
        self.watched = {t: see for t, see in self.watched.items() if t in self.requests}
        if not self.watched:
            return
        tokens = to_host(self.state["tokens"])
        for d, owners in enumerate(self.owner):
            for b, sample in enumerate(owners):
                if sample is not None and sample.ticket in self.watched:
                    see = self.watched[sample.ticket]
                    see(sample.place, tokens[d, b, : self.length[d, b]].copy())

    @property
    def pending(self) -> int:
        """Counts the requests that are not complete."""
        return len(self.requests)

    def collect(self) -> list[tuple[int, list[Completion]]]:
        """Returns requests that are complete: (ticket, its completions), sample by sample.

        Waits for one at least, unless nothing is asked for. The device goes on with the others
        meanwhile. Raises ValueError where logits were not finite.
        """
        while True:
            complete = self.step()
            if complete or not self.requests:
                return complete

    def step(self) -> list[tuple[int, list[Completion]]]:
        """Waits for the chunk that runs, hands the device the next one; returns what is complete.

        That may be nothing: `collect` for those who have something to do between two chunks.
        """
        complete = self._read() if self.running else []
        if self.requests:
            self._fill()
            self._dispatch()
        return complete

    def _read(self) -> list[tuple[int, list[Completion]]]:
        """Waits for the chunk that runs, and frees the rows that are done."""
        self.running = False
        read = {name: to_host(self.state[name]) for name in ("done", "length", "steps")}
        self.length = read["length"].copy()
        self.counts.decoded += int(read["steps"].sum()) * self.groups * self.fold
        self._show()
        ended = [
            (d, b)
            for d, owners in enumerate(self.owner)
            for b, sample in enumerate(owners)
            if sample is not None and read["done"][d, b]
        ]
        if not ended:
            return []
        read |= {name: to_host(self.state[name]) for name in ("tokens", "logp", "finished")}
        complete = []
        for d, b in ended:
            sample, self.owner[d][b] = self.owner[d][b], None
            assert sample is not None
            request, n = self.requests[sample.ticket], int(read["length"][d, b])
            logp = read["logp"][d, b, :n].copy()
            check_logits(request, request.samples[sample.place], logp)
            self.counts.needed_decode += n
            drawn = self.drawn[sample.ticket]
            drawn[sample.place] = Completion(
                request.item_id,
                request.samples[sample.place],
                read["tokens"][d, b, :n].copy(),
                logp,
                bool(read["finished"][d, b]),
            )
            if len(drawn) == len(request.samples):
                complete.append((sample.ticket, [drawn[j] for j in range(len(drawn))]))
                del self.requests[sample.ticket], self.drawn[sample.ticket]
        return complete

    def _fill(self) -> None:
        """Gives free rows to samples that wait, and prefills the prompts that these need."""
        self._resize()
        self.rows["fresh"][:] = False
        fresh: list[tuple[int, int, _Prompt]] = []
        for g in range(self.groups):
            for d in range(self.parts):
                prompt = self.reads[d][g]
                if prompt is not None and not self._seat(d, g, prompt):
                    self.reads[d][g] = None
        for g in range(self.groups):
            for d in range(self.parts):
                prompt = self._next(d) if self.reads[d][g] is None else None
                if prompt is None or not self._fits(d, prompt):
                    continue
                self.reads[d][g] = prompt
                if d not in prompt.entries:
                    self._admit(d, prompt)
                    fresh.append((d, prompt.entries[d], prompt))
                self.used[d].move_to_end(prompt.entries[d])
                self.rows["entry"][d, g] = prompt.entries[d]
                self._seat(d, g, prompt)
        self._prefill(fresh)
        for d in range(self.parts):
            for g, prompt in enumerate(self.reads[d]):
                self.rows["waits"][d, g] = prompt is not None and bool(prompt.waiting)

    def _seat(self, d: int, g: int, prompt: _Prompt) -> bool:
        """Gives the free rows of a group to samples of the prompt that it reads.

        Returns whether it has any.
        """
        at = range(g * self.fold, (g + 1) * self.fold)
        for b in at:
            if self.owner[d][b] is not None or not prompt.waiting:
                continue
            sample = self.owner[d][b] = prompt.waiting.popleft()
            request = self.requests[sample.ticket]
            limit = NO_LIMIT if request.limits is None else request.limits[sample.place]
            name = request.samples[sample.place]
            seed = self.seed if request.seed is None else request.seed
            self.rows["keys"][d, b] = sample_key(seed, request.item_id, name)
            if self.drawing.temperatures:
                own = request.temperature
                own = self.drawing.scfg.temperature if own is None else own
                self.rows["temperature"][d, b] = own
            self.rows["prompt_length"][d, b] = len(self.front_ids) + len(prompt.ids)
            self.rows["limit"][d, b] = min(limit, self.drawing.scfg.max_new_tokens)
            self.rows["begun"][d, b] = request.begun
            self.rows["fresh"][d, b], self.length[d, b] = True, 0
        if not prompt.waiting:
            self.queue.pop(prompt.ids, None)
        return any(self.owner[d][b] is not None for b in at)

    def _next(self, d: int) -> _Prompt | None:
        """Chooses what a free group reads: the first prompt that waits and is in its pool already
        or in none, else the first of all.
        """
        for prompt in self.queue.values():
            if d in prompt.entries or not prompt.entries:
                return prompt
        return next(iter(self.queue.values()), None)

    def _fits(self, d: int, prompt: _Prompt) -> bool:
        """Whether one more group may read this prompt."""
        reads = [(p, g) for g, p in enumerate(self.reads[d]) if p is not None] + [(prompt, -1)]
        if len({p for p, _ in reads}) > self.entries:
            return False
        return not self._shares() or self._holds(self.shapes[0], reads)

    def _shares(self) -> bool:
        """Whether rows read prompts in any order now: all of them, and not the last ones alive."""
        return self.shared > 1 and self.groups == self.shapes[0][0]

    def _holds(self, shape: tuple[int, int], reads: Iterable[tuple[_Prompt | None, int]]) -> bool:
        """Whether a shape has room for rows that read these prompts: (prompt, row)."""
        groups, fold = shape
        if self.shared > 1 and shape == self.shapes[0]:
            groups, fold = places(groups, self.shared), self.shared
        return len(_grouped(reads, fold)) <= groups

    def _admit(self, d: int, prompt: _Prompt) -> None:
        """Finds an entry of a share's pool: a free one, else that used longest ago."""
        used = self.used[d]
        if len(used) < self.entries:
            entry = len(used)
        else:
            read = {p.entries[d] for p in self.reads[d] if p is not None and d in p.entries}
            entry = next(e for e in used if e not in read)
            old = used.pop(entry)
            del old.entries[d]
            if not old.entries and not old.waiting:
                self.known.pop(old.ids, None)
        used[entry] = prompt
        prompt.entries[d] = entry

    def _prefill(self, fresh: list[tuple[int, int, _Prompt]]) -> None:
        by_width: dict[int, list[list[tuple[int, _Prompt]]]] = {}
        for d, entry, prompt in fresh:
            width = self._width(len(prompt.ids))
            shares_of = by_width.setdefault(width, [[] for _ in range(self.parts)])
            shares_of[d].append((entry, prompt))
            self.counts.needed_prefill += len(prompt.ids)
        for width, asked in sorted(by_width.items()):
            p = prefill_rows(width, self.shapes[0][0])
            for start in range(0, max(map(len, asked)), p):
                prompts = np.zeros((self.parts, p, width), np.int32)
                lengths = np.zeros((self.parts, p), np.int32)
                entries = np.full((self.parts, p), self.entries, np.int32)
                for d, prompts_of in enumerate(asked):
                    for i, (entry, prompt) in enumerate(prompts_of[start : start + p]):
                        prompts[d, i, : len(prompt.ids)] = prompt.ids
                        lengths[d, i], entries[d, i] = len(prompt.ids), entry
                self.pool = self.programs.prefill(len(self.front_ids))(
                    self.weights,
                    self.front,
                    self.pool,
                    *self.programs.place([prompts, lengths, entries]),
                )
                self.counts.prefilled += self.parts * p * width

    def _width(self, length: int) -> int:
        return next(width for width in self.buckets if width >= length)

    def _resize(self) -> None:
        """Goes on in half of the rows, or in half of these, once what is alive fits there and
        nothing waits (`shapes_of`); goes back to all of them where something does.
        """
        alive = [
            [(self.reads[d][b // self.fold], b) for b, s in enumerate(owners) if s is not None]
            for d, owners in enumerate(self.owner)
        ]
        now = self.groups, self.fold
        shapes = self.shapes[:1] if self.queue else self.shapes[::-1]
        holding = (
            shape
            for shape in shapes
            if shape == now or all(self._holds(shape, reads) for reads in alive)
        )
        shape = next(holding, now)
        if shape == now:
            return
        groups, fold = shape
        owner, rows, length = self.owner, self.rows, self.length
        self._clear(groups, fold)
        index = np.full((self.parts, groups * fold), -1, np.int32)
        for d in range(self.parts):
            for g, (prompt, members) in enumerate(_grouped(alive[d], fold)):
                self.reads[d][g], self.rows["entry"][d, g] = prompt, prompt.entries[d]
                new = slice(g * fold, g * fold + len(members))
                index[d, new] = members
                self.owner[d][new] = [owner[d][b] for b in members]
                self.length[d, new] = length[d, members]
                for name in {
                    "keys",
                    "prompt_length",
                    "limit",
                    "begun",
                    "temperature",
                } & rows.keys():
                    self.rows[name][d, new] = rows[name][d, members]
        self.state = self.programs.take(self.state, self.programs.place(index))

    def _dispatch(self) -> None:
        """Starts the next chunk."""
        alive = np.array([[s is not None for s in owners] for owners in self.owner])
        longest = int(self.length[alive].max(initial=0)) + self.drawing.chunk
        C = self.drawing.scfg.max_new_tokens
        if self.slots < min(longest, C):
            self.slots = C
            self.state = self.programs.grow(C)(self.state)
        B = self.groups * self.fold
        fewer = max((g * f for g, f in self.shapes if g * f < B), default=0)
        enough = NO_LIMIT
        if self.parts > 1:
            pass  # one share that ended early would wait for the others
        elif self.queue:
            enough = max(1, B // 8)
        elif 0 < fewer < alive.sum():
            enough = int(alive.sum()) - fewer
            self.rows["waits"][:] = True  # for each row, not for each group
        self.rows["enough"][:] = enough
        width = max(len(p.ids) for reads in self.reads for p in reads if p is not None)
        rows = {name: x.copy() for name, x in self.rows.items()}
        self.state = self.programs.chunk(self._width(width))(
            self.weights,
            self.front,
            self.pool,
            self.state,
            self.programs.place(rows | (self._seating() if self._shares() else {})),
        )
        self.running = True

    def _seating(self) -> dict[str, np.ndarray]:
        """Says who reads which prompt where rows lie in any order: see `chunks.decode_chunk`."""
        D, f, g = self.parts, self.shared, places(self.groups, self.shared)
        said = {
            "entry": np.zeros((D, g), np.int32),
            "row": np.zeros((D, g, f), np.int32),
            "place": np.zeros((D, self.groups), np.int32),
        }
        for d, owners in enumerate(self.owner):
            reads = [(self.reads[d][b], b) for b, s in enumerate(owners) if s is not None]
            for i, (prompt, members) in enumerate(_grouped(reads, f)):
                said["entry"][d, i] = prompt.entries[d]
                said["row"][d, i, : len(members)] = members
                said["place"][d, members] = i * f + np.arange(len(members))
        return said


def _grouped(rows: Iterable[tuple[_Prompt | None, int]], fold: int) -> list[tuple]:
    """Puts rows that read one prompt together, `fold` of them at most: [(prompt, rows)]."""
    by_prompt: dict = {}
    for prompt, row in rows:
        by_prompt.setdefault(prompt, []).append(row)
    return [
        (prompt, members[i : i + fold])
        for prompt, members in by_prompt.items()
        for i in range(0, len(members), fold)
    ]


def draw(
    drawing: Drawing,
    params: dict,
    requests: Sequence[Request],
    seed: int,
    buckets: Sequence[int],
    rows: int,
    counts: Callable[[Counts], None] = lambda counts: None,
) -> Iterator[tuple[list[int], list[Completion]]]:
    """Draws all completions; see `rollout.generate`. A request is yielded once it is complete.

    Requests that begin with the same front are drawn together by an engine of their own, in turn,
    and of one turn short prompts first. `counts` is called with the engine's whenever it has
    collected something.
    """
    widths = sorted(buckets)
    by_front: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        check_request(request, widths[-1])
        by_front.setdefault(tuple(request.prompt_ids[: request.front]), []).append(index)
    for front, members in by_front.items():
        members.sort(key=lambda i: (requests[i].turn, len(requests[i].prompt_ids)))
        engine = batch_engine(
            drawing, params, [requests[index] for index in members], seed, widths, rows, front
        )
        for index in members:
            engine.submit(requests[index])
        while engine.pending:
            complete = engine.collect()
            counts(engine.counts)
            yield (
                [members[ticket] for ticket, _ in complete],
                [completion for _, completions in complete for completion in completions],
            )
        del engine  # its pool, before the next one's


def batch_engine(
    drawing: Drawing,
    params: dict,
    requests: Iterable[Request],
    seed: int,
    buckets: Sequence[int],
    rows: int,
    front: Sequence[int] = (),
) -> Engine:
    """Makes an engine whose shapes suit these requests; none of them is submitted yet."""
    samples: dict[tuple[int, ...], int] = {}
    for request in requests:
        ids = tuple(request.prompt_ids)
        samples[ids] = samples.get(ids, 0) + len(request.samples)
    longest = max(map(len, samples)) - len(front)
    width = next(width for width in sorted(buckets) if width >= longest)
    widths = [bucket for bucket in sorted(buckets) if bucket <= width]
    parts = make_programs(drawing).parts
    total, divisor = sum(samples.values()), math.gcd(*samples.values())
    groups, fold, entries, shared = shape_of(
        drawing, parts, len(samples), total, divisor, rows, width
    )
    return Engine(drawing, params, seed, widths, groups, fold, entries, front, shared=shared)

"""Asks a reward server for more than it can give, and checks every answer.

    python -m speed.serving [--minutes=10] [--times=4] [--queue=512]

Starts `grm serve --model tiny` with nothing compiled, and once more; then asks the second one about
records of the checkable world, first as lists (/v1/judge), then response by response (/get_reward,
collected). `minutes` of too much are shared by the two. The clients do as the adapters: keys for
idempotency, waits as long as Retry-After says and up to a quarter longer, `tries` in all. Prints a
line of JSON for each case:

    first_verdict_s     from the start of the process; ready_s, its part up to /readyz
    capacity_per_s      lists a second, of `clients` that ask again at once
    alone, busy, over   p50, p95, p99 in seconds of one client, of these, and of `times` as many
                        lists as the capacity, which arrive as they come (Poisson)
    sent                lists of the last, by what came of them: answered; partly (some samples were
                        refused, the others judged without them); refused, 429 to the last; wrong:
                        not what the library says of the same record; lost: no answer
    doubled             lists that were drawn more often than they were answered
    again               answers to calls that had been told to come back; early, of 429: without a
                        time to come back at
    megabytes           of the server, mean of the first and of the last third, and the most
    files               that it has open, nearly all of them connections, likewise
    client_cpu          cores that this script took beside the server
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import aiohttp
import httpx

import grm_jax
from grm_jax.data.world import make_records
from grm_jax.serving.scalars import scalars

RECORDS, K = 64, 4
CALL_S = 300  # that a call may take until its answer is lost


class Unexpected(Exception):
    """A status that no call of these should get."""


class Outcome(NamedTuple):
    """What came of one list. calls: (replies, whether any was told to come back), of each part."""

    kind: str
    seconds: float
    record: int
    replies: Sequence[dict | None] = ()


class Library:
    """Says what is right, of all responses to a record and of some of them."""

    def __init__(self) -> None:
        self.judge = grm_jax.load("tiny")
        # in the order of their texts, in which a group stands whoever came first
        self.records = [
            {
                "conversation": [{"role": turn.role, "content": turn.content} for turn in of],
                "responses": sorted(responses),
            }
            for of, responses in (
                (record.conversation, record.responses)
                for record in make_records("test", RECORDS, 1)
            )
        ]
        self.verdicts = list(self.judge.many(self.records, k=K, progress=False))
        self.known: dict[tuple, list | None] = {}

    def is_right(self, record: int, reply: dict[str, Any]) -> bool:
        """Whether /v1/judge said of a record what the library does, text for text."""
        verdict = self.verdicts[record]
        said = [(j["text"], j["scores"], j["failure"], j["kept"]) for j in reply["judgments"]]
        texts = [
            (j.text, None if j.scores is None else list(j.scores), j.failure, j.kept)
            for j in verdict.judgments
        ]
        scores = None if verdict.scores is None else list(verdict.scores)
        return (reply["scores"], reply["best"], said) == (scores, verdict.best, texts)

    def numbers(self, record: int, members: tuple[int, ...]) -> list[float] | None:
        """Returns the number of each of these responses, judged together."""
        if (record, members) not in self.known:
            asked = self.records[record]
            responses = [asked["responses"][i] for i in members]
            verdict = self.verdicts[record]
            if len(responses) < len(asked["responses"]):
                verdict = self.judge(asked["conversation"], responses, k=K)
            self.known[record, members] = scalars(verdict, "mean", len(responses))[0]
        return self.known[record, members]

    def may_be(self, record: int, response: int, reply: dict[str, Any]) -> bool:
        """Whether /get_reward said what a group of as many members, with this one, gives."""
        value, size = reply["rewards"][0], int(reply["extra_logs"]["grm_members"][0])
        n = len(self.records[record]["responses"])
        groups = [g for g in itertools.combinations(range(n), size) if response in g]
        if reply["failures"][0] == "alone" or size == 1:
            return value is None
        found = [(g, self.numbers(record, g)) for g in groups]
        return any(value == (None if x is None else x[g.index(response)]) for g, x in found)


class Load:
    """Asks one server in one way, and keeps what came of it."""

    def __init__(
        self, client: aiohttp.ClientSession, library: Library, collected: bool, tries: int
    ):
        self.client, self.library, self.collected, self.tries = client, library, collected, tries
        self.statuses: collections.Counter[int] = collections.Counter()
        self.again = self.early = 0
        self.over = asyncio.Event()  # nobody comes back any more

    async def call(self, path: str, body: dict) -> dict | None:
        """One call, again as it is told; None where it is refused to the last."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        for attempt in range(self.tries):
            async with self.client.post(path, json=body, headers=headers) as reply:
                self.statuses[reply.status] += 1
                if reply.status not in (200, 429):
                    raise Unexpected(f"{reply.status} {(await reply.text())[:300]}")
                if reply.status == 200:
                    self.again += attempt > 0
                    return await reply.json()
                told = reply.headers.get("Retry-After", "")
            self.early += not told.isdigit()
            if self.over.is_set() or attempt == self.tries - 1:
                return None
            with contextlib.suppress(TimeoutError):
                wait = float(told or 1) * random.uniform(1, 1.25)
                await asyncio.wait_for(self.over.wait(), wait)
                return None
        return None

    async def one(self, number: int) -> Outcome:
        """Asks for one list."""
        index, began = number % RECORDS, time.monotonic()
        record, about = self.library.records[index], {"k": K}
        if self.collected:
            size = len(record["responses"])
            text = record["conversation"][0]["content"]
            about |= {"group": f"{number} {began}", "group_size": size, "prompts": [text]}
            calls = [
                self.call("/get_reward", about | {"query": [text + response]})
                for response in record["responses"]
            ]
        else:
            calls = [self.call("/v1/judge", record | about)]
        try:
            replies = await asyncio.gather(*calls)
        except Unexpected as error:
            print(error, file=sys.stderr)
            return Outcome("wrong", time.monotonic() - began, index)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            print(repr(error), file=sys.stderr)
            return Outcome("lost", time.monotonic() - began, index)
        kind = "refused" if replies == [None] * len(replies) else "answered"
        return Outcome(kind, time.monotonic() - began, index, replies)

    def checked(self, outcome: Outcome) -> str:
        """Says what came of a list, of which every answer is looked at."""
        if outcome.kind != "answered":
            return outcome.kind
        if not self.collected:
            right = self.library.is_right(outcome.record, outcome.replies[0] or {})
            return "answered" if right else "wrong"
        there = [(i, reply) for i, reply in enumerate(outcome.replies) if reply is not None]
        if not all(self.library.may_be(outcome.record, i, reply) for i, reply in there):
            return "wrong"
        size = len(outcome.replies)
        whole = [int(reply["extra_logs"]["grm_members"][0]) for _, reply in there] == [size] * size
        return "answered" if whole else "partly"

    def verdicts(self, outcomes: Sequence[Outcome]) -> float:
        """Counts the verdicts that were needed for these answers."""
        replies = [r for outcome in outcomes for r in outcome.replies if r is not None]
        if not self.collected:
            return len(replies)
        judged = [r for r in replies if r["failures"][0] != "alone"]
        return round(sum(1 / r["extra_logs"]["grm_members"][0] for r in judged), 6)

    async def again_and_again(self, clients: int, seconds: float, first: int) -> list[Outcome]:
        """Lets clients ask again as soon as they are answered."""
        end, found = time.monotonic() + seconds, []

        async def client(number: int) -> None:
            while time.monotonic() < end:
                found.append(await self.one(number))
                number += clients

        await asyncio.gather(*(client(first + i) for i in range(clients)))
        return found

    async def arriving(self, per_s: float, seconds: float) -> list[Outcome]:
        """Lets lists arrive, whatever becomes of those before. A machine too slow to send them all
        in time sends fewer.
        """
        began, tasks = time.monotonic(), []
        due, end = began, began + seconds
        while (due := due + random.expovariate(per_s)) < end and time.monotonic() < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self.one(len(tasks))))
        self.over.set()
        return await asyncio.gather(*tasks)

    async def drawn(self) -> float:
        """Samples that the server has drawn so far."""
        async with self.client.get("/metrics") as reply:
            text = await reply.text()
        (value,) = re.findall(r"^grm_samples_total (\S+)$", text, re.MULTILINE)
        return float(value)


def percentiles(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """Returns p50, p95 and p99 of the seconds of those that were answered."""
    seconds = sorted(outcome.seconds for outcome in outcomes if outcome.kind == "answered")
    if not seconds:
        return None
    return {f"p{p}": round(seconds[(len(seconds) - 1) * p // 100], 3) for p in (50, 95, 99)}


def megabytes(pid: int) -> float:
    """Reads what a process holds in memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (size,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(size) / 1024


def open_files(pid: int) -> int:
    """Counts the files and connections that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def thirds(values: Sequence[float]) -> list[int]:
    """Returns the mean of the first and of the last third, and the most."""
    third = max(1, len(values) // 3)
    return [round(sum(of) / third) for of in (values[:third], values[-third:])] + [
        round(max(values))
    ]


async def measure(url: str, pid: int, library: Library, collected: bool, args) -> dict[str, Any]:
    """Measures one way of asking."""
    of = aiohttp.TCPConnector(limit=0)
    wait = aiohttp.ClientTimeout(CALL_S)
    async with aiohttp.ClientSession(url, connector=of, timeout=wait) as client:
        return await _measure(Load(client, library, collected, args.tries), pid, args)


async def _measure(load: Load, pid: int, args) -> dict[str, Any]:
    memory, files = [], []
    alone = await load.again_and_again(1, args.warm_s / 3, 0)
    began = time.monotonic()
    busy = await load.again_and_again(args.clients, args.warm_s, len(alone))
    capacity = len(busy) / (time.monotonic() - began)
    drawn, cpu = await load.drawn(), time.process_time()
    load.statuses.clear()

    async def watch() -> None:
        while True:
            memory.append(megabytes(pid))
            files.append(open_files(pid))
            await asyncio.sleep(1)

    watching, began = asyncio.create_task(watch()), time.monotonic()
    over = await load.arriving(args.times * capacity, args.minutes * 60 / 2)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    watching.cancel()
    drawn = await load.drawn() - drawn
    kinds = collections.Counter(load.checked(outcome) for outcome in over)
    calm = collections.Counter(load.checked(outcome) for outcome in (*alone, *busy))
    return {
        "case": "serving",
        "collected": load.collected,
        "clients": args.clients,
        "k": K,
        "queue": args.queue,
        "capacity_per_s": round(capacity, 2),
        "times": args.times,
        "seconds": round(took, 1),
        "before": dict(calm),
        "sent": dict(kinds),
        "doubled": round(drawn / K - load.verdicts(over), 3),
        "again": load.again,
        "early": load.early,
        "statuses": dict(load.statuses),
        "alone": percentiles(alone),
        "busy": percentiles(busy),
        "over": percentiles(over),
        "megabytes": thirds(memory),
        "files": thirds(files),
        "client_cpu": round(cpu / took, 2),
    }


@contextlib.contextmanager
def serving(args, compiled: str) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Starts a server; gives its address, its process id, and the seconds that its start took."""
    command = [sys.executable, "-m", "grm_jax", "serve", "--port=0", f"--queue={args.queue}"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            while not (first := _first_line(log)):
                assert process.poll() is None and time.monotonic() < began + 600, "it did not start"
                time.sleep(0.02)
            url, took = json.loads(first)["url"], {}
            with httpx.Client(base_url=url, timeout=CALL_S) as client:
                while client.get("/readyz").status_code != 200:
                    assert process.poll() is None and time.monotonic() < began + 600
                    time.sleep(0.02)
                took["ready_s"] = round(time.monotonic() - began, 2)
                body = {"conversation": "Reverse: 1.fox 2.ant", "responses": ["1.ant 2.fox", "1"]}
                client.post("/v1/judge", json=body | {"k": K}).raise_for_status()
                took["first_verdict_s"] = round(time.monotonic() - began, 2)
            yield url, process.pid, took
            assert process.poll() is None, f"it ended with status {process.returncode}"
        finally:
            process.terminate()
            process.wait(60)


def _first_line(log) -> str:
    """The first line of a log that another process writes; "" until it is whole."""
    text = os.pread(log.fileno(), 10_000, 0).decode()
    return text.partition("\n")[0] if "\n" in text else ""


def main(args) -> None:
    library = Library()
    with tempfile.TemporaryDirectory() as compiled:
        with serving(args, compiled) as (_, _, took):
            print(json.dumps({"case": "start", "compiled_before": False} | took), flush=True)
        with serving(args, compiled) as (url, pid, took):
            print(json.dumps({"case": "start", "compiled_before": True} | took), flush=True)
            for collected in (False, True):
                line = asyncio.run(measure(url, pid, library, collected, args))
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("speed.serving")
    parser.add_argument("--minutes", type=float, default=10, help="of too much, in all")
    parser.add_argument("--warm-s", type=float, default=15, help="of measuring the capacity")
    parser.add_argument("--times", type=float, default=4, help="the capacity")
    parser.add_argument("--clients", type=int, default=32, help="that ask to measure it")
    parser.add_argument("--queue", type=int, default=512, help="samples, of the server")
    parser.add_argument("--tries", type=int, default=3)
    main(parser.parse_args())

"""Asks a reward server for more than it can give, and checks every answer.

    grm serve --port 8000 &
    .venv/bin/python -m speed.serving --url=http://127.0.0.1:8000 --pid=$! --seconds=600

First its capacity: lists a second of clients that ask again at once. Then `times` as many arrive,
as they come (Poisson), each waiting as long as a 429 says, `tries` times. Prints one JSON line for
whole lists (/v1/judge), and one for samples that come apart and are collected (/get_reward).

lost: no answer. wrong: not what the same question got before. refused: 429 to the last. seconds: of
those that were answered, from the first try on. megabytes: of the server, once a second.
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import time

import httpx

TASK = "Reverse the list: 1.fox 2.ant 3.hen"
RESPONSES = ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant", "1.fox 2.ant 3.hen", "1.ant 2.hen 3.fox"]
SEEDS, K, CLIENTS = 50, 4, 32


def asks(collected: bool, seed: int, group: str) -> list[tuple[str, dict]]:
    """Returns the (path, body) of each call that one list needs."""
    if not collected:
        body = {"conversation": TASK, "responses": RESPONSES, "k": K, "seed": seed}
        return [("/v1/judge", body | {"judgments": False})]
    about = {"k": K, "seed": seed, "group": group, "group_size": len(RESPONSES), "prompts": [TASK]}
    return [("/get_reward", about | {"query": [TASK + response]}) for response in RESPONSES]


def answer_of(reply: dict):
    """What a reply says, without what differs from one to the next."""
    return reply["scores"] if "best" in reply else (reply["rewards"], reply["failures"])


async def call(client, path, body, tries, counts):
    """One call, again as often as it is told to come back; None where it is refused to the last."""
    for _ in range(tries):
        reply = await client.post(path, json=body)
        counts[reply.status_code] += 1
        if reply.status_code != 429:
            return reply.json() if reply.status_code == 200 else None
        await asyncio.sleep(float(reply.headers["Retry-After"]) * random.uniform(1, 1.2))
    return None


async def measure(client, collected: bool, args, memory: list[float]) -> dict:
    """Measures one way of asking."""
    expected, capacity, counts = {}, 0, collections.Counter()
    for seed in range(SEEDS):
        calls = asks(collected, seed, f"first {seed}")
        replies = await asyncio.gather(*(call(client, *one, 100, counts) for one in calls))
        expected[seed] = [answer_of(reply) for reply in replies]

    async def one(number: int, tries: int, found: list):
        seed, began = number % SEEDS, time.monotonic()
        group = f"{time.monotonic_ns()} {number}"
        try:
            replies = await asyncio.gather(
                *(call(client, *ask, tries, counts) for ask in asks(collected, seed, group))
            )
        except httpx.HTTPError as error:
            found.append(("lost", repr(error)))
            return
        if None in replies:
            found.append(("refused", None))
        elif [answer_of(reply) for reply in replies] != expected[seed]:
            # a list of which a member was refused is judged without it, and says so
            found.append(("wrong", replies))
        else:
            found.append(("answered", time.monotonic() - began))

    async def again(client_number: int, end: float, found: list):
        number = client_number
        while time.monotonic() < end:
            await one(number, 100, found)
            number += CLIENTS

    found: list = []
    began = time.monotonic()
    end = began + args.warm_s
    await asyncio.gather(*(again(i, end, found) for i in range(CLIENTS)))
    capacity = len(found) / (time.monotonic() - began)
    found, counts, tasks = [], collections.Counter(), []
    memory.clear()
    began = time.monotonic()
    while time.monotonic() - began < args.seconds:
        tasks.append(asyncio.create_task(one(len(tasks), args.tries, found)))
        await asyncio.sleep(random.expovariate(args.times * capacity))
    sent = len(tasks) / (time.monotonic() - began)
    await asyncio.gather(*tasks)
    seconds = sorted(x for kind, x in found if kind == "answered") or [float("nan")]
    kinds = collections.Counter(kind for kind, _ in found)
    return {
        "collected": collected,
        "capacity_per_s": round(capacity, 2),
        "sent_per_s": round(sent, 2),
        "lists": len(tasks),
        **{kind: kinds[kind] for kind in ("answered", "refused", "wrong", "lost")},
        "doubled": len(found) - len(tasks),
        "statuses": dict(counts),
        **{f"p{p}_s": round(seconds[(len(seconds) - 1) * p // 100], 3) for p in (50, 95, 99)},
        "megabytes": [round(x) for x in (memory[0], max(memory), memory[-1])] if memory else None,
    }


async def main(args) -> None:
    memory: list[float] = []

    async def watch():
        while True:
            status = pathlib.Path(f"/proc/{args.pid}/status").read_text(encoding="utf-8")
            (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
            memory.append(int(line.split()[1]) / 1024)
            await asyncio.sleep(1)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=args.url, timeout=600, limits=limits) as client:
        watching = asyncio.create_task(watch()) if args.pid else None
        for collected in (False, True):
            print(json.dumps(await measure(client, collected, args, memory)), flush=True)
        if watching is not None:
            watching.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, help="of the server, to see its memory")
    parser.add_argument("--seconds", type=float, default=600, help="of too much")
    parser.add_argument("--warm-s", type=float, default=20, help="of measuring the capacity")
    parser.add_argument("--times", type=float, default=4, help="the capacity")
    parser.add_argument("--tries", type=int, default=3)
    asyncio.run(main(parser.parse_args()))

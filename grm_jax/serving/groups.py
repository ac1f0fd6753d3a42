"""Collects samples that come one at a time, and judges those of one prompt together.

A trainer that asks for one reward at a time sends a prompt's samples apart. They make a group:
those of one conversation and, where a caller names one, of one key. A group is judged once

- it has all the members that were announced (`size`), or `members` of the settings;
- or `window_s` have passed since its last member came, where no size was announced;
- or `group_s` have passed since its first member came, where one was.

Whoever comes later begins another group. All members get the scores of one verdict, in which they
stand in an order of their own, so that it does not depend on who came first. Each of them is
answered by its own deadline, and the group is judged by the earliest of these.

A group is taken as a whole, or refused as a whole: its first member takes room in the queue for its
judgments. Where there is none, all of them are told to come back at one time, that they come
together again.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from grm_jax.serving.scalars import ALONE, scalars
from grm_jax.serving.service import DEADLINE, WRONG, Judged, Refused, Service, record_of

Ask = Callable[[], dict[str, Any]]
SLACK_S = 0.5  # that a member waits for the verdict of its group behind its deadline


class Scored(NamedTuple):
    """The number of one response, or None and why; the verdict, and where it stands in it."""

    value: float | None
    failure: str | None
    judged: Judged | None = None
    index: int = 0
    members: int = 1


class _Group:
    def __init__(
        self,
        name: tuple[str, str],
        conversation: Any,
        ask: Ask,
        scalar: str,
        room: contextlib.ExitStack,
    ):
        self.name, self.conversation, self.ask, self.scalar = name, conversation, ask, scalar
        self.room = room  # in the queue, until it is closed
        self.members: list[tuple[str, float, asyncio.Future[Scored]]] = []
        self.size: int | None = None
        self.began = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task | None = None

    def alive(self) -> list[tuple[str, float, asyncio.Future[Scored]]]:
        return [member for member in self.members if not member[2].done()]


class Groups:
    """Holds the groups of a service that wait for members."""

    def __init__(self, service: Service):
        self.service = service
        self.open: dict[tuple[str, str], _Group] = {}
        # those that were told to come back, and when, by `time.monotonic`
        self.refused: dict[tuple[str, str], float] = {}

    async def score_list(
        self,
        conversation: Any,
        responses: Sequence[str],
        ask: Ask,
        until: float,
        scalar: str,
        admitted: bool = False,
    ) -> list[Scored]:
        """Scores the responses to a conversation that are all there.

        ask: says how, of the weights that judge (`Service.how`). admitted: whether there is room
        for them in the queue already.
        """
        order = sorted(range(len(responses)), key=lambda i: responses[i])
        texts = [responses[i] for i in order]
        record = record_of({"conversation": conversation, "responses": texts})
        judged = await self.service.judge(record, ask(), until, admitted)
        values, failure = scalars(judged.verdict, scalar, len(texts))
        place = {i: at for at, i in enumerate(order)}
        return [
            Scored(
                None if values is None else values[place[i]], failure, judged, place[i], len(texts)
            )
            for i in range(len(texts))
        ]

    async def score(
        self,
        conversation: Any,
        response: str,
        ask: Ask,
        until: float,
        scalar: str,
        key: str = "",
        size: int | None = None,
    ) -> Scored:
        """Scores a sample in the group that it belongs to, once that is there.

        size: members of its group; None where that is not known. 1 is judged at once, by itself.
        """
        settings = self.service.settings
        most = min(settings.members, settings.responses)
        if size is not None and not 1 <= size <= most:
            raise Refused(422, WRONG, f"group_size: expected 1 to {most}")
        # what is wrong with it is said to whoever sent it, and not to its group
        record_of({"conversation": conversation, "responses": [response], "id": "member"})
        how = ask()
        asked = {name: str(how[name]) for name in sorted(how)}
        name = (key, json.dumps([conversation, asked, scalar]))
        group = self.open.get(name)
        if group is None:
            group = _Group(name, conversation, ask, scalar, self._room(name, how))
            self.open[name] = group
        future: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        group.members.append((response, until, future))
        group.size = size if group.size is None else min(group.size, size or group.size)
        self._arm(group, most)
        self.service.held += 1
        try:
            with self.service.waiting("the verdict on its group"):
                async with asyncio.timeout(max(0.0, until - time.monotonic()) + SLACK_S):
                    return await future
        except TimeoutError:
            return Scored(None, DEADLINE, members=len(group.members))
        finally:
            self.service.held -= 1
            future.cancel()
            if not group.alive():
                self._forget(group)

    def _room(self, name: tuple[str, str], how: dict[str, Any]) -> contextlib.ExitStack:
        """Takes room in the queue for a group. Raises Refused where there is none."""
        now, room = time.monotonic(), contextlib.ExitStack()
        while self.refused and (oldest := next(iter(self.refused.items())))[1] <= now:
            del self.refused[oldest[0]]
        again = self.refused.get(name, now)
        if again <= now:
            self.refused.pop(name, None)
            try:
                room.enter_context(self.service.admitted(len(how["samples"])))
                return room
            except Refused as error:
                if error.status != 429:
                    raise
                # clients that come up to a quarter late shall find each other
                longest = 2 * self.service.settings.group_s
                again = self.refused[name] = now + min(error.retry_after or 1, longest)
        message = "the queue is full; all samples of this group are to come back at one time"
        raise Refused(429, "queue_full", message, math.ceil(again - now))

    def _arm(self, group: _Group, most: int) -> None:
        """Judges a group that is full, else sets the time at which it is judged as it is."""
        if group.timer is not None:
            group.timer.cancel()
        settings, wait = self.service.settings, self.service.settings.window_s
        if group.size is not None:
            wait = max(0.0, group.began + settings.group_s - time.monotonic())
        if len(group.alive()) >= (group.size or most):
            wait = 0.0
            self.open.pop(group.name, None)  # full: whoever comes next begins another one
        group.timer = asyncio.get_running_loop().call_later(wait, self._close, group)

    def _close(self, group: _Group) -> None:
        if self.open.get(group.name) is group:
            del self.open[group.name]
        group.task = self.service.spawn(self._judge(group))

    def _forget(self, group: _Group) -> None:
        """Gives up a group for which nobody waits any more."""
        group.room.close()
        if group.timer is not None:
            group.timer.cancel()
        if self.open.get(group.name) is group:
            del self.open[group.name]
        if group.task is not None:
            group.task.cancel()

    async def _judge(self, group: _Group) -> None:
        members = group.alive()
        if not members:
            return
        announced = group.size is not None and group.size > 1
        try:
            if announced and len(members) == 1:
                # judged alone it would be measured by another scale than the others of its group
                scored = [Scored(None, ALONE)]
            else:
                scored = await self.score_list(
                    group.conversation,
                    [response for response, _, _ in members],
                    group.ask,
                    min(until for _, until, _ in members),
                    group.scalar,
                    admitted=True,
                )
        except Exception as error:
            for _, _, future in members:
                if not future.done():
                    future.set_exception(error)
            return
        finally:
            group.room.close()
        for (_, _, future), value in zip(members, scored, strict=True):
            if not future.done():
                future.set_result(value)

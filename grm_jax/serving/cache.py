"""Keeps verdicts in an SQLite file, by content and identity: the same question is drawn once.

The key is a digest of the record, of how it is asked, and of the judge's identity (weights,
tokenizer, templates, lengths), so that new weights never answer with old verdicts. A verdict with a
judgment that a deadline cut off is not kept. A file that fails is said in the log and costs no
request its answer.
"""

import asyncio
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import sqlite3
import time
from typing import Any

from grm_jax.judgment.records import Record, record_to_dict
from grm_jax.verdict import Judgment, Verdict

log = logging.getLogger(__name__)
BUSY_S = 5.0


class Cache:
    """A file of verdicts, which several servers may share. hits, misses, errors: so far.

    Raises ValueError for a file that is none.
    """

    def __init__(self, path: str):
        self.hits = self.misses = self.errors = 0
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "grm-cache")
        try:
            self.file = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
            self.file.execute("PRAGMA journal_mode=WAL")
            self.file.execute("PRAGMA synchronous=NORMAL")
            self.file.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT, made REAL)"
            )
            self.file.commit()
        except sqlite3.Error as error:
            raise ValueError(f"{path}: not a cache of verdicts: {error}") from None

    async def get(self, key: str) -> tuple[Verdict, int, int] | None:
        """Returns a verdict, its tokens of prompts, and those of completions; None for none."""
        found = await self._call("SELECT value FROM verdicts WHERE key = ?", (key,))
        if not found:
            self.misses += 1
            return None
        try:
            kept = _read(found[0][0])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._failed(error)  # of a damaged file, or of another version's
            return None
        self.hits += 1
        return kept

    async def put(self, key: str, verdict: Verdict, prompt_tokens: int, tokens: int) -> None:
        """Keeps a verdict, durably once this returns."""
        value = {
            "verdict": dataclasses.asdict(verdict),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
        }
        row = (key, json.dumps(value), time.time())
        await self._call("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", row)

    async def _call(self, statement: str, values: tuple) -> list[tuple]:
        def run() -> list[tuple]:
            with self.file:
                return self.file.execute(statement, values).fetchall()

        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, run)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return []

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        log.warning("the cache of verdicts failed: %s", error)

    def close(self) -> None:
        """Closes the file, behind what is being written."""
        self.thread.submit(self.file.close).result()
        self.thread.shutdown()


def _read(value: str) -> tuple[Verdict, int, int]:
    """What `get` returns, of a row."""
    fields = json.loads(value)
    judgments = tuple(
        Judgment(**{name: _tuples(value) for name, value in judgment.items()})
        for judgment in fields["verdict"].pop("judgments")
    )
    scores = fields["verdict"].pop("scores")
    scores = None if scores is None else tuple(scores)
    verdict = Verdict(**fields["verdict"], scores=scores, judgments=judgments)
    return verdict, fields["prompt_tokens"], fields["completion_tokens"]


def key_of(record: Record, asked: dict[str, Any]) -> str:
    """Digests a record, without its gold, and how it is asked."""
    fields = record_to_dict(record)
    fields.pop("rewards", None)
    text = json.dumps([fields, asked], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(of) for name, of in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

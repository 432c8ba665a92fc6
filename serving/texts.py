"""The path of texts: look up, run what is missing, store. As serving/pipeline.py, for small results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.planning import plan
from serving.cache import Cache, TextKeyParts, cache_key
from serving.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, InvalidTexts, Problem
from serving.pipeline import Admit, let_in
from serving.runners import ServedText, Terms
from serving.tasks import a_few_at_a_time, apart
from serving.telemetry import span
from serving.threads import run_to_its_end

CALL_CHARACTERS = 65_536  # of what is sent to a runner in one call
CALLS_IN_FLIGHT = 2  # of one request
# Of a text for each token that its model reads: what is behind them is no word of any language
CHARACTERS_A_TOKEN = 100
CHARACTERS_OF_TOKEN = 4  # of common English, by which tokens are guessed before a text is read

# A text, a pair (a query and a document for it), or token ids with the special ones
Text = str | tuple[str, str] | tuple[int, ...]


@dataclass(frozen=True)
class TextOptions:
    """prompt_name: of the model's own. truncate: cut off what is longer than `max_tokens` or the model's limit."""

    prompt_name: str | None = None
    truncate: bool = False
    max_tokens: int | None = None

    @property
    def form(self) -> dict[str, Any]:
        """As the runner is asked for it."""
        return {"prompt_name": self.prompt_name, "truncate": self.truncate, "max_length": self.max_tokens}


@dataclass(frozen=True)
class TextReport:
    """What became of the texts of a request, in order.

    vectors: (B, dim) float32. num_tokens: of each, as the model read it. devices: on which each was computed that
    was not in the cache. description: of the model, by its runner.
    """

    vectors: np.ndarray
    num_tokens: list[int]
    devices: dict[int, str]
    description: dict[str, Any]
    total_ms: float = 0.0


class TextPipeline:
    """Runs texts through a served model and the cache.

    Args:
        admit: as `Pipeline` has it; tokens are guessed from characters.
    """

    def __init__(self, cache: Cache, admit: Admit = let_in) -> None:
        self.cache = cache
        self._admit = admit

    async def run(
        self, served: ServedText, texts: Sequence[Text], options: TextOptions, terms: Terms
    ) -> TextReport:
        """The model's output for every text; equal ones are looked up and computed once.

        Raises:
            InvalidTexts: some cannot be read; each is named. The others are in the cache.
            InvalidRequest: the model has no such prompt.
            Overloaded, RunnerUnavailable, ModelNotLoaded, InferenceFailed, DeadlineExceeded
        """
        started = time.perf_counter()
        terms.ledger.begin(served.model.kind, served.model.name)
        misses: Sequence[Text] = ()
        try:
            async with asyncio.timeout_at(terms.deadline):
                await asyncio.sleep(0)  # a deadline that is over is noticed before anything is done
                request, description = await self._begin(served, texts, options)
                misses = await self._look_up(request, len(texts), terms)
                if misses:
                    await self._admit(terms, sum(map(_guessed_tokens, misses)))
                    await request.compute(misses, terms)
        except TimeoutError:
            raise DeadlineExceeded(f"the request took over {time.perf_counter() - started:.3g} seconds") from None
        finally:
            # Behind the deadline: a Redis that takes its time makes no answer late that is there
            if misses:
                with span("cache.store"):
                    await request.store(misses)
        report = request.report(description)
        return replace(report, total_ms=(time.perf_counter() - started) * 1e3)

    async def _begin(
        self, served: ServedText, texts: Sequence[Text], options: TextOptions
    ) -> tuple[_TextRequest, dict[str, Any]]:
        """The request, and what its runner says of itself."""
        description = await served.describe()
        facts = description["facts"]
        if options.prompt_name is not None and options.prompt_name not in facts["prompts"]:
            known = ", ".join(facts["prompts"]) or "none"
            raise InvalidRequest(f"prompt_name: {served.model.name} has {known}, not {options.prompt_name!r}")
        size = sum(map(_size, texts))

        def begin() -> _TextRequest:
            readable = _within(texts, facts["max_tokens"] * CHARACTERS_A_TOKEN, options.truncate)
            return _TextRequest(served, readable, options, description["precision"], self.cache)

        return await run_to_its_end(begin, size), description

    async def _look_up(self, request: _TextRequest, num_texts: int, terms: Terms) -> Sequence[Text]:
        """Those that the cache does not have."""
        with span("cache.lookup", {"pes.texts": num_texts}):
            misses = await request.look_up()
        num_hits = sum(text in request.rows for text in request.texts)
        self.cache.count(request.served.model.name, num_hits, num_texts - num_hits)
        terms.ledger.note_lookup(num_hits, num_texts - num_hits)
        return misses


class _TextRequest:
    """One request on its way through. Each different text has a key, and a row once it is known.

    What is kept of a text is the model's output and, behind it, the number of its tokens, which a hit tells too.
    """

    def __init__(
        self, served: ServedText, texts: Sequence[Text], options: TextOptions, precision: str, cache: Cache
    ) -> None:
        self.served, self.texts, self.options, self.precision, self.cache = (
            served,
            texts,
            options,
            precision,
            cache,
        )
        parts = TextKeyParts(
            *(served.model.name, served.version, precision),
            *(options.prompt_name, options.truncate, options.max_tokens),
        )
        self.keys = {text: cache_key(parts, json.dumps(text)) for text in texts}
        self.rows: dict[Text, np.ndarray] = {}
        self.unreadable: dict[Text, str] = {}
        self.failed: dict[Text, str] = {}
        self.devices: dict[Text, str] = {}
        self._has_right_keys = True

    async def look_up(self) -> list[Text]:
        """The different texts that the cache does not hold."""
        found = await self.cache.get_many(list(self.keys.values()))
        self.rows = {text: row for text, row in zip(self.keys, found, strict=True) if row is not None}
        return [text for text in self.keys if text not in self.rows]

    async def compute(self, misses: Sequence[Text], terms: Terms) -> None:
        """Call by call, a few at a time; the first goes alone: whether it is taken decides for all."""
        calls = _plan_calls(misses)
        admitted = replace(terms, is_admitted=True)

        await self._call(next(calls), terms)
        await a_few_at_a_time(calls, lambda call: self._call(call, admitted), CALLS_IN_FLIGHT)

    async def store(self, misses: Sequence[Text]) -> None:
        """What was computed, to the cache."""
        if self._has_right_keys:
            computed = {self.keys[text]: self.rows[text] for text in misses if text in self.rows}
            await apart(self.cache.put_many(computed))

    def report(self, description: dict[str, Any]) -> TextReport:
        """What became of every text.

        Raises:
            InvalidTexts: some could not be read.
            InferenceFailed: the model failed on one.
        """
        if self.unreadable:
            wrong = [(index, text) for index, text in enumerate(self.texts) if text in self.unreadable]
            raise InvalidTexts([Problem(index, self.unreadable[text], kind="text") for index, text in wrong])
        for index, text in enumerate(self.texts):
            if text in self.failed:
                raise InferenceFailed(f"text {index}: {self.failed[text]}")
        table = np.stack([self.rows[text] for text in self.texts])
        return TextReport(
            vectors=table[:, :-1],
            num_tokens=[int(count) for count in table[:, -1]],
            devices={i: self.devices[t] for i, t in enumerate(self.texts) if t in self.devices},
            description=description,
        )

    async def _call(self, texts: Sequence[Text], terms: Terms) -> None:
        reply = await self.served.runner.embed(list(texts), self.options.form, terms)
        if reply.precision != self.precision:
            # The runner was started anew on other hardware: its answers are right, the keys are not
            self.served.forget()
            self._has_right_keys = False
        start = 0
        for index, (text, length) in enumerate(zip(texts, reply.lengths, strict=True)):
            if index in reply.errors:
                errors = self.failed if reply.num_tokens[index] else self.unreadable
                errors[text] = reply.errors[index]
            else:
                self.rows[text] = np.append(reply.embeddings[start], np.float32(reply.num_tokens[index]))
            if (device := reply.devices[index]) is not None:
                self.devices[text] = device
            start += length


def _within(texts: Sequence[Text], limit: int, truncate: bool) -> list[Text]:
    """The texts, of which no part has more characters than that; nothing beyond them could be read.

    Raises:
        InvalidTexts: some have, and are not to be cut.
    """

    def cut(text: Text) -> Text:
        match text:
            case str():
                return text[:limit]
            case (str() as query, str() as document):
                return query[:limit], document[:limit]
        return text

    readable = [cut(text) for text in texts]
    wrong = [index for index, text in enumerate(texts) if text != readable[index]]
    if wrong and not truncate:
        reason = f"it has over {limit} characters, more than the model reads"
        raise InvalidTexts([Problem(index, reason, kind="text") for index in wrong])
    return readable


def _plan_calls(texts: Sequence[Text]) -> Iterator[list[Text]]:
    for chosen in plan([_size(text) for text in texts], CALL_CHARACTERS):
        yield [texts[i] for i in chosen]


def _size(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(str(part)) for part in text)


def _guessed_tokens(text: Text) -> int:
    """Of a text that nobody has read yet; one at least."""
    parts = [text] if isinstance(text, str) else text
    return sum(1 if isinstance(part, int) else 1 + len(part) // CHARACTERS_OF_TOKEN for part in parts)

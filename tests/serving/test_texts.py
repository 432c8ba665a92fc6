"""The path of texts on a real Redis, with a runner whose answers one can work out in one's head."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import redis.asyncio

from models.text.model import TextModel
from models.wire import Reply
from serving.cache import Cache, TextKeyParts, cache_key
from serving.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, InvalidTexts, Overloaded
from serving.runners import ServedText, Terms
from serving.texts import CALL_CHARACTERS, CHARACTERS_A_TOKEN, TextOptions, TextPipeline
from tests.serving.conftest import within


class LengthRunner:
    """A text's vector is (length, number of its W); it has a token a character. `!` cannot be read, `?` fails."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.forms: list[Mapping[str, Any]] = []
        self.terms: list[Terms] = []
        self.precision = "fp32"
        self.delay_s = 0.0
        self.is_full = False

    async def embed(self, sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        self.calls.append(sequences)
        self.forms.append(form)
        self.terms.append(terms)
        if self.is_full and not terms.is_admitted:
            raise Overloaded("full", 7)
        await asyncio.sleep(self.delay_s)
        errors = {i: f"bad {text}" for i, text in enumerate(sequences) if text in ("!", "?")}
        good = [text for text in sequences if text not in ("!", "?")]
        return Reply(
            lengths=[0 if i in errors else 1 for i in range(len(sequences))],
            embeddings=np.array([[len(text), str(text).count("W")] for text in good], np.float32).reshape(-1, 2),
            errors=errors,
            precision=self.precision,
            devices=[None if i in errors else "cpu" for i in range(len(sequences))],
            num_tokens=[0 if text == "!" else len(text) for text in sequences],
        )

    async def status(self) -> dict[str, Any]:
        return {"precision": "fp32", "facts": {"prompts": {"default": ""}, "max_tokens": 4000}}

    async def attend(self) -> None:
        await asyncio.Event().wait()

    def suspect(self) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.fixture
def runner() -> LengthRunner:
    return LengthRunner()


@pytest.fixture
def served(runner: LengthRunner) -> ServedText:
    return ServedText(TextModel("a/b", "embedding"), "v1", {}, runner)


@pytest.fixture
def pipeline(cache: Cache) -> TextPipeline:
    return TextPipeline(cache)


async def test_equal_texts_are_computed_once_and_each_has_its_place(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    found = await pipeline.run(served, ["abc", "WW", "abc"], TextOptions(), within())
    assert found.vectors.tolist() == [[3, 0], [2, 2], [3, 0]]
    assert found.num_tokens == [3, 2, 3]
    assert found.devices == {0: "cpu", 1: "cpu", 2: "cpu"}
    assert runner.calls == [["abc", "WW"]]


async def test_what_was_computed_is_not_asked_for_again(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    await pipeline.run(served, ["abc", ("q", "dW"), (1, 2, 3)], TextOptions(), within())
    found = await pipeline.run(served, [(1, 2, 3), "new", ("q", "dW")], TextOptions(), within())
    assert found.vectors.tolist() == [[3, 0], [3, 0], [2, 1]]
    assert found.num_tokens == [3, 3, 2]
    assert found.devices == {1: "cpu"}
    assert runner.calls[1] == ["new"]


@pytest.mark.parametrize(
    "other", [TextOptions(prompt_name="default"), TextOptions(truncate=True), TextOptions(max_tokens=7)]
)
async def test_what_was_asked_for_otherwise_is_another_thing(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner, other: TextOptions
) -> None:
    await pipeline.run(served, ["abc"], TextOptions(), within())
    await pipeline.run(served, ["abc"], other, within())
    assert len(runner.calls) == 2
    assert runner.forms[1] == other.form != runner.forms[0]


def test_texts_pairs_and_token_ids_never_share_a_key() -> None:
    parts = TextKeyParts("m", "v", "fp32", None, truncate=False, max_tokens=None)
    texts: list[Any] = ["1, 2", ("1", "2"), (1, 2), "[1, 2]", '["1", "2"]', (12,), "12"]
    assert len({cache_key(parts, json.dumps(text)) for text in texts}) == len(texts)


async def test_texts_that_cannot_be_read_are_named_and_the_others_kept(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    with pytest.raises(InvalidTexts) as caught:
        await pipeline.run(served, ["good", "!", "fine", "!"], TextOptions(), within())
    assert [(p.index, p.reason) for p in caught.value.problems] == [(1, "bad !"), (3, "bad !")]
    assert str(caught.value) == "text 1: bad ! (and 1 more)"
    await pipeline.run(served, ["good", "fine"], TextOptions(), within())
    assert len(runner.calls) == 1


async def test_a_text_that_the_model_fails_on_is_no_fault_of_the_request(
    pipeline: TextPipeline, served: ServedText
) -> None:
    with pytest.raises(InferenceFailed, match=r"text 1: bad \?"):
        await pipeline.run(served, ["good", "?"], TextOptions(), within())


async def test_a_large_request_goes_in_parts_of_which_the_first_decides(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    texts = [letter * (CALL_CHARACTERS // 2) for letter in "abcdefg"]
    found = await pipeline.run(served, texts, TextOptions(), within())
    assert found.vectors[:, 0].tolist() == [CALL_CHARACTERS // 2] * 7
    assert [len(call) for call in runner.calls] == [2, 2, 2, 1]
    assert [terms.is_admitted for terms in runner.terms] == [False, True, True, True]
    runner.is_full = True
    with pytest.raises(Overloaded):
        await pipeline.run(served, [text + "!" for text in texts], TextOptions(), within())
    assert len(runner.calls) == 5


async def test_what_comes_in_another_precision_is_not_kept_under_this_one(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    runner.precision = "bf16"
    for _ in range(2):
        await pipeline.run(served, ["abc"], TextOptions(), within())
    assert len(runner.calls) == 2


async def test_a_request_that_takes_too_long_is_ended(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    runner.delay_s = 10
    with pytest.raises(DeadlineExceeded):
        await pipeline.run(served, ["abc"], TextOptions(), within(0.1))


async def test_without_redis_everything_is_computed(
    dead_client: redis.asyncio.Redis, served: ServedText, runner: LengthRunner
) -> None:
    pipeline = TextPipeline(Cache(dead_client, ttl_s=60, level=6))
    for _ in range(2):
        found = await pipeline.run(served, ["abc"], TextOptions(), within())
        assert found.vectors.tolist() == [[3, 0]]
    assert len(runner.calls) == 2


async def test_a_prompt_that_the_model_does_not_have_reaches_nobody(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    with pytest.raises(InvalidRequest, match="prompt_name: a/b has default, not 'other'"):
        await pipeline.run(served, ["abc"], TextOptions(prompt_name="other"), within())
    assert runner.calls == []


async def test_what_no_model_could_read_is_refused_or_cut_before_it_is_sent(
    pipeline: TextPipeline, served: ServedText, runner: LengthRunner
) -> None:
    limit = 4000 * CHARACTERS_A_TOKEN
    endless = "a" * (limit + 1)
    with pytest.raises(InvalidTexts, match=f"text 1: it has over {limit} characters"):
        await pipeline.run(served, ["abc", endless], TextOptions(), within())
    assert runner.calls == []
    await pipeline.run(served, [("q", endless)], TextOptions(truncate=True), within())
    assert runner.calls == [[("q", endless[:limit])]]


async def test_every_text_that_is_computed_costs_a_token_at_least(
    cache: Cache, served: ServedText, runner: LengthRunner
) -> None:
    """Else short ones would be without limit; token ids are counted as they are."""
    asked: list[int] = []

    async def admit(_: Terms, num_tokens: int) -> None:
        asked.append(num_tokens)

    pipeline = TextPipeline(cache, admit)
    await pipeline.run(served, ["a", "b", "a", "x" * 8, ("q", "dddd"), (1, 2, 3)], TextOptions(), within())
    assert asked == [1 + 1 + 3 + (1 + 2) + 3]
    await pipeline.run(served, ["a", "x" * 8], TextOptions(), within())
    assert len(asked) == 1, "what the cache has costs nothing"

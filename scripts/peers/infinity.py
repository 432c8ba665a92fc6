"""infinity-emb, an embedding server for sentence-transformers models, in a virtual environment of its own.

Its means are over all tokens, start and end included, so that its vectors are near ours, not equal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from models.configs import read_config

REQUIREMENT = "infinity-emb[server,torch]==0.0.78"
INSTALL_TIMEOUT_S = 900
MAX_TOKENS = 5002
ENVIRONMENT: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def install() -> Path:
    """The folder of its programs; installed into the user's cache when it is not there.

    Raises:
        ImportError: it cannot be installed here.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "protein_embedding_service" / "infinity"
    installed = folder / "installed"
    if not installed.exists():
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            subprocess.run(pip, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise ImportError(str(error.stderr).strip().rpartition("\n")[2]) from error
        except subprocess.TimeoutExpired as error:
            raise ImportError(f"not installed after {INSTALL_TIMEOUT_S} s") from error
        installed.touch()
    return folder / "bin"


def command(programs: Path, folder: Path, port: int, dtype: str) -> list[str]:
    """BetterTransformer is off: ESM-2 is none of its models. So is its warm-up, which takes minutes in float32:
    whoever measures it warms it up. The rest is its default."""
    start = [str(programs / "infinity_emb"), "v2", "--model-id", str(folder), "--host", "127.0.0.1"]
    start += ["--port", str(port), "--engine", "torch", "--device", "cpu", "--dtype", dtype]
    return [*start, "--no-bettertransformer", "--no-model-warmup"]


def decode(body: bytes) -> np.ndarray:
    """(B, D) of a reply in OpenAI's form."""
    return np.array([row["embedding"] for row in json.loads(body)["data"]], np.float32)


def write_folder(model: Path, folder: Path) -> None:
    """The checkpoint as a sentence-transformers folder, with the fast tokenizer that infinity needs."""
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(model / name)
    _tokenizer(model / "vocab.txt").save(str(folder / "tokenizer.json"))
    parts = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    modules = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in parts
    ]
    special = {f"{name}_token": f"<{name}>" for name in ("cls", "eos", "pad", "unk", "mask")}
    width = read_config(model, "esm2").dim
    for path, content in (
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special}),
        ("sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False}),
        ("modules.json", modules),
        ("1_Pooling/config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}),
    ):
        (folder / path).write_text(json.dumps(content))


def _tokenizer(vocabulary: Path) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.read_text().split())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    ends = [(token, ids[token]) for token in ("<cls>", "<eos>")]
    tokenizer.post_processor = TemplateProcessing(single="<cls> $A <eos>", special_tokens=ends)
    return tokenizer

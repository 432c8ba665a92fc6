"""Shows the service at work: starts it, embeds the example proteins, shows what came back, stops it.

python -m scripts.demo [--fasta FILE] [--url URL]    URL: of a service that runs already, with an empty cache
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from huggingface_hub.constants import ENDPOINT

from models.catalogue import CATALOGUE, MINI
from scripts import import_model
from scripts.local_service import ROOT, LocalService
from scripts.npz import read_npz
from serving.sequences import Record, parse_fasta

TRAINED_CHOICE = "esm2_t6_8M"
HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Row:
    """What the table shows of one protein."""

    id: str
    length: int
    shape: tuple[int, ...]
    norm: float
    is_cached: bool
    ms: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo", description=__doc__)
    parser.add_argument("--fasta", type=Path, default=ROOT / "examples" / "proteins.fasta")
    parser.add_argument("--url", help="of a service that runs already, without keys; its first model is used")
    options = parser.parse_args()
    records = parse_fasta(options.fasta.read_text())
    if options.url is not None:
        (model, *_) = httpx.get(f"{options.url}/embeddings/models").raise_for_status().json()["available_models"]
        show_all(options.url, model, records)
        return

    model = choose_model()
    with tempfile.TemporaryDirectory(prefix="pes-demo-") as data_dir:
        print("starting the service ...", flush=True)
        with LocalService(Path(data_dir), {"MODELS": model}) as service:
            show_all(service.url, model, records)
    print("the service has stopped. `make serve` keeps it running; README.md says what to ask of it.")


def show_all(url: str, model: str, records: list[Record]) -> None:
    """Embeds and shows the proteins in every form. Exits where the cache did not do its work."""
    print(f"serving {model} at {url}\n")
    with httpx.Client(timeout=600) as client:
        first = show("pooled: one vector a protein", embed(client, url, model, records, pooled=True))
        show("per residue: one vector a residue", embed(client, url, model, records, pooled=False))
        again = show("pooled, asked again", embed(client, url, model, records, pooled=True))
    if any(row.is_cached for row in first) or not all(row.is_cached for row in again):
        sys.exit("the cache did not do its work: the first pass must miss, the second must hit")


def choose_model() -> str:
    """A real model where the hub answers within seconds, else the embedded one; said aloud either way."""
    if hub_answers():
        try:
            import_model.main([TRAINED_CHOICE, "--if-missing"])
            return TRAINED_CHOICE
        except SystemExit as error:
            print(f"the hub answered and then did not: {error}")
    import_model.main([MINI.name, "--if-missing"])
    print(f"the model hub is out of reach: using {MINI.name}, which is UNTRAINED.")
    print("its numbers show that everything works; they mean nothing in biology.\n")
    return MINI.name


def hub_answers() -> bool:
    """Whether the weights' page answers at once; HF_HUB_OFFLINE is heeded."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    url = f"{ENDPOINT}/{CATALOGUE[TRAINED_CHOICE].source}/resolve/main/config.json"
    try:
        return httpx.head(url, timeout=HUB_TIMEOUT_S, follow_redirects=True).status_code == 200
    except httpx.HTTPError:
        return False


def embed(client: httpx.Client, url: str, model: str, records: list[Record], pooled: bool) -> list[Row]:
    """Each protein in a request of its own, as FASTA; its npz downloaded from the link in the reply."""
    rows = []
    for record in records:
        started = time.perf_counter()
        reply = client.post(
            f"{url}/embeddings/compute/{model}",
            params={"pooled": pooled},
            headers={"content-type": "text/x-fasta"},
            content=f">{record.id}\n{record.sequence}\n",
        )
        reply.raise_for_status()
        result = reply.json()["results"][0]
        file = client.get(url + reply.json()["download_link"])
        file.raise_for_status()
        ms = (time.perf_counter() - started) * 1e3
        embedding = read_npz(file.content)["embedding_0"].astype(np.float32)
        norm = float(np.linalg.norm(embedding, axis=-1).mean())
        rows.append(Row(record.id, result["length"], embedding.shape, norm, result["cached"], ms))
    return rows


def show(title: str, rows: list[Row]) -> list[Row]:
    """Prints the table; gives the rows back."""
    print(title)
    print(f"  {'id':18} {'length':>6}  {'shape':>11}  {'norm':>7}  {'cache':5} {'ms':>8}")
    for row in rows:
        shape = " x ".join(str(size) for size in row.shape)
        cache = "hit" if row.is_cached else "miss"
        print(f"  {row.id:18} {row.length:6}  {shape:>11}  {row.norm:7.3f}  {cache:5} {row.ms:8.1f}")
    print()
    return rows


if __name__ == "__main__":
    main()

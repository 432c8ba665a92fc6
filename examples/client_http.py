"""The REST routes from Python: FASTA in, npz out, first by its download link and then as the reply itself.

python examples/client_http.py [URL]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import httpx
import numpy as np

FASTA = Path(__file__).with_name("proteins.fasta")
FASTA_MEDIA_TYPE = "text/x-fasta"
NPZ_MEDIA_TYPE = "application/x-npz"


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
    with httpx.Client(base_url=url, timeout=600, headers={"Content-Type": FASTA_MEDIA_TYPE}) as client:
        model = client.get("/").raise_for_status().json()["supported_models"][0]
        route, body = f"/embeddings/compute/{model}", FASTA.read_bytes()

        print(f"{model}, pooled, by the download link")
        summary = check(client.post(route, content=body)).json()
        for warning in summary["warnings"]:
            print(f"warning: {warning}")
        show(check(client.get(summary["download_link"])).content)

        print(f"{model}, per residue, with Accept: {NPZ_MEDIA_TYPE}")
        reply = client.post(route, params={"pooled": False}, content=body, headers={"Accept": NPZ_MEDIA_TYPE})
        show(check(reply).content)


def check(reply: httpx.Response) -> httpx.Response:
    """The reply, or the end of the program with what the service says is wrong."""
    if reply.is_error:
        sys.exit(f"{reply.status_code}: {reply.text}")
    return reply


def show(npz: bytes) -> None:
    """Id and shape of every embedding. A sequence that failed has an id and no embedding."""
    with np.load(io.BytesIO(npz), allow_pickle=False) as file:
        for index, id in enumerate(file["ids"]):
            name = f"embedding_{index}"
            print(f"  {id:16} {file[name].shape if name in file else 'failed'}")


if __name__ == "__main__":
    main()

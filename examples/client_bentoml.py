"""BentoML's own client: pooled embeddings as one array, per residue as a npz.

python examples/client_bentoml.py [URL]
"""

from __future__ import annotations

import sys

import bentoml
import numpy as np

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
INSULIN_A, INSULIN_B = "GIVEQCCTSICSLYQLENYCN", "FVNQHLCGSHLVEALYLVCGERGFFYTPKT"
SEQUENCES = [UBIQUITIN, INSULIN_A, INSULIN_B]


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
    with bentoml.SyncHTTPClient(url, timeout=600) as client:
        pooled = client.encode(sequences=SEQUENCES)
        print("encode:", pooled.shape, pooled.dtype)

        path = client.encode_per_residue(sequences=SEQUENCES, dtype="float32")
        with np.load(path, allow_pickle=False) as file:
            for index in range(int(file["sequence_count"])):
                embedding = file[f"embedding_{index}"]
                print("encode_per_residue:", file["ids"][index], embedding.shape, embedding.dtype)


if __name__ == "__main__":
    main()

"""The sequences that benchmarks run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serving.sequences import parse_fasta

# Of Swiss-Prot (the 2,768 eukaryotic proteins of DeepLoc's test set): lengths at every 5th percentile from the
# shortest to the longest, and the share of each residue in percent
_LENGTHS = (
    *(40, 99, 143, 186, 224, 254, 286, 323, 358, 391),
    *(429, 463, 499, 551, 601, 676, 778, 915, 1079, 1370, 5654),
)
_RESIDUES = {
    **{"L": 9.52, "S": 8.82, "A": 6.84, "E": 6.81, "K": 6.17, "G": 6.13, "V": 6.05, "P": 5.63, "T": 5.49},
    **{"R": 5.30, "D": 5.15, "I": 4.89, "Q": 4.51, "N": 4.44, "F": 3.87, "Y": 2.84, "H": 2.42, "M": 2.20},
    **{"C": 1.78, "W": 1.15},
}


def sample(num: int, max_length: int, seed: int) -> list[str]:
    """Random proteins with Swiss-Prot's lengths and residues, none above `max_length`."""
    rng = np.random.default_rng(seed)
    return [random_protein(length, rng) for length in sample_lengths(num, max_length, rng).tolist()]


def sample_lengths(num: int, max_length: int, rng: np.random.Generator) -> np.ndarray:
    """(num,) int64 lengths of Swiss-Prot's distribution, none above `max_length`."""
    lengths = np.empty(0, np.int64)
    while len(lengths) < num:
        places = rng.random(num - len(lengths))
        drawn = np.interp(places, np.linspace(0, 1, len(_LENGTHS)), _LENGTHS).astype(np.int64)
        lengths = np.concatenate([lengths, drawn[drawn <= max_length]])
    return lengths


def random_protein(length: int, rng: np.random.Generator) -> str:
    """Residues drawn one by one with Swiss-Prot's shares."""
    shares = np.array(list(_RESIDUES.values()))
    return "".join(rng.choice(list(_RESIDUES), length, p=shares / shares.sum()))


def load(fasta: Path | None, num: int, max_length: int, seed: int) -> list[str]:
    """The first `num` sequences of a file that are not above `max_length`, or a sample where none is given.

    Raises:
        SystemExit: there are none.
    """
    if fasta is None:
        return sample(num, max_length, seed)
    found = [record.sequence.upper().removesuffix("*") for record in parse_fasta(fasta.read_text())]
    kept = [sequence for sequence in found if 0 < len(sequence) <= max_length][:num]
    if not kept:
        raise SystemExit(f"{fasta} has no sequence of up to {max_length} residues")
    return kept

"""The sequences that benchmarks run on, and how much arithmetic they ask for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.catalogue import MINI
from models.configs import read_config
from models.untrained import untrained_config, write_untrained
from scripts.benchmarks.contenders import Task
from scripts.benchmarks.operations import count_operations
from scripts.benchmarks.peers import Transformers
from scripts.benchmarks.workload import load, random_protein, sample

NARROW = dataclasses.replace(MINI, num_layers=1, dim=2, num_heads=1, head_dim=2, feed_forward_dim=8)


def test_operations_are_those_counted_by_hand() -> None:
    config = untrained_config(NARROW)
    # 4 x 2 x 2 weights of attention, 2 x 2 x 8 behind it: 48; a residue is 3 tokens with its specials
    # 2 x 48 x 3 in linear layers; 3 x 3 pairs of tokens, 2 columns, 2 operations, for scores and for sums: 72
    assert count_operations(NARROW, config, [1]) == 288 + 72
    # Sequences do not attend to each other: 3 and 4 tokens are 9 + 16 pairs
    assert count_operations(NARROW, config, [1, 2]) == 2 * 48 * 7 + 8 * 25


def test_operations_of_a_gated_layer_have_a_third_projection() -> None:
    config = dataclasses.replace(untrained_config(NARROW), is_gated=True)
    assert count_operations(NARROW, config, [1]) == 2 * (16 + 48) * 3 + 72


def test_operations_are_those_that_torch_counts_in_transformers(tmp_path: Path) -> None:
    write_untrained(tmp_path, MINI, seed=1)
    peer = Transformers(Task(tmp_path, MINI, "cpu"), torch.float32, attention="eager")
    with FlopCounterMode(display=False) as counter:
        peer.residues(["A" * 30])
    counted = count_operations(MINI, read_config(tmp_path, "esm2"), [30])
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)  # rotary angles are counted there too


def test_the_sample_has_the_lengths_of_swiss_prot() -> None:
    lengths = [len(sequence) for sequence in sample(2000, max_length=5000, seed=3)]
    # Of Swiss-Prot: 254, 429 and 676. Of 2,000 drawn, the standard errors are about 5, 8 and 18
    for percent, expected, error in ((25, 254, 5), (50, 429, 8), (75, 676, 18)):
        assert np.percentile(lengths, percent) == pytest.approx(expected, abs=4 * error)
    assert min(lengths) >= 40
    assert max(lengths) <= 5000


def test_the_sample_has_the_residues_of_swiss_prot() -> None:
    counts = Counter(random_protein(200_000, np.random.default_rng(3)))
    assert len(counts) == 20
    # Standard error of a share of 10% of 200,000: 0.07%
    for residue, percent in (("L", 9.52), ("S", 8.82), ("A", 6.84), ("C", 1.78), ("W", 1.15)):
        assert counts[residue] / 2000 == pytest.approx(percent, abs=0.28)


def test_the_sample_is_the_same_for_the_same_seed() -> None:
    assert sample(5, 500, seed=1) == sample(5, 500, seed=1) != sample(5, 500, seed=2)


def test_the_first_sequences_of_a_file_are_taken_and_long_ones_left_out(tmp_path: Path) -> None:
    fasta = tmp_path / "some.fasta"
    fasta.write_text(">a\nmkva*\n>b\nMKTAYIAKQR\n>empty\n\n>c\nMKV\n>d\nGG\n")
    assert load(fasta, num=2, max_length=5, seed=0) == ["MKVA", "MKV"]
    with pytest.raises(SystemExit, match=r"some\.fasta has no sequence of up to 1 residues"):
        load(fasta, num=2, max_length=1, seed=0)

"""Letters to token ids, as the references do it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from models.catalogue import MINI, NON_STANDARD_RESIDUES, STANDARD_RESIDUES
from models.engine import Engine
from models.tokens import UnknownResidue, residue_table
from tests.models.conftest import SMALL_T5, Folders
from tests.models.references import random_sequence

EVERY_LETTER = STANDARD_RESIDUES + NON_STANDARD_RESIDUES


@pytest.mark.parametrize("sequence", [EVERY_LETTER, "M", random_sequence(300)])
def test_esm2_ids_are_those_of_transformers_tokenizer(folders: Folders, sequence: str) -> None:
    from transformers import AutoTokenizer

    folder = folders.of(MINI)
    expected = AutoTokenizer.from_pretrained(folder)(sequence)["input_ids"]
    assert residue_table(folder, MINI, 33).encode(sequence).tolist() == expected


@pytest.mark.parametrize("sequence", [EVERY_LETTER, "M", random_sequence(300)])
def test_esm2_ids_are_those_of_fair_esms_alphabet(folders: Folders, sequence: str) -> None:
    from esm.data import Alphabet

    *_, tokens = Alphabet.from_architecture("ESM-1b").get_batch_converter()([("", sequence)])
    assert residue_table(folders.of(MINI), MINI, 33).encode(sequence).tolist() == tokens[0].tolist()


@pytest.mark.parametrize("sequence", [EVERY_LETTER, "M", random_sequence(300)])
def test_prot_t5_ids_are_those_of_transformers_tokenizer(folders: Folders, sequence: str) -> None:
    from transformers import AutoTokenizer

    folder = folders.of(SMALL_T5)
    spaced = " ".join(re.sub(r"[UZOB]", "X", sequence))
    expected = AutoTokenizer.from_pretrained(folder)(spaced)["input_ids"]
    assert residue_table(folder, SMALL_T5, 128).encode(sequence).tolist() == expected


def test_esm2_has_a_token_of_its_own_for_each_rare_residue(mini: Engine) -> None:
    ids = mini.table.encode(NON_STANDARD_RESIDUES)[1:-1]
    assert len(set(ids.tolist())) == 5
    assert not set(ids.tolist()) & set(mini.table.encode(STANDARD_RESIDUES).tolist())


def test_prot_t5_has_one_token_for_all_rare_residues(small_t5: Engine) -> None:
    ids = small_t5.table.encode(NON_STANDARD_RESIDUES)
    # Source: Rostlab/prot_t5_xl_half_uniref50-enc: X is 23, </s> is 1
    assert ids.tolist() == [23, 23, 23, 23, 23, 1]


def test_esm2_puts_a_token_at_both_ends_and_prot_t5_at_the_end_only(mini: Engine, small_t5: Engine) -> None:
    # Source: facebook/esm2_t6_8M_UR50D, vocab.txt: <cls> 0, <eos> 2, L 4; ProtT5: </s> 1, L 4
    assert mini.table.encode("LL").tolist() == [0, 4, 4, 2]
    assert small_t5.table.encode("LL").tolist() == [4, 4, 1]
    assert mini.table.encode("LL").dtype == np.int64


@pytest.mark.parametrize(("sequence", "letter", "position"), [("MKJ", "J", 3), ("jM", "j", 1), ("MÅ", "Å", 2)])
@pytest.mark.parametrize("family", ["mini", "small_t5"])
def test_a_letter_without_a_token_is_named_with_its_position(
    family: str, sequence: str, letter: str, position: int, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(family)
    with pytest.raises(UnknownResidue, match=f"'{letter}' at position {position} "):
        engine.table.encode(sequence)


@pytest.mark.parametrize("sequence", ["M日", "M?", "M K", "M-K", "M.K", "M<mask>", "M\0"])
def test_what_is_no_letter_of_the_alphabet_is_refused(mini: Engine, sequence: str) -> None:
    with pytest.raises(UnknownResidue, match="at position 2 "):
        mini.table.encode(sequence)

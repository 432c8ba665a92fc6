"""What a protein may look like, and what is said of one that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import CATALOGUE, MINI
from serving.errors import InvalidRequest, InvalidSequences, MalformedBody, TooManySequences
from serving.sequences import MAX_WINDOWED_LENGTH, Limits, OnTooLong, Protein, Record, clean_all, parse_fasta

LIMITS = Limits(min_length=5, max_length=20, max_sequences=4)
T5 = CATALOGUE["prot_t5"]


def cleaned(*sequences: str) -> list[str]:
    records = [Record(f"p{i}", sequence) for i, sequence in enumerate(sequences)]
    return [protein.sequence for protein in clean_all(records, MINI, LIMITS)]


@pytest.mark.parametrize("raw", ["MKTAY", "mktay", " MKT AY ", "MKT\nAY\r\n", "MKTAY*", "\tmKtAy*\n"], ids=repr)
def test_case_white_space_and_a_final_stop_are_cleaned(raw: str) -> None:
    assert cleaned(raw) == ["MKTAY"]


@pytest.mark.parametrize(
    ("raw", "position", "character"),
    [
        ("MKTJY", 4, "J"),
        ("mktjy", 4, "j"),
        ("MK-AY", 3, "-"),
        ("MK.AY", 3, "."),
        ("MK*AYM", 3, "*"),
        ("MKTAY**", 6, "*"),
        ("MKT4Y", 4, "4"),
        ("MK TAß", 5, "ß"),
        ("ıMKTAY", 1, "ı"),  # noqa: RUF001 its upper case is the letter I
        ("MKTAY\u200b", 6, "\u200b"),
        ("МKTAY", 1, "М"),  # noqa: RUF001 the Cyrillic letter that looks like an M
    ],
)
def test_a_foreign_letter_is_named_with_its_place(raw: str, position: int, character: str) -> None:
    with pytest.raises(InvalidSequences) as error:
        cleaned("MKTAYMKTAY", raw)
    (problem,) = error.value.problems
    assert (problem.index, problem.id, problem.position, problem.character) == (1, "p1", position, character)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("*", "empty"),
        ("MKTA", "4 residues; the least is 5"),
        ("M" * 21, "21 residues; the most is 20"),
    ],
    ids=["nothing", "white space", "a lone stop", "short", "long"],
)
def test_a_length_out_of_bounds_is_named(raw: str, reason: str) -> None:
    with pytest.raises(InvalidSequences, match=reason):
        cleaned(raw)


def test_every_wrong_sequence_is_named_not_the_first_alone() -> None:
    with pytest.raises(InvalidSequences) as error:
        cleaned("MKJAY", "MKTAY", "M")
    assert [problem.index for problem in error.value.problems] == [0, 2]


def test_more_sequences_than_allowed_are_refused() -> None:
    assert len(cleaned(*["MKTAY"] * 4)) == 4
    with pytest.raises(TooManySequences, match="5 sequences in one request; the limit is 4"):
        cleaned(*["MKTAY"] * 5)


def test_no_sequence_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no sequence"):
        cleaned()


def test_replaced_residues_are_reported_where_a_model_reads_them_as_another() -> None:
    record = [Record("p", "mkuzobx")]
    assert clean_all(record, MINI, LIMITS)[0].replaced == ()
    assert clean_all(record, T5, LIMITS)[0].replaced == ((3, "U"), (4, "Z"), (5, "O"), (6, "B"))
    assert clean_all(record, T5, LIMITS)[0].sequence == "MKUZOBX"


def test_fasta_entries_keep_order_ids_and_duplicates() -> None:
    text = ">sp|P1|A one\nMKT\nAY\n\n>sp|P1|A again\r\nMK TAY*\r\n; a comment\n>\nMMMMM\n"
    assert parse_fasta(text) == [
        Record("sp|P1|A", "MKTAY"),
        Record("sp|P1|A", "MK TAY*"),
        Record("sequence_2", "MMMMM"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no FASTA header"),
        ("\n\n", "no FASTA header"),
        ("MKTAY\n", "line 1 comes before the first header"),
        ("\nMKTAY\n>a\nMK", "line 2 comes before the first header"),
    ],
)
def test_malformed_fasta_is_refused_with_the_line(text: str, reason: str) -> None:
    with pytest.raises(MalformedBody, match=reason):
        parse_fasta(text)


@given(
    st.lists(
        st.tuples(st.from_regex(r"[!-~]{1,12}", fullmatch=True), st.text("ACDEFGHIKLMNPQRSTVWY", max_size=90))
    )
)
def test_any_fasta_that_is_written_is_read_back(entries: list[tuple[str, str]]) -> None:
    text = "".join(f">{id} words\n{s[:60]}\n{s[60:]}\n" for id, s in entries)
    if entries:
        assert parse_fasta(text) == [Record(id, sequence) for id, sequence in entries]


@pytest.mark.parametrize("id", ["x" * 257, "a\0", "a\nb"])
def test_an_id_that_does_not_fit_an_array_of_ids_is_refused(id: str) -> None:
    with pytest.raises(InvalidSequences, match="256 printable characters"):
        clean_all([Record(id, "MKTAY")], MINI, LIMITS)
    assert clean_all([Record("x" * 256, "MKTAY")], MINI, LIMITS)[0].id == "x" * 256


def cleaned_one(raw: str, on_too_long: OnTooLong) -> Protein:
    (protein,) = clean_all([Record("p", raw)], MINI, replace(LIMITS, on_too_long=on_too_long))
    return protein


def test_a_sequence_that_is_too_long_is_cut_off_where_that_is_asked_for() -> None:
    protein = cleaned_one(" mkt ay" * 5 + "*", "truncate")
    assert (protein.sequence, protein.truncated_from) == ("MKTAY" * 4, 25)


def test_a_sequence_that_is_too_long_is_left_whole_for_windows() -> None:
    assert cleaned_one("MKTAY" * 5, "window") == Protein("p", "MKTAY" * 5)


@pytest.mark.parametrize("on_too_long", ["error", "truncate", "window"])
def test_a_sequence_of_the_greatest_length_is_not_too_long(on_too_long: OnTooLong) -> None:
    assert cleaned_one("MKTAY" * 4, on_too_long) == Protein("p", "MKTAY" * 4)


@pytest.mark.parametrize("on_too_long", ["truncate", "window"])
def test_the_other_checks_stay_where_a_sequence_may_be_too_long(on_too_long: OnTooLong) -> None:
    for raw, reason in (("MKT", "3 residues; the least is 5"), ("", "empty"), ("MKTAJ", "'J' at position 5")):
        with pytest.raises(InvalidSequences, match=reason):
            cleaned_one(raw, on_too_long)


def test_a_foreign_letter_behind_the_cut_is_named_too() -> None:
    with pytest.raises(InvalidSequences, match="'J' at position 26"):
        cleaned_one("MKTAY" * 5 + "J", "truncate")


def test_replaced_residues_behind_the_cut_are_not_reported() -> None:
    (protein,) = clean_all([Record("p", "MU" + "M" * 18 + "U")], T5, replace(LIMITS, on_too_long="truncate"))
    assert (protein.replaced, protein.truncated_from) == (((2, "U"),), 21)


def test_windows_have_a_limit_of_their_own() -> None:
    assert len(cleaned_one("M" * MAX_WINDOWED_LENGTH, "window").sequence) == MAX_WINDOWED_LENGTH
    with pytest.raises(InvalidSequences, match="100001 residues; the most is 100000"):
        cleaned_one("M" * (MAX_WINDOWED_LENGTH + 1), "window")
    assert cleaned_one("M" * (MAX_WINDOWED_LENGTH + 1), "truncate").truncated_from == MAX_WINDOWED_LENGTH + 1

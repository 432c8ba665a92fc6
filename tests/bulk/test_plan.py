"""Input to blocks, by hand-written proteins."""

from __future__ import annotations

from collections import Counter

from bulk.plan import Block, blocks, shard_tokens
from bulk.survey import survey
from bulk.twins import find_twins
from bulk.workload import Workload
from models.planning import cost
from serving.sequences import Record
from tests.bulk.conftest import Make

PROTEINS = [Record(f"p{n}", "ACDEFGHIKL" * (1 + n % 7) + "M" * n) for n in range(40)]


def planned(records: list[Record], workload: Workload) -> list[Block]:
    found = survey(records, workload.row.dim)
    return list(blocks(iter(records), workload, found.repeated, find_twins(records, found)))


def test_every_id_is_in_one_block_with_its_sequence(make_workload: Make) -> None:
    found = [
        (id, block.sequences[place])
        for block in planned(PROTEINS, make_workload())
        for id, place in zip(block.ids, block.places, strict=True)
    ]
    assert sorted(found) == sorted((record.id, record.sequence) for record in PROTEINS)


def test_the_longest_of_a_window_come_first(make_workload: Make) -> None:
    lengths = [len(each) for block in planned(PROTEINS[:20], make_workload()) for each in block.sequences]
    assert lengths == sorted(lengths, reverse=True)


def test_a_block_costs_no_more_than_a_shard_may(make_workload: Make) -> None:
    found = planned(PROTEINS, make_workload(shard_tokens=200))
    assert len(found) > 5
    for block in found:
        total = sum(cost(len(each) + 2, 144) for each in block.sequences)
        assert total <= 200 or len(block.sequences) == 1


def test_equal_sequences_are_computed_once(make_workload: Make) -> None:
    records = [Record("a", "MKTAYIAKQR"), Record("b", "mktayiakqr*"), Record("c", "GIVEQCCTSI")]
    (block,) = planned(records, make_workload())
    assert block.sequences == ["MKTAYIAKQR", "GIVEQCCTSI"]
    assert [(id, place) for id, place in zip(block.ids, block.places, strict=True)] == [
        ("a", 0),
        ("b", 0),
        ("c", 1),
    ]


def test_equal_sequences_of_far_windows_are_computed_once_where_the_first_is(make_workload: Make) -> None:
    far = [Record("first", "GIVEQCCTSI"), *PROTEINS, Record("second", "GIVEQCCTSI"), Record("third", "GIVEQCCTSI")]
    found = planned(far, make_workload())
    assert len(found) > 3
    (block,) = [block for block in found if "GIVEQCCTSI" in block.sequences]
    place = block.sequences.index("GIVEQCCTSI")
    assert [id for id, at in zip(block.ids, block.places, strict=True) if at == place] == [
        "first",
        "second",
        "third",
    ]
    assert Counter(id for block in found for id in block.ids) == Counter(record.id for record in far)


def test_an_id_that_comes_twice_counts_where_it_is_first_whatever_its_sequence(make_workload: Make) -> None:
    far = [Record("first", "GIVEQCCTSI"), Record("again", "MKTAYIAKQR"), *PROTEINS, Record("again", "GIVEQCCTSI")]
    found = planned(far, make_workload())
    sequences = {id: b.sequences[at] for b in found for id, at in zip(b.ids, b.places, strict=True)}
    assert (sequences["first"], sequences["again"]) == ("GIVEQCCTSI", "MKTAYIAKQR")
    assert [each.id for block in found for each in block.rejected] == ["again"]


def test_twins_beyond_what_is_held_are_computed_again() -> None:
    records = [Record(f"p{n}", "GIVEQCCTSI") for n in range(5)]
    twins = find_twins(records, survey(records, 144), most=2)
    assert [record.id for record in twins.gathered(records)] == ["p0", "p1", "p2", "p3", "p4"]
    assert twins.moved == {"p1", "p2"}


def test_the_plan_is_the_same_each_time_and_another_for_other_input(make_workload: Make) -> None:
    first, again = (
        [block.digest for block in planned(PROTEINS, make_workload())],
        [block.digest for block in planned(PROTEINS, make_workload())],
    )
    changed = [Record("p0", "MMMMMMMMMM"), *PROTEINS[1:]]
    other = [block.digest for block in planned(changed, make_workload())]
    assert first == again
    assert first != other


def test_the_first_of_equal_ids_counts_and_the_others_are_told(make_workload: Make) -> None:
    records = [*PROTEINS, Record("p3", "GIVEQCCTSI")]
    found = planned(records, make_workload())
    assert Counter(id for block in found for id in block.ids)["p3"] == 1
    (failure,) = [each for block in found for each in block.rejected]
    assert (failure.id, failure.reason) == ("p3", "the id was there before")


def test_what_no_model_reads_is_told_and_nothing_else_lost(make_workload: Make) -> None:
    records = [Record("bad", "MKTAJ"), Record("long", "A" * 501), Record("good", "MKTA")]
    (block,) = planned(records, make_workload())
    assert block.ids == ["good"]
    assert {each.id for each in block.rejected} == {"bad", "long"}


def test_an_input_of_wrong_sequences_alone_has_a_block(make_workload: Make) -> None:
    (block,) = planned([Record("bad", "J")], make_workload())
    assert (block.ids, [each.id for each in block.rejected]) == ([], ["bad"])


def test_a_shard_of_residues_is_bounded_by_its_bytes() -> None:
    found = survey([Record("a", "A" * 5000)] * 1, 1280)
    assert shard_tokens(found, pooled=True, row_bytes=2560) == 1 << 16
    assert shard_tokens(found, pooled=False, row_bytes=256_000_000) == 1

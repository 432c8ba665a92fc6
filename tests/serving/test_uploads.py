"""Bodies of any size, in bounded memory: what they say, what is refused, and how soon."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip

from serving.errors import BodyTooLarge, InvalidRequest, MalformedBody
from serving.sequences import MAX_WINDOWED_LENGTH, Record, parse_fasta
from serving.uploads import MAX_CHARACTERS, MAX_OPTIONS, Upload

Kind = Literal["fasta", "json"]
GZIPPED = gzip.compress(b">a\nMKTAY\n")


class Trickle(io.BytesIO):
    """A file that gives a few bytes at a time, but for two, where gzip says its name."""

    def __init__(self, body: bytes, step: int = 1 << 20) -> None:
        super().__init__(body)
        self._step = step

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        return super().read(size if size <= 2 else min(size, self._step))


class Endless(io.BytesIO):
    """A file that says one thing, then another without end."""

    def __init__(self, head: bytes, forever: bytes) -> None:
        super().__init__()
        self._head, self._forever = head, forever
        self._at = self.num_read = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset
        return offset

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        head = self._head[self._at : self._at + size]
        size -= len(head)
        start = (self._at + len(head) - len(self._head)) % len(self._forever)
        block = (self._forever * (size // len(self._forever) + 2))[start : start + size]
        self._at += len(head + block)
        self.num_read = max(self.num_read, self._at)
        assert self.num_read < 10 * MAX_CHARACTERS
        return head + block


def upload(body: str | bytes, kind: Kind, step: int = 1 << 20, max_bytes: int = 10**9) -> Upload:
    raw = body if isinstance(body, bytes) else body.encode()
    return Upload(Trickle(raw, step), kind, max_bytes)


def read_json(**members: Any) -> list[Record]:
    return list(upload(json.dumps(members), "json").records())


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Of memory, at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


# FASTA


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return list(read())
    except MalformedBody as error:
        return str(error)


LINES = st.one_of(
    st.sampled_from(
        ["", ">", ">a", "> a b", "\t>a", ">a>b", "MKTAY", " M K ", ";>c", "M*", ">\ufeff", "\ufeff>a"]
    ),
    st.text(max_size=8).map(lambda text: text.replace("\0", "")),
)
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\f", "\x1c", "\x85", "\u2028", ""])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.integers(1, 30), st.booleans())
def test_fasta_is_read_as_in_one_piece_wherever_the_blocks_end(
    lines: list[tuple[str, str]], step: int, is_gzip: bool
) -> None:
    text = "".join(line + end for line, end in lines)
    body = gzip.compress(text.encode()) if is_gzip else text.encode()
    assert outcome(upload(body, "fasta", step).records) == outcome(lambda: parse_fasta(text))
    assert upload(body, "fasta", step).options() == {}


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_fasta_in_the_ways_of_several_systems(end: str, step: int) -> None:
    text = end.join(
        [";old", "", ">sp|P1|A one two", "MKT", "", "AY", "; a comment", ">", "MM", "\t>e", ">é", "MK TAY*"]
    )
    assert list(upload(text, "fasta", step).records()) == [
        Record("sp|P1|A", "MKTAY"),
        Record("sequence_1", "MM"),
        Record("e", ""),
        Record("é", "MK TAY*"),
    ]
    with pytest.raises(MalformedBody, match="FASTA line 3 comes before the first header: 'MKTAY'"):
        list(upload(f"{end}{end}MKTAY{end}>a", "fasta", step).records())


def test_a_long_header_with_a_short_id_is_taken() -> None:
    assert list(upload(">a " + "x" * 200_000 + "\nMKTAY", "fasta").records()) == [Record("a", "MKTAY")]


@pytest.mark.parametrize(
    ("head", "forever", "line"),
    [
        (b">a\nMKTAY\n>b\n", b"M", 4),
        (b">a\nMKTAY\n>", b"b", 3),
        (b"\n\n", b" ", 3),
        (b";", b";", 1),
        (b">a\n", b"MKTAYMKTA\n", 1 + MAX_CHARACTERS // 10),
        (b">a\n>b\n", b"\n", 2 + MAX_CHARACTERS - 2),
        (b"", b"\xf0\x9f\x98\x80", 1),
    ],
    ids=["line", "header", "white space", "comment", "lines", "blank lines", "wide"],
)
def test_fasta_without_an_end_is_refused_early(head: bytes, forever: bytes, line: int) -> None:
    file = Endless(head, forever)
    with (
        at_most(20),
        pytest.raises(MalformedBody, match=f"^FASTA line {line}: the entry is longer than 1000000 characters$"),
    ):
        list(Upload(file, "fasta", 10**9).records())
    assert file.num_read < 5 * MAX_CHARACTERS


@pytest.mark.parametrize("step", [50_021, 1 << 20])
@pytest.mark.parametrize("end", ["", "\n>b\nMKTAY", "\n \t>b"])
def test_an_entry_is_as_long_as_allowed(end: str, step: int) -> None:
    assert MAX_CHARACTERS == 10 * MAX_WINDOWED_LENGTH
    lines = ">a\n" + "\n".join(["M" * 99_999] * 9) + "\n"
    rest = MAX_CHARACTERS - len(lines) - bool(end)
    (first, *_) = upload(lines + "M" * rest + end, "fasta", step).records()
    assert len(first.sequence) == 9 * 99_999 + rest
    with pytest.raises(MalformedBody, match="FASTA line 11: the entry is longer"):
        list(upload(lines + "M" * (rest + 1) + end, "fasta", step).records())


# Text


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b">a\nMKT\xffAY\n", "the text is not UTF-8: byte 6"),
        (b">\xc3\xa9\nMKT\xc3(AY\n", "the text is not UTF-8: byte 7"),
        (b">a\nMKT\xf0\x9f\x98", "the text is not UTF-8: byte 6"),
        (b">\xed\xa0\x80\nMKT", "the text is not UTF-8: byte 1"),
        (b">a\nMK\0TAY\n", "the body is no text: byte 5 is 0"),
        (">a\nMKTAY\n".encode("utf-16-le"), "the body is no text: byte 1 is 0"),
        (b"\x89PNG\r\n\x1a\n", "the text is not UTF-8: byte 0"),
        (b"\xef\xbb\xbf>a\nMKTAY", "FASTA line 1 comes before the first header"),
        (b"", "no FASTA header"),
    ],
)
def test_what_is_no_text_is_refused_with_the_byte(body: bytes, reason: str, step: int) -> None:
    for sent in (body, gzip.compress(body)):
        with pytest.raises(MalformedBody, match=reason):
            list(upload(sent, "fasta", step).records())


def test_a_byte_far_into_the_body_is_counted_from_its_start() -> None:
    body = b">a\n" + b"MKTAYMKTA\n" * 50_000 + b"\xff" + b"MKTAY" * 50_000
    with pytest.raises(MalformedBody, match=r"the text is not UTF-8: byte 500003$"):
        list(upload(body, "fasta").records())
    with pytest.raises(MalformedBody, match=r"byte 500003 is 0$"):
        list(upload(body.replace(b"\xff", b"\0"), "fasta").records())


@pytest.mark.parametrize("is_gzip", [False, True])
def test_a_text_is_as_long_as_allowed(is_gzip: bool) -> None:
    body = b">a\n" + b"M" * 200_000
    sent = gzip.compress(body) if is_gzip else body
    assert len(next(upload(sent, "fasta", max_bytes=len(body)).records()).sequence) == 200_000
    with pytest.raises(BodyTooLarge, match="the text is longer than 200002 bytes"):
        next(upload(sent, "fasta", max_bytes=len(body) - 1).records())


# gzip


def test_gzip_of_several_members_is_read_to_its_end() -> None:
    body = ">a\nMKTAY\n>b\n" + "MKTAY" * 50_000
    raw = body.encode()
    members = [gzip.compress(raw[i : i + 65_280]) for i in range(0, len(raw), 65_280)]
    sent = b"".join(members) + gzip.compress(b"") + b"\0" * 512  # bgzip's end, tar's and tapes' padding
    assert list(upload(sent, "fasta").records()) == parse_fasta(body)


BROKEN = {
    "no end": GZIPPED[:-1],
    "no trailer": GZIPPED[:-8],
    "half": GZIPPED[: len(GZIPPED) // 2],
    "half a header": GZIPPED[:5],
    "two bytes": GZIPPED[:2],
    "checksum": GZIPPED[:-8] + bytes(4) + GZIPPED[-4:],
    "size": GZIPPED[:-4] + b"\1\2\3\4",
    "data": GZIPPED[:12] + b"\xff\xff\xff" + GZIPPED[15:],
    "method": GZIPPED[:2] + b"\x07" + GZIPPED[3:],
    "something behind": GZIPPED + b"and more",
    "half a member behind": GZIPPED + GZIPPED[:9],
    "long name": GZIPPED[:3] + b"\x08" + GZIPPED[4:10] + b"n" * 1_000_000 + b"\0" + GZIPPED[10:],
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_broken_gzip_is_refused(sent: bytes) -> None:
    for read in (upload(sent, "fasta").records, upload(sent, "json").options):
        with pytest.raises(MalformedBody, match=r"^broken gzip, after \d+ bytes of text: .+"):
            list(read())


@given(st.integers(2, len(GZIPPED) - 1), st.integers(0, 255))
def test_a_byte_that_changed_in_gzip_is_no_other_text(place: int, value: int) -> None:
    sent = bytearray(GZIPPED)
    sent[place] = value
    found = outcome(upload(bytes(sent), "fasta").records)
    assert found == [Record("a", "MKTAY")] or found.startswith("broken gzip")


@pytest.mark.parametrize("kind", ["fasta", "json"])
def test_a_bomb_is_inflated_to_the_limit_and_a_block(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    inflated = 0

    class Counting(igzip.IGzipFile):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal inflated
            block = super().read(size)
            inflated += len(block)
            return block

    head = b'{"sequences": [' if kind == "json" else b">a\n"
    sent = igzip.compress(head + b"\n" * 20_000_000, 0)
    monkeypatch.setattr(igzip, "IGzipFile", Counting)
    body = Upload(io.BytesIO(sent), kind, 500_000)
    with at_most(10), pytest.raises(BodyTooLarge, match="longer than 500000 bytes"):
        list(body.records())
    assert inflated <= 500_000 + 65_536


# JSON


def test_sequences_are_named_by_ids_or_by_themselves_or_by_their_place() -> None:
    named = [Record("p", "MKTAY"), Record("q", "mk t")]
    assert read_json(sequences=["MKTAY", "mk t"], ids=["p", "q"]) == named
    assert read_json(ids=["p", "q"], sequences=["MKTAY", "mk t"]) == named
    assert read_json(sequences={"p": "MKTAY", "q": "mk t"}) == named
    assert read_json(sequences=["MKTAY"], ids=None) == [Record("sequence_0", "MKTAY")]
    assert read_json(ids=None, sequences=["MKTAY", "M"])[1] == Record("sequence_1", "M")
    assert read_json(sequences=[]) == read_json(sequences={}) == read_json(sequences=[], ids=[]) == []


def test_options_stand_before_and_behind_the_sequences() -> None:
    text = (
        '{"model": "esm2_mini", "pooled": false, "sequences": {"model": "MKTAY"}, "max_length": 100, "x": null,'
        '"y": -1.5e3, "se\\u0071": "\\u00e9"}'
    )
    body = upload(text, "json")
    expected = {"model": "esm2_mini", "pooled": False, "max_length": 100, "x": None, "y": -1500.0, "seq": "é"}
    assert body.options() == expected
    assert upload('{"sequences": ["M"], "ids": null}', "json").options() == {}
    assert list(body.records()) == [Record("model", "MKTAY")]
    assert body.options() == expected


def test_a_name_that_is_there_twice_comes_twice() -> None:
    text = '{"sequences": {"p": "MKTAY", "q": "M", "p": "AYTKM", "q": "K"}}'
    records = [Record("p", "MKTAY"), Record("q", "M"), Record("p", "AYTKM"), Record("q", "K")]
    assert list(upload(text, "json").records()) == records


@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=60)), max_size=30),
    st.sampled_from(["ids first", "ids last", "no ids", "object"]),
    st.integers(1, 100),
    st.booleans(),
    st.booleans(),
)
def test_json_is_read_back_wherever_the_blocks_end(
    entries: list[tuple[str, str]], form: str, step: int, ascii_only: bool, is_gzip: bool
) -> None:
    ids, sequences = [id for id, _ in entries], [sequence for _, sequence in entries]
    expected = [Record(id, sequence) for id, sequence in entries]
    members: dict[str, Any] = {"model": "m", "sequences": sequences, "pooled": True}
    if form == "ids first":
        members = {"ids": ids, **members}
    elif form == "ids last":
        members["ids"] = ids
    elif form == "object":
        members["sequences"] = dict(entries)
        expected = [Record(id, sequence) for id, sequence in dict(entries).items()]
    else:
        expected = [Record(f"sequence_{index}", sequence) for index, sequence in enumerate(sequences)]
    body = json.dumps(members, ensure_ascii=ascii_only).encode()
    file = upload(gzip.compress(body) if is_gzip else body, "json", step)
    assert list(file.records()) == expected
    assert file.options() == {"model": "m", "pooled": True}


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("{}", InvalidRequest, "^sequences: missing$"),
        ('{"model": "m", "ids": ["p"]}', InvalidRequest, "^sequences: missing$"),
        ('{"sequences": "MKTAY"}', InvalidRequest, "^sequences: not an array of strings$"),
        ('{"sequences": null}', InvalidRequest, "^sequences: not an array of strings$"),
        ('{"sequences": ["M"], "ids": {"p": "q"}}', InvalidRequest, "^ids: not an array of strings$"),
        ('{"sequences": ["M"], "ids": 7}', InvalidRequest, "^ids: not an array of strings$"),
        ('{"sequences": ["M", 7]}', InvalidRequest, r"^sequences\[1\]: 7 is not a string$"),
        ('{"sequences": ["M", ["M"]]}', InvalidRequest, r"^sequences\[1\]: an array has no place here$"),
        ('{"sequences": {"p": null}}', InvalidRequest, r"^sequences\[0\]: null is not a string$"),
        ('{"sequences": ["M"], "ids": [1]}', InvalidRequest, r"^ids\[0\]: 1 is not a string$"),
        ('{"sequences": ["M", "K"], "ids": ["p"]}', InvalidRequest, "^1 ids for 2 sequences$"),
        ('{"ids": ["p", "q"], "sequences": []}', InvalidRequest, "^2 ids for 0 sequences$"),
        ('{"sequences": {"p": "M"}, "ids": ["p"]}', InvalidRequest, "^ids: the sequences are an object"),
        ('{"sequences": ["M"], "sequences": ["K"]}', InvalidRequest, "^'sequences' is there twice$"),
        ('{"sequences": ["M"], "sequ\\u0065nces": 1}', InvalidRequest, "^'sequences' is there twice$"),
        ('{"sequences": ["M"], "ids": ["p"], "ids": null}', InvalidRequest, "^'ids' is there twice$"),
        ('{"ids": null, "ids": ["p"], "sequences": ["M"]}', InvalidRequest, "^'ids' is there twice$"),
        ('{"model": 1, "sequences": ["M"], "model": 1}', InvalidRequest, "^'model' is there twice$"),
        ('{"sequences": ["M"], "model": ["m"]}', InvalidRequest, "^'model': an array has no place here$"),
        ('{"sequences": ["M"], "a": {"b": 1}}', InvalidRequest, "^'a': an object has no place here$"),
        ('{"sequences": ["M", "\\ud800"]}', MalformedBody, r"sequences\[1\].*half of a surrogate pair"),
        ('{"sequences": ["M"', MalformedBody, "^the end at character 18: ',' or ']' belongs here$"),
        ('{"sequences": ["M"]} {}', MalformedBody, "^'{' at character 21: the text should have ended$"),
        (">a\nMKTAY", MalformedBody, "^'>a' at character 0: the body is not JSON"),
        ('{"sequences": ["M\0"]}', MalformedBody, "^the body is no text: byte 17 is 0$"),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_json_that_says_something_else_is_refused(
    text: str, error: type[Exception], reason: str, step: int
) -> None:
    for method in ("options", "records"):
        with pytest.raises(error, match=reason):
            getattr(upload(text, "json", step), method)()


def test_options_are_few() -> None:
    many = {f"option {index}": index for index in range(MAX_OPTIONS)}
    assert upload(json.dumps({**many, "sequences": []}), "json").options() == many
    with pytest.raises(InvalidRequest, match="more than 100 options"):
        upload(json.dumps({**many, "one more": 1, "sequences": []}), "json").options()


@pytest.mark.parametrize(
    ("head", "forever", "error"),
    [
        (b'{"sequences": ["M", "', b"M", MalformedBody),
        (b'{"sequences": ["M", "', b"\\n", MalformedBody),
        (b'{"sequences": {"', b"p", MalformedBody),
        (b'{"', b"p", MalformedBody),
        (b'{"sequences": ', b"[", InvalidRequest),
        (b'{"model": ', b'{"a": ', InvalidRequest),
        (b'{"max_length": ', b"9", MalformedBody),
    ],
)
def test_json_without_an_end_is_refused_early(head: bytes, forever: bytes, error: type[Exception]) -> None:
    file = Endless(head, forever)
    with at_most(20), pytest.raises(error):
        Upload(file, "json", 10**9).options()
    assert file.num_read < 2 * MAX_CHARACTERS


# Memory


def write_body(path: Path, form: str, num_sequences: int) -> Kind:
    """MKTAY 72 times, so often."""
    sequence = "MKTAY" * 72
    with path.open("w") as file:
        if form == "fasta":
            file.writelines(f">p{index} text\n{sequence}\n" for index in range(num_sequences))
            return "fasta"
        if form == "object":
            entries = (f'"p{index}": "{sequence}",\n' for index in range(num_sequences))
            file.write('{"sequences": {')
            file.writelines(entries)
            file.write('"last": "M"}}')
        else:
            file.write('{"sequences": [')
            file.writelines(f'"{sequence}", ' for _ in range(num_sequences))
            file.write('"M"], "ids": [')
            file.writelines(f'"p{index}", ' for index in range(num_sequences))
            file.write('"last"]}')
    return "json"


@pytest.mark.parametrize("form", ["fasta", "object", "array"])
@pytest.mark.parametrize("is_gzip", [False, True])
def test_what_is_held_does_not_grow_with_the_body(form: str, is_gzip: bool, tmp_path: Path) -> None:
    """4 MB and 16 MB of text; blocks, and 0.5 MB for each igzip of the two that are read in step."""
    path = tmp_path / "body"
    for num_sequences in (10_000, 40_000):
        kind = write_body(path, form, num_sequences)
        if is_gzip:
            path.write_bytes(gzip.compress(path.read_bytes(), 1))
        with path.open("rb") as file, at_most(3 if is_gzip else 1.5):
            body = Upload(file, kind, 10**9)
            assert body.options() == {}
            assert sum(1 for _ in body.records()) == num_sequences + (kind == "json")

"""JSON in blocks says what it says in one piece, and what is no JSON, or no list of strings, is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, MalformedBody
from serving.json_reader import JsonReader

LIMIT = 1000


def blocks(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


def read(text: str, size: int = 7) -> list[tuple[str, Any]]:
    """Members in order; a list as its opening and what it holds."""
    reader, found = JsonReader(blocks(text, size), LIMIT), list[tuple[str, Any]]()
    for name, token in reader.members():
        if token in ("[", "{"):
            found.append((name, (token, list(chain.from_iterable(reader.batches(name, token))))))
        else:
            found.append((name, reader.option(name, token)))
    return found


def read_at_once(text: str) -> list[tuple[str, Any]]:
    """What `read` should say, by json.loads. ValueError for what it should refuse."""

    class Pairs(list[tuple[str, Any]]):
        pass

    def member(value: Any) -> Any:
        if isinstance(value, Pairs):
            if all(isinstance(item, str) for _, item in value):
                return "{", list(value)
        elif isinstance(value, list):
            if all(isinstance(item, str) for item in value):
                return "[", value
        elif not isinstance(value, float) or abs(value) < float("inf"):
            return value
        raise ValueError("something else")

    body = json.loads(text, object_pairs_hook=Pairs)
    if not isinstance(body, Pairs):
        raise ValueError("not an object")
    json.dumps(body, ensure_ascii=False).encode()  # halves of surrogate pairs
    return [(name, member(value)) for name, value in body]


VALID = ["{", '"a"', ":", "1", ",", '"b"', ":", "[", '"M"', ",", '"K"', ",", '"T"', "]", ",", '"c"', ":"]
VALID += ["{", '"x"', ":", '"A"', ",", '"y"', ":", '"Y"', "}", "}"]
PIECES = ["{", "}", "[", "]", ":", ",", '"', '"M"', '""', '"\\u0041"', '"\\ud83d\\ude00"', '"\\ud83d"', '"\\q"']
PIECES += ['"\\', "\\", " ", "\n", "\t", "\f", "\xa0", '"\n"', '"\x7fé😀"', '"\\\\"', '"\\""', "null", "nul"]
PIECES += ["true", "-0", "01", "1.5", "1.", "1e999", "-1E5", "NaN", "-Infinity", "٣", "/", "[]", "{}", "[1]"]


@given(
    st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 2), st.sampled_from(PIECES)), max_size=3),
    st.integers(1, 60),
)
def test_what_is_taken_is_what_json_loads_takes(changes: list[tuple[int, int, str]], size: int) -> None:
    pieces = list(VALID)
    for place, num_removed, piece in changes:
        pieces[place : place + num_removed] = [piece]
    text = "".join(pieces)
    try:
        expected = read_at_once(text)
    except ValueError:
        with pytest.raises((MalformedBody, InvalidRequest)):
            read(text, size)
    else:
        assert read(text, size) == expected


@given(
    st.lists(st.text(max_size=20)),
    st.lists(st.tuples(st.sampled_from(["", "p", "q", "\\", '"']), st.text(max_size=20))),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.integers(1, 200),
)
def test_any_strings_are_read_back_wherever_the_blocks_end(
    strings: list[str], pairs: list[tuple[str, str]], indent: int | None, ascii_only: bool, size: int
) -> None:
    def written(value: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    members = ", ".join(f"{written(name)} : {written(text)}" for name, text in pairs)
    text = f' {{"a":{written(strings)},\n"b":{{{members}}}, "c" : {written("".join(strings)[:100])} }}\n'
    assert read(text, size) == [("a", ("[", strings)), ("b", ("{", pairs)), ("c", "".join(strings)[:100])]


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("", MalformedBody, r"the end at character 0: the body is not JSON \(Expecting value\)"),
        ("hello", MalformedBody, r"'hello' at character 0: the body is not JSON"),
        ("\ufeff{}", MalformedBody, r"'\\ufeff' at character 0"),
        ("[1]", InvalidRequest, "the body: an array has no place here"),
        ('"M"', InvalidRequest, "the body is not an object"),
        ('{"a": nul}', MalformedBody, "'nul' at character 6: 'a' is not JSON"),
        ('{"a": 1', MalformedBody, "the end at character 7: ',' or '}' belongs here"),
        ('{"a": 1}x', MalformedBody, "'x' at character 8: the text should have ended"),
        ('{"a": 1 "b"}', MalformedBody, """'"b"' at character 8: ',' or '}' belongs here"""),
        ('{"a" 1}', MalformedBody, "'1' at character 5: ':' belongs here"),
        ("{1: 2}", InvalidRequest, "a member's name: 1 is not a string"),
        ('{"a": 1,}', MalformedBody, "'}' at character 8: a member's name is not JSON"),
        ('{"a": ["M",]}', MalformedBody, r"']' at character 11: a\[1\] is not JSON"),
        ('{"a": ["M", "K", 7]}', InvalidRequest, r"a\[2\]: 7 is not a string"),
        ('{"a": ["M", "K", null]}', InvalidRequest, r"a\[2\]: null is not a string"),
        ('{"a": ["M", "K", ["M"]]}', InvalidRequest, r"a\[2\]: an array has no place here"),
        ('{"a": ["M", {"M": "K"}]}', InvalidRequest, r"a\[1\]: an object has no place here"),
        ('{"a": {"x": "M", "y": 7}}', InvalidRequest, r"a\[1\]: 7 is not a string"),
        ('{"a": {"x": "M", "y"}}', MalformedBody, "'}' at character 20: ':' belongs here"),
        ('{"a": ["M", "K", "\\ud800"]}', MalformedBody, r"character 17: a\[2\] .*half of a surrogate pair"),
        ('{"a": ["M", "\\udc00\\ud800", "K"]}', MalformedBody, r"a\[1\] .*half of a surrogate pair"),
        ('{"\\ud800": 1}', MalformedBody, "a member's name .*half of a surrogate pair"),
        ('{"a": ["M", "K\n", "T"]}', MalformedBody, r"character 12: a\[1\] .*Invalid control character"),
        ('{"a": ["M", "K\\\n"]}', MalformedBody, r"character 12: a\[1\] .*Invalid .escape"),
        ('{"a": \f1}', MalformedBody, r"'\\x0c1' at character 6: 'a' is not JSON"),
        ('{"a": ["M", "K]}', MalformedBody, "the string at character 12 has no end"),
        ('{"a": NaN}', InvalidRequest, "'a': NaN is no finite number"),
        ('{"a": 1e999}', InvalidRequest, "'a': 1e999 is no finite number"),
        ('{"a": ' + "1" * 33 + "}", MalformedBody, "'a' has more than 32 characters"),
        ('{"a": ["M", ' + "1" * 33 + "]}", MalformedBody, r"a\[1\] has more than 32 characters"),
        ('{"a": "' + "x" * 1000 + '"}', MalformedBody, "the string at character 6 is longer than 1000"),
        ('{"a": ["M",  "' + "x" * 5000, MalformedBody, "the string at character 13 is longer than 1000"),
        ('{"a": ' + "x" * 5000, MalformedBody, "the string at character 6 is longer than 1000"),
        ('{"a": ' + "[" * 5000, InvalidRequest, r"a\[0\]: an array has no place here"),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, str) else "",
)
@pytest.mark.parametrize("size", [1, 7, 400])
def test_what_is_wrong_is_named_with_its_place(text: str, error: type[Exception], reason: str, size: int) -> None:
    with pytest.raises(error, match=reason) as raised:
        read(text, size)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [1, 7, 500])
def test_a_string_is_as_long_as_allowed_wherever_the_blocks_end(size: int) -> None:
    longest = "x" * (LIMIT - 2)  # and its quotes
    assert read(f'{{"a": ["M", "{longest}", "K"]}}', size) == [("a", ("[", ["M", longest, "K"]))]
    with pytest.raises(MalformedBody, match="the string at character 12 is longer than 1000 characters"):
        read(f'{{"a": ["M", "{longest}x", "K"]}}', size)


def test_a_name_or_a_text_that_is_no_option_for_its_length_is_refused() -> None:
    def read_long(text: str) -> Any:
        return [
            reader.option(name, token)
            for reader in [JsonReader(iter([text]), 10_000)]
            for name, token in reader.members()
        ]

    assert read_long(f'{{"{"n" * 1000}": "{"x" * 998}"}}') == ["x" * 998]
    with pytest.raises(InvalidRequest, match=r"'n{40}'... is longer than 1000 characters"):
        read_long(f'{{"{"n" * 1001}": 1}}')
    with pytest.raises(InvalidRequest, match="'n' is longer than 1000 characters"):
        read_long(f'{{"n": "{"x" * 999}"}}')


def test_white_space_has_no_limit_and_is_not_held() -> None:
    held = []

    def text() -> Iterator[str]:
        yield '{"a": ["M",'
        for _ in range(100):
            yield " \n" * 100
            held.append(len(reader._text))
        yield "7]}"

    reader = JsonReader(text(), LIMIT)
    name, token = next(reader.members())
    with pytest.raises(InvalidRequest, match=r"a\[1\]: 7 is not a string"):
        list(reader.batches(name, token))
    assert max(held) < 300  # a block, and the comma before it

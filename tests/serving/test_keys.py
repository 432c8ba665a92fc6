"""Keys and who holds them: what is taken, what is refused, and files that change while they are in use."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from serving import keys as module
from serving.keys import Caller, Keys

ALICE, BOB, EVE = "alice-key-0123456789", "bobs-key-9876543210!", "eves-key-5555555555"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys"
    found.write_text(f"alice:{ALICE}\n")
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at for every request."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_whose_a_key_is() -> None:
    keys = Keys("API_KEYS", f"alice:{ALICE}, bob:{BOB},")
    assert (keys.name_of(ALICE), keys.name_of(BOB)) == ("alice", "bob")
    assert (keys.is_set, keys.count) == (True, 2)


@pytest.mark.parametrize(
    "key",
    ["", "alice", ALICE[:-1], ALICE + "x", ALICE.upper(), f"alice:{ALICE}", f" {ALICE}", "\udcff\udcfe", "é"],
)
def test_what_is_not_exactly_a_key_is_nobodys(key: str) -> None:
    assert Keys("API_KEYS", f"alice:{ALICE}").name_of(key) is None


def test_without_keys_none_is_asked_for() -> None:
    assert Keys("API_KEYS").is_set is False


def test_a_name_may_have_two_keys_so_that_one_can_be_replaced(path: Path) -> None:
    path.write_text(f"# of the laboratory\n\n  alice:{ALICE}  \nalice:{BOB}\r\n")
    keys = Keys("API_KEYS", path=path)
    assert [keys.name_of(key) for key in (ALICE, BOB)] == ["alice", "alice"]
    assert keys.count == 2


def test_a_key_may_hold_colons_and_in_a_file_commas(path: Path) -> None:
    path.write_text("alice:0123456789:0123,456789\n")
    assert Keys("API_KEYS", path=path).name_of("0123456789:0123,456789") == "alice"


def test_the_variable_and_the_file_are_both_taken(path: Path) -> None:
    keys = Keys("API_KEYS", f"bob:{BOB}", path)
    assert (keys.name_of(ALICE), keys.name_of(BOB), keys.count) == ("alice", "bob", 2)


def test_a_file_of_windows_is_read_too(path: Path) -> None:
    path.write_bytes(f"\ufeffalice:{ALICE}\r\n".encode())
    assert Keys("API_KEYS", path=path).name_of(ALICE) == "alice"


@pytest.mark.parametrize("listed", [" ", ",", " , "])
def test_a_variable_without_a_key_in_it_is_refused_and_does_not_open_the_service(listed: str) -> None:
    with pytest.raises(ValueError, match=r"^API_KEYS: it is set, and holds no name:key$"):
        Keys("API_KEYS", listed)


def test_an_empty_file_lets_nobody_in(path: Path) -> None:
    path.write_text("# nobody yet\n")
    keys = Keys("API_KEYS", path=path)
    assert keys.is_set
    assert keys.name_of(ALICE) is None


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (ALICE, "is not of the form name:key"),
        (f":{ALICE}", "is not of the form name:key"),
        (f"al ice:{ALICE}", "is not of the form name:key"),
        (f"al\nice:{ALICE}", "is not of the form name:key"),
        (f"alicé:{ALICE}", "is not of the form name:key"),
        (f"{'a' * 65}:{ALICE}", "is not of the form name:key"),
        (f"anonymous:{ALICE}", "is not of the form name:key"),
        ("alice:0123456789abcde", "has a key that is not 16 printable characters or more"),
        ("alice:", "has a key that is not 16 printable characters or more"),
        ("alice:0123456789 0123456789", "has a key that is not 16 printable characters or more"),
        ("alice:0123456789é0123456789", "has a key that is not 16 printable characters or more"),
        ("alice:0123456789\x070123456789", "has a key that is not 16 printable characters or more"),
    ],
)
def test_an_entry_that_is_wrong_is_told_by_its_number(entry: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^API_KEYS: entry 2 {reason}$"):
        Keys("API_KEYS", f"bob:{BOB},{entry}")


def test_two_names_cannot_have_one_key() -> None:
    with pytest.raises(ValueError, match=r"^API_KEYS: entry 2 has the key of another name$"):
        Keys("API_KEYS", f"alice:{ALICE},bob:{ALICE}")


@pytest.mark.parametrize(
    "listed", [f"{ALICE}:alice", f"alice:{ALICE},{ALICE}", f"alice:{ALICE},bob:{ALICE}", ALICE]
)
def test_no_message_shows_a_key_even_where_name_and_key_are_the_wrong_way_round(listed: str) -> None:
    with pytest.raises(ValueError, match="API_KEYS") as error:
        Keys("API_KEYS", listed)
    assert ALICE not in str(error.value)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=f"^API_KEYS_FILE: {path} cannot be read"):
            Keys("API_KEYS", path=path)


def test_a_file_that_is_no_text_stops_the_start(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="cannot be read"):
        Keys("API_KEYS", path=path)


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_written_anew_counts_at_once(path: Path) -> None:
    keys = Keys("API_KEYS", path=path)
    path.write_text(f"bob:{BOB}\n")
    assert (keys.name_of(ALICE), keys.name_of(BOB)) == (None, "bob")


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_replaced_counts_at_once(path: Path) -> None:
    """As editors, configuration management and Kubernetes do it: another file under the same name."""
    keys = Keys("API_KEYS", path=path)
    other = path.with_name("new")
    other.write_text(f"bob:{BOB}\n")
    other.replace(path)
    assert (keys.name_of(ALICE), keys.name_of(BOB)) == (None, "bob")


@pytest.mark.usefixtures("at_once")
def test_a_change_of_the_same_size_at_the_same_time_is_seen(path: Path) -> None:
    """As a copy that keeps the time of its source makes it."""
    keys, times = Keys("API_KEYS", path=path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text(f"alice:{ALICE[::-1]}\n")
    os.utime(path, ns=times)
    assert (keys.name_of(ALICE), keys.name_of(ALICE[::-1])) == (None, "alice")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("how", ["deleted", "wrong", "no text", "a folder"])
def test_a_file_that_goes_wrong_leaves_the_keys_and_is_told_of_once(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys("API_KEYS", path=path)
    path.unlink()
    match how:
        case "wrong":
            path.write_text(f"{EVE}\n")
        case "no text":
            path.write_bytes(b"\xff")
        case "a folder":
            path.mkdir()
    for _ in range(3):
        assert (keys.name_of(ALICE), keys.name_of(EVE)) == ("alice", None)
    (told,) = complaints(caplog)
    assert told.startswith("API_KEYS_FILE: ")
    assert told.endswith("; the keys stay as they were")
    assert EVE not in caplog.text


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_mended_counts_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys("API_KEYS", path=path)
    for _ in range(2):
        path.unlink()
        assert keys.name_of(ALICE) == "alice"
        path.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
        assert keys.name_of(BOB) == "bob"
    assert len(complaints(caplog)) == 2
    assert ALICE not in caplog.text


def test_a_file_is_not_looked_at_for_every_request(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 3600.0)
    keys = Keys("API_KEYS", path=path)
    assert keys.name_of(ALICE) == "alice"  # and looks
    path.write_text(f"bob:{BOB}\n")
    assert keys.name_of(ALICE) == "alice"


def test_no_key_is_held(path: Path) -> None:
    keys = Keys("API_KEYS", f"bob:{BOB}", path)
    held = repr(vars(keys))
    assert ALICE not in held
    assert BOB not in held


def test_whoever_asks_without_a_key_is_no_operator() -> None:
    assert Caller() == Caller("anonymous", is_admin=False)

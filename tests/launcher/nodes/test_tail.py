"""Reading along with a file that grows, slower than it does."""

from pathlib import Path

from parctl.launcher.nodes.tail import MOST_BYTES, MOST_LEFT_BYTES, Tail


def test_lines_come_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert list(tail.lines()) == []
    path.write_text("one\ntwo\r\nthr")
    assert list(tail.lines()) == ["one", "two"]
    assert list(tail.lines()) == []
    with path.open("a") as file:
        file.write("ee\nfour")
    assert list(tail.lines()) == ["three"]
    assert list(tail.lines(last=True)) == ["four"]
    assert list(tail.lines(last=True)) == []


def test_no_more_than_a_piece_is_held_at_a_time(tmp_path: Path) -> None:
    path, line = tmp_path / "log", "x" * 99
    path.write_text(f"{line}\n" * 20_000)
    tail = Tail(path)

    first = list(tail.pieces())
    rest = list(tail.pieces(last=True))

    assert len(first) == 1 and tail.has_more is False
    sizes = [sum(len(text) + 1 for text in piece) for piece in (*first, *rest)]
    assert max(sizes) <= MOST_BYTES + len(line)
    assert sum(sizes) == 20_000 * 100
    assert {text for piece in (*first, *rest) for text in piece} == {line}


def test_a_line_without_an_end_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\x00" * (2 * MOST_BYTES + 5))
    lines = list(Tail(path).lines(last=True))
    assert [len(line) for line in lines] == [MOST_BYTES, MOST_BYTES, 5]


def test_what_a_flood_left_is_told_and_the_newest_of_it_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    count = MOST_LEFT_BYTES // 100 + 10_000
    path.write_text("".join(f"{number:099}\n" for number in range(count)))

    lines = list(Tail(path).lines(last=True))

    assert lines[0].startswith(f"({count * 100 - MOST_LEFT_BYTES:,} bytes are left out")
    assert lines[-1] == f"{count - 1:099}"
    assert MOST_LEFT_BYTES // 100 <= len(lines) <= MOST_LEFT_BYTES // 100 + 2

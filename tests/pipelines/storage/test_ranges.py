"""A remote file in ranges: the bytes are those of the file, and only what is read is fetched."""

from collections.abc import Iterator

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage import ranges
from pipelines.storage.ranges import BLOCK_BYTES, MOST_BYTES, RangeFile, Traffic

SIZE = 3 * 2**20 + 12_345
CONTENT = bytes(i * i % 251 for i in range(2**16)) * (SIZE // 2**16 + 1)
CONTENT = CONTENT[:SIZE]


@pytest.fixture(scope="module", autouse=True)
def stored() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/ranges/x", CONTENT)
    yield
    memory.rm("/ranges", recursive=True)


def opened() -> RangeFile:
    ranges.taken()
    return RangeFile("memory://ranges/x")


@given(
    st.lists(
        st.tuples(
            st.integers(0, SIZE + 10), st.integers(-1, 2**20), st.integers(0, SIZE), st.booleans()
        ),
        max_size=8,
    )
)
def test_what_is_read_is_what_is_there(reads: list[tuple[int, int, int, bool]]) -> None:
    with opened() as file:
        for position, size, end, expects in reads:
            if expects:
                file.expect(position, end)
            assert file.seek(position) == position
            expected = CONTENT[position:] if size < 0 else CONTENT[position : position + size]
            assert file.read(size) == expected
            assert file.tell() == max(position, min(SIZE, position + len(expected)))
        traffic = ranges.taken()
        assert traffic.num_bytes <= SIZE, "no block is fetched twice"
        assert ranges.taken() == Traffic()


def test_reads_that_follow_each_other_fetch_ahead() -> None:
    with opened() as file:
        while file.read(1000):
            pass
        # 1 + 2 + 4 + 8 blocks of 256 KiB hold 3.75 MiB; and one request for the size.
        assert ranges.taken().requests == 1 + 4


def test_what_is_expected_comes_in_one_request() -> None:
    with opened() as file:
        file.expect(10, 2**21)
        file.seek(100)
        for _ in range(200):
            file.read(1000)
        assert (ranges.taken().requests, SIZE < MOST_BYTES) == (2, True)


def test_what_lies_apart_is_fetched_alone() -> None:
    with opened() as file:
        for position in (10, 2 * 2**20, 2**20):
            file.seek(position)
            file.read(10)
        assert ranges.taken().num_bytes == 3 * BLOCK_BYTES


def test_content_that_is_passed_over_is_zeros_until_it_is_read_again() -> None:
    start, end = BLOCK_BYTES - 100, 5 * BLOCK_BYTES + 7
    with opened() as file:
        file.seek(2 * BLOCK_BYTES)
        file.read(10)
        ranges.taken()
        with file.without_content(start, end):
            file.seek(0)
            seen = file.read(6 * BLOCK_BYTES)
        passed_over = [1, 3, 4]
        for block in range(6):
            span = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
            expected = bytes(BLOCK_BYTES) if block in passed_over else CONTENT[span]
            assert seen[span] == expected, block
        assert ranges.taken().num_bytes == 2 * BLOCK_BYTES
        file.seek(0)
        assert file.read() == CONTENT


def test_the_whole_file_is_fetched_for_readers_of_a_descriptor() -> None:
    with opened() as file:
        file.fetch_all()
        with open(f"/dev/fd/{file.fileno()}", "rb") as copy:
            assert copy.read() == CONTENT


def test_errors_of_storage_are_os_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        RangeFile("memory://ranges/gone")

    class ClientError(Exception):
        pass

    def refuse(*_: object, **__: object) -> bytes:
        raise ClientError("SlowDown")

    with opened() as file:
        monkeypatch.setattr(type(file._files), "cat_file", refuse)
        with pytest.raises(OSError, match="ClientError: SlowDown"):
            file.read(10)


def test_lack_of_memory_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise MemoryError

    with opened() as file:
        monkeypatch.setattr(type(file._files), "cat_file", full)
        with pytest.raises(MemoryError):
            file.read(10)


def test_a_file_that_became_shorter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as file:
        monkeypatch.setattr(type(file._files), "cat_file", lambda *_, **__: b"short")
        with pytest.raises(
            OSError, match="expected 262144 bytes at 0, got 5; the file has changed"
        ):
            file.read(10)


def test_a_sign_of_life_is_given_after_each_request() -> None:
    signs: list[int] = []
    with RangeFile("memory://ranges/x", lambda: signs.append(1)) as file:
        file.fetch_all()
    assert len(signs) == -(-SIZE // ranges.MOST_BYTES)

"""The split of the standard library: whole packages, with their tests, on one side only."""

from pathlib import Path

import pytest

from torch_cpullm.demo import corpus

HELD_OUT = (
    "json/__init__.py",
    "json/tool.py",
    "tomllib/_parser.py",
    "concurrent/futures/thread.py",
    "test/test_json/test_scanner.py",
    "test/test_urllib.py",
    "test/test_logging.py",
    "test/test_concurrent_futures/test_wait.py",
)
TRAIN = ("abc.py", "asyncio/events.py", "test/test_abc.py", "test/test_asyncio/test_events.py", "jsonish.py")
SKIPPED = ("encodings/utf_8.py", "site-packages/json/other.py", "pydoc_data/topics.py", "json/__pycache__/x.py")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in HELD_OUT + TRAIN + SKIPPED:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {name}\nvalue = 1\n", encoding="utf-8")
    (tmp_path / "large.py").write_text("x = 1\n" * corpus.MAX_FILE_BYTES, encoding="utf-8")
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*- \xe9\n".encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_packages_and_their_tests(name: str) -> None:
    assert corpus.is_held_out(Path(name))


@pytest.mark.parametrize("name", TRAIN)
def test_all_else_is_trained_on(name: str) -> None:
    assert not corpus.is_held_out(Path(name))


def test_split_is_disjoint_and_complete(library: Path) -> None:
    read = corpus.read_stdlib(library)
    assert not set(read.train) & set(read.held_out)
    assert {text.split()[1] for text in read.train} == set(TRAIN)
    assert {text.split()[1] for text in read.held_out} == set(HELD_OUT)
    assert set(read.held_out_files) == set(HELD_OUT)


def test_digest_names_the_content(library: Path) -> None:
    before = corpus.read_stdlib(library)
    assert corpus.read_stdlib(library) == before
    (library / "abc.py").write_text("# abc.py\nvalue = 2\n", encoding="utf-8")
    assert corpus.read_stdlib(library).digest != before.digest
    assert before.digest[:12] in repr(before)


def test_folder_without_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--stdlib"):
        corpus.read_stdlib(tmp_path)


def test_excerpt_takes_whole_lines_of_every_file() -> None:
    texts = tuple(f"name = {letter!r}\n" * 100 for letter in "abc")
    taken = corpus.excerpt(texts, 300)
    assert len(taken) <= 300 + len(texts)
    for letter in "abc":
        assert f"name = {letter!r}\n" in taken
    assert all(line in {"", "name = 'a'", "name = 'b'", "name = 'c'"} for line in taken.splitlines())

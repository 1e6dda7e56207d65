"""What a user sees of a step while it works."""

import io
import itertools
import logging

import pytest

from pipelines import logs, terminal
from pipelines.terminal import StepLine, due, duration, progress_text


def test_progress_says_what_is_left() -> None:
    assert progress_text({"ok": 8, "failed": 2}, 110, 5.0) == "10/110, 2/s, 50 s left (2 failed)"
    assert progress_text({}, 110, 5.0) == "0/110"
    assert progress_text({"ok": 1}, 90_001, 2.0) == "1/90,001, 0.5/s, 2 d 2 h left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3600, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_lines_of_a_log_become_rare() -> None:
    assert list(itertools.islice(due(False), 7)) == [5, 10, 20, 40, 80, 140, 200]
    assert list(itertools.islice(due(True), 4)) == [5, 10, 15, 20]


def test_a_log_gets_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with StepLine("describe", 10, details=False) as line:
        for second in range(1, 12):
            line.show({"ok": second // 2}, second, "decode 0.9 busy", "step 3")
    assert caplog.messages == ["describe 2/10, 0.4/s, 20 s left", "describe 5/10, 0.5/s, 10 s left"]
    caplog.clear()
    with StepLine("fit", 2, details=True) as line:
        line.show({"ok": 1}, 5.0, "fit 0.9 busy", "vlad step 3")
    assert caplog.messages == ["fit 1/2, 0.2/s, 5 s left; fit 0.9 busy; vlad step 3"]


class Terminal(io.StringIO):
    """A terminal of a hundred columns."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", shown)
    handler = logs._ToErrors()
    with StepLine("describe", 10, details=False) as line:
        line.show({"ok": 4, "failed": 1}, 5.0, "", "")
        handler.emit(logging.makeLogRecord({"msg": "a warning", "levelno": logging.WARNING}))
    text = shown.getvalue()
    assert "describe" in text
    assert "5/10, 1/s, 5 s left (1 failed)" in text
    # Above the bar, as a line of its own, and the bar is wiped at the end.
    assert "a warning\n" in text
    assert text.rstrip("\n").endswith(("\x1b[2K", "\x1b[1A\x1b[2K", "\x1b[?25h"))


def test_only_a_terminal_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert not terminal.is_terminal()

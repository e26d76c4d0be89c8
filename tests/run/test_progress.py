import io
import re

from keepset.run.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_files_get_one_closing_line():
    stream = io.StringIO()
    progress = Progress("m c static", 100, stream)
    progress.advance(50, "magnitude 0.9")
    assert stream.getvalue() == ""
    progress.close()
    assert re.fullmatch(
        r"m c static: done, 50 tokens in 0:00 \(\d+ tokens/s\)\n", stream.getvalue()
    )


def test_terminals_get_a_line_rewritten_in_place():
    stream = Terminal()
    progress = Progress("m c static", 100, stream)
    progress.advance(25, "magnitude 0.9")
    assert re.search(
        r"\rm? ?.*m c static: magnitude 0.9, 25%, \d+ tokens/s, 0:00 left", stream.getvalue()
    )
    assert "\n" not in stream.getvalue()
    progress.close()
    assert stream.getvalue().count("\n") == 1


def test_the_log_gets_every_setting_once(caplog):
    progress = Progress("m", 4, io.StringIO())
    with caplog.at_level("INFO", logger="keepset"):
        for setting in ("dense", "dense", "static"):
            progress.advance(1, setting)
    assert [record.message.split(",")[0] for record in caplog.records] == ["m: dense", "m: static"]

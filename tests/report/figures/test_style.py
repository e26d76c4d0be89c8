from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from keepset.report.figures import static_dynamic, style


def test_save_is_the_same_every_time(study, tmp_path):
    small = study[study["corpus"] == "docs"]
    first = style.save(static_dynamic.draw(small), tmp_path / "a")
    second = style.save(static_dynamic.draw(small), tmp_path / "b")
    assert [path.name for path in first] == ["a.png", "a.svg", "a.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"<dc:date>" not in first[1].read_bytes()
    assert b"CreationDate" not in first[2].read_bytes()


def test_png_has_200_dots_per_inch(tmp_path):
    png = style.save(Figure(figsize=(2, 1)), tmp_path / "x")[0].read_bytes()
    assert int.from_bytes(png[16:20]) == 400
    assert int.from_bytes(png[20:24]) == 200


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = style.save(Figure(figsize=(1, 1)), tmp_path / "x")[0]
    before = path.read_bytes()
    figure = Figure(figsize=(1, 1))
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        style.save(figure, tmp_path / "x")
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_leaves_matplotlib_as_it_was(study):
    before = dict(mpl.rcParams)
    static_dynamic.draw(study[study["corpus"] == "docs"])
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("high", [1.0, 1.004, 1.2, 3.9, 30.0, 7e3, 4e6])
def test_ratio_axes_can_be_read_at_any_range(high):
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [1.0, high])
    style.ratio_axes([ax])
    low, top = ax.get_ylim()
    shown = [tick for tick in ax.get_yticks() if low <= tick <= top]
    assert 2 <= len(shown) <= 8
    assert len({style._plain(tick, 0) for tick in shown}) == len(shown)


def place(keys):
    """(row, column) on the page of every panel."""
    _, axes = style.panels(keys)
    spec = {key: ax.get_subplotspec() for key, ax in axes.items()}
    return {key: (own.rowspan.start, own.colspan.start) for key, own in spec.items()}


def test_a_whole_grid_of_panels_keeps_its_shape():
    keys = [(row, column) for row in "ab" for column in "xy"]
    assert place(keys) == {
        ("a", "x"): (0, 0),
        ("a", "y"): (0, 1),
        ("b", "x"): (1, 0),
        ("b", "y"): (1, 1),
    }


def test_single_panels_share_a_row():
    keys = [*((row, "x") for row in "abcd"), ("e", "x"), ("e", "y"), ("e", "z")]
    found = place(keys)
    assert [found[row, "x"] for row in "abcd"] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [found["e", column] for column in "xyz"] == [(2, 0), (2, 1), (2, 2)]


def test_only_panels_of_one_row_share_their_y_axis():
    _, axes = style.panels([("a", "x"), ("b", "x"), ("b", "y")])
    axes["b", "x"].set_ylim(0, 5)
    assert axes["b", "y"].get_ylim() == (0, 5)
    assert axes["a", "x"].get_ylim() == (0, 1)

from __future__ import annotations

import matplotlib as mpl
import pytest
from clean import titles
from matplotlib.figure import Figure

from keepset.report.figures import dial, scores, static_dynamic, style


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


@pytest.mark.parametrize("figure", [static_dynamic, dial, scores])
def test_pretrained_models_stand_first(study, figure):
    study = study.sort_values("origin", ascending=False, kind="stable")
    assert study["model"].iloc[0] == "relu"
    names = [title.split(",")[0] for title in titles(figure.draw(study))]
    assert list(dict.fromkeys(names)) == ["smollm2-135m", "relu", "swiglu"]


def test_leaves_matplotlib_as_it_was(study):
    before = dict(mpl.rcParams)
    static_dynamic.draw(study[study["corpus"] == "docs"])
    assert dict(mpl.rcParams) == before

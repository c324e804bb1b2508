import sys
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from genenv.data import digits
from genenv.viz.frames import DECIDED, OPEN, draw_frame, show_frames


def test_a_frame_is_the_enlarged_image_beside_its_open_places():
    image = digits()[0][0]
    undecided = torch.zeros(4, 4)
    undecided[1, 2] = 1
    frame = draw_frame(image, undecided)
    assert frame.shape == (256, 516, 3)
    assert frame.dtype == np.uint8
    grey = (image[0] * 255).round().byte().numpy()
    assert (frame[16::32, 16:256:32] == grey[..., None]).all()
    mask = frame[32::64, 260 + 32 :: 64]
    amber = (mask == (OPEN * 255).round().byte().numpy()).all(-1)
    assert np.argwhere(amber).tolist() == [[1, 2]]
    assert ((mask == (DECIDED * 255).round().byte().numpy()).all(-1) | amber).all()


@pytest.mark.parametrize(
    ("shape", "frame_shape"),
    [((3, 28, 28), (252, 508, 3)), ((1, 16, 8), (256, 260, 3)), ((3, 512, 512), (512, 1028, 3))],
)
def test_a_frame_keeps_the_proportions_of_its_image(shape, frame_shape):
    assert draw_frame(torch.zeros(shape), torch.zeros(4, 4)).shape == frame_shape


def test_a_frame_of_a_damaged_image_is_black_where_it_is_not_a_number():
    frame = draw_frame(torch.full((1, 8, 8), torch.nan), torch.zeros(4, 4))
    assert (frame[:, :256] == 0).all()


def test_frames_are_shown_below_each_other_in_a_notebook(monkeypatch):
    shown = []
    notebook = SimpleNamespace(clear_output=lambda wait: shown.clear(), display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    frames = tuple(np.full((8, 12, 3), i, np.uint8) for i in range(6))
    show_frames(frames)
    show_frames(frames)
    assert len(shown) == 1
    assert np.asarray(shown[0])[::8, 0, 0].tolist() == [0, 1, 2, 3]


def test_frames_are_shown_in_one_window_that_is_used_again(monkeypatch):
    pauses = []
    monkeypatch.setattr(plt, "get_backend", lambda: "qtagg")
    monkeypatch.setattr(plt, "pause", pauses.append)
    try:
        for value in (10, 20):
            show_frames((np.full((8, 16, 3), value, np.uint8),))
        assert plt.get_figlabels() == ["genenv"]
        [axes] = plt.figure("genenv").axes
        assert axes.images[0].get_array().max() == 20
        assert len(pauses) == 2
    finally:
        plt.close("all")


def test_nothing_is_shown_without_a_display(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "agg")
    show_frames((np.zeros((8, 16, 3), np.uint8),))
    assert plt.get_fignums() == []


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[viz\]'"):
        show_frames((np.zeros((8, 16, 3), np.uint8),))

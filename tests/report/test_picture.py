import numpy as np
import pytest
from sklearn.decomposition import PCA

from unlearn.report.picture import MOST, draw_picture, project, read_picture


def clouds(seed=0, n=40, d=8):
    rng = np.random.default_rng(seed)
    shift = np.zeros(d)
    shift[0] = 5.0
    return rng.normal(size=(n, d)), rng.normal(size=(n + 5, d)) + shift, rng.normal(size=(7, d)), rng.normal(size=(7, d)) + shift


def test_the_plane_is_that_of_principal_components_of_the_anchors():
    known, unknown, before, after = clouds()
    picture = project(known, unknown, before, after)
    pca = PCA(2).fit(np.concatenate([known, unknown]))
    assert picture.shares == pytest.approx(tuple(pca.explained_variance_ratio_))
    for points, group in ((picture.known, known), (picture.before, before), (picture.after, after)):
        assert np.abs(points) == pytest.approx(np.abs(pca.transform(group)))
    assert picture.unknown[:, 0].mean() > picture.known[:, 0].mean()


def test_unknown_is_to_the_right_whatever_the_sign():
    known, unknown, before, after = clouds()
    mirrored = project(-known, -unknown, -before, -after)
    assert mirrored.unknown[:, 0].mean() > mirrored.known[:, 0].mean()


@pytest.mark.parametrize("broken", ["empty", "nan", "width", "flat"])
def test_no_picture_of_too_little(broken):
    known, unknown, before, after = clouds()
    if broken == "empty":
        before = before[:0]
    elif broken == "nan":
        after = after * np.nan
    elif broken == "width":
        after = after[:, :3]
    else:
        known, unknown, before, after = (group[:, :1] for group in (known, unknown, before, after))
    assert project(known, unknown, before, after) is None


def test_damaged_files_give_no_picture(tmp_path):
    path = tmp_path / "activations.npz"
    assert read_picture(path) is None
    path.write_bytes(b"PK torn")
    assert read_picture(path) is None
    np.savez(path, known_ND=np.zeros((3, 4)))
    assert read_picture(path) is None


def test_every_group_is_drawn_and_big_ones_are_thinned():
    known, unknown, before, after = clouds(n=MOST + 200)
    figure = draw_picture(project(known, unknown, before, after), "a run")
    ax = figure.axes[0]
    sizes = [len(collection.get_offsets()) for collection in ax.collections if len(collection.get_offsets()) > 1]
    assert sizes == [MOST, MOST, 7, 7]
    assert {text.get_text() for text in ax.texts} == {"known", "unknown", "target before", "target after"}
    assert "first principal component" in ax.get_xlabel()
    low, high = ax.get_ylim()
    assert all(low <= text.get_position()[1] <= high for text in ax.texts)


def test_targets_of_different_numbers_get_no_lines():
    known, unknown, before, after = clouds()
    with_lines = draw_picture(project(known, unknown, before, after), "a")
    without = draw_picture(project(known, unknown, before, after[:3]), "a")
    assert len(without.axes[0].collections) == len(with_lines.axes[0].collections) - 1

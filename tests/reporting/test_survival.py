import base64
import io

import numpy as np
import pytest
from PIL import Image

from crosspruner.reporting.survival import (
    PAGE_PIXELS,
    data_uri,
    shrink,
    survival_map,
    survival_maps,
)


def opacity(uri: str) -> np.ndarray:
    """Opacity of each pixel, 0 to 1, as a browser would see it."""
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.array(Image.open(io.BytesIO(raw)).convert("RGBA"))[..., 3] / 255


def test_picture_is_the_mask():
    mask = np.array([[1, 0, 1], [0, 0, 1]])
    picture = survival_map("conv", mask)
    assert opacity(picture.image).tolist() == mask.tolist()
    assert picture.kept == 0.5
    assert picture.idle_inputs == 1
    assert picture.alt == "conv: 50.0% of 2 x 3 groups survive, 1 input groups unused"


def test_shares_become_grey_levels():
    shares = np.linspace(0, 1, 16).reshape(2, 8)
    assert np.allclose(opacity(data_uri(shares)), shares, atol=1 / 255)


def test_shrink_by_hand():
    share = np.array([[1, 1, 0, 0], [1, 1, 0, 1]], dtype=float)
    assert shrink(share, 8) is share
    assert shrink(share, 4).tolist() == [[1, 0], [1, 0.5]]
    assert shrink(share, 2).tolist() == [[1, 0.25]]
    assert shrink(np.ones((5, 3)), 1).tolist() == [[1.0]]


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (4096, 3136), (513, 65)])
def test_large_masks_stay_small(shape):
    share = shrink(np.ones(shape, dtype=np.float32), 1 << 14)
    assert share.size <= max(1 << 14, 1)
    assert np.allclose(share, 1)


def test_maps_follow_the_network_and_share_the_budget():
    rng = np.random.default_rng(0)
    masks = {f"layer{i}": rng.random((512, 256)) < 0.5 for i in (2, 0, 1)}
    maps = survival_maps(masks, ["layer0", "layer1", "absent"])
    assert [m.layer for m in maps] == ["layer0", "layer1", "layer2"]
    many = survival_maps({f"l{i}": masks["layer0"] for i in range(100)})
    # four bits a pixel, four base64 characters for three bytes
    assert sum(len(m.image) for m in many) < PAGE_PIXELS * 0.5 * 4 / 3 * 1.2

"""The judge of generated pictures knows every scene again, from its pixels and from its VQ codes' blocks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.sample.scenes import Scene, look, shuffled_scenes


@pytest.mark.parametrize("scene", shuffled_scenes(0), ids=lambda scene: scene.caption)
def test_every_scene_is_known_again_sharp_and_in_blocks(scene: Scene) -> None:
    picture = scene.draw()
    assert look(np.asarray(picture)) == scene
    blocks = picture.resize((24, 24), Image.Resampling.BOX).resize((384, 384), Image.Resampling.NEAREST)
    assert look(np.asarray(blocks)) == scene


def test_a_picture_without_a_figure_shows_none() -> None:
    assert look(np.full((384, 384, 3), 128, np.uint8)) is None

"""What a model is, in JSON and back."""

import dataclasses

from fakes import MODEL

from app.model import ModelInfo


def test_every_fact_comes_back_from_json():
    pose = dataclasses.replace(MODEL, task="pose", shapes=((96, 160),), kpt_shape=(17, 3), end_to_end=True)
    for model in (MODEL, pose):
        assert ModelInfo.from_json(model.to_json()) == model


def test_manifests_from_before_the_other_tasks_are_read():
    old = MODEL.to_json()
    del old["kpt_shape"], old["end_to_end"]
    assert ModelInfo.from_json(old) == MODEL

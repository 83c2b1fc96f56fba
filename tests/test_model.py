"""ModelInfo as JSON and back."""

import dataclasses
import json

from fakes import MODEL
from pydantic import TypeAdapter

from app.model import ModelInfo


def read(fields: dict) -> ModelInfo:
    """Parse the fields as the store does."""
    return TypeAdapter(ModelInfo).validate_json(json.dumps(fields), strict=True, extra="forbid")


def test_every_field_survives_json():
    pose = dataclasses.replace(MODEL, task="pose", shapes=((96, 160),), kpt_shape=(17, 3), end_to_end=True)
    for model in (MODEL, pose):
        assert read(model.to_json()) == model


def test_old_manifests_without_fields_of_other_tasks_are_read():
    old = MODEL.to_json()
    del old["kpt_shape"], old["end_to_end"]
    assert read(old) == MODEL

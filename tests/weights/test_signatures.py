"""Recognition of files that are not weights by their first bytes. All kinds: odd_weights.py and test_files.py."""

import pytest

from app.settings import DEMO_WEIGHTS
from app.weights import signatures


def test_weights_match_no_signature(exported):
    for path in (DEMO_WEIGHTS, exported("detect", opset=12)):
        assert signatures.of_file(path) == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_recognized_in_any_encoding(tmp_path, encoding):
    (tmp_path / "w.pt").write_text("Fehler: nicht gefunden, für immer", encoding)
    assert signatures.of_file(tmp_path / "w.pt").startswith("is a text that begins with 'Fehler: nicht gefunden, für")


def test_a_text_that_is_cut_inside_a_character_is_recognized(tmp_path):
    (tmp_path / "w.pt").write_text("x" + "ü" * 3000, "utf-8")
    assert signatures.of_file(tmp_path / "w.pt").startswith("is a text that begins with 'xüü")


def test_a_binary_file_is_not_recognized_as_text(tmp_path):
    (tmp_path / "w.pt").write_bytes(bytes(range(1, 128)) * 9)
    assert signatures.of_file(tmp_path / "w.pt") == ""

"""Files that are no weights, by their first bytes. All kinds by name: tests/odd_weights.py and test_weights.py."""

import pytest

from app.settings import DEMO_WEIGHTS
from app.weights import signatures


def test_weights_have_none_of_the_signatures(exported):
    for path in (DEMO_WEIGHTS, exported("detect", opset=12)):
        assert signatures.of_file(path) == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_told_in_any_encoding(tmp_path, encoding):
    (tmp_path / "w.pt").write_text("Fehler: nicht gefunden, für immer", encoding)
    assert signatures.of_file(tmp_path / "w.pt").startswith("is a text that begins with 'Fehler: nicht gefunden, für")


def test_a_text_that_is_cut_inside_a_letter_is_one(tmp_path):
    (tmp_path / "w.pt").write_text("x" + "ü" * 3000, "utf-8")
    assert signatures.of_file(tmp_path / "w.pt").startswith("is a text that begins with 'xüü")


def test_a_binary_file_is_no_text(tmp_path):
    (tmp_path / "w.pt").write_bytes(bytes(range(1, 128)) * 9)
    assert signatures.of_file(tmp_path / "w.pt") == ""

"""Recognizes files and folders that are not weights: files by their first bytes, folders by their contents."""

import struct
import zipfile
from pathlib import Path

_HEAD_BYTES = 4096

_DOWNLOAD_AGAIN = "download the weights again"
_USE_SOURCE = "use the .pt or .onnx that it was made from"
_BINARY = (  # offset, bytes there, what the file is and what to do
    (0, b"\x89HDF\r\n", f"is an HDF5 file, as Keras writes: {_USE_SOURCE}"),
    (4, b"TFL3", f"is a TensorFlow Lite model: {_USE_SOURCE}"),
    (0, b"ftrt", "is a TensorRT plan without Ultralytics' header: export it with format=engine, or use the .pt"),
    (0, b"ptrt", "is a TensorRT plan without Ultralytics' header: export it with format=engine, or use the .pt"),
    (0, b"\x1f\x8b", "is a gzip archive: unpack it and use the weights inside"),
    (0, b"7z\xbc\xaf", "is a 7z archive: unpack it and use the weights inside"),
    (0, b"Rar!", "is a RAR archive: unpack it and use the weights inside"),
    (257, b"ustar", "is a tar archive: unpack it and use the weights inside"),
    (0, b"\xff\xd8\xff", "is a JPEG image, not weights"),
    (0, b"\x89PNG", "is a PNG image, not weights"),
    (0, b"%PDF", "is a PDF document, not weights"),
    (0, b"\x93NUMPY", "is a NumPy array, not weights"),
    (0, b"GGUF", "is a GGUF file of a language model, not YOLO weights"),
    (0, b"RKNN", f"is a model for Rockchip NPUs: {_USE_SOURCE}"),
)
_TEXTS = (  # first words of the text in lower case, what the file is and what to do
    (
        ("version https://git-lfs", "version https://hawser"),
        "is a Git LFS pointer, not the weights: run `git lfs pull`",
    ),
    (("/annex/", "../.git/annex/", ".git/annex/"), "is a git-annex pointer, not the weights: run `git annex get`"),
    (("<!doctype html", "<html", "<head", "<body"), f"is a web page, maybe a sign-in or error page: {_DOWNLOAD_AGAIN}"),
    (("<net ", '<?xml version="1.0"?>\n<net'), f"is an OpenVINO model: {_USE_SOURCE}"),
    (("<",), f"is a text in XML or HTML, not weights: {_DOWNLOAD_AGAIN}"),
    (("{", "["), f"is a text in JSON, maybe an error message, not weights: {_DOWNLOAD_AGAIN}"),
)
_FOLDERS = (  # pattern of a file in the folder, what the folder is
    ("*.xml", "a folder of `format=openvino`"),
    ("saved_model.pb", "a folder of `format=saved_model`"),
    ("*.ncnn.param", "a folder of `format=ncnn`"),
    ("*.pdmodel", "a folder of `format=paddle`"),
    ("Manifest.json", "a package of `format=coreml`"),
    ("metadata.yaml", "a folder of an export by Ultralytics"),
)


def of_file(path: Path) -> str:
    """Return what a file without weights is, and what to do; "" if the file may have weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.strip(b"\0 \t\r\n"):
        what = "is empty" if not size else f"holds nothing in its {size} bytes" if size <= _HEAD_BYTES else ""
        if what:
            return f"{what}: {_DOWNLOAD_AGAIN}"
    for offset, magic, text in _BINARY:
        if head[offset:].startswith(magic):
            return text
    if _is_safetensors(head, size):
        return "is a safetensors file, tensors without their model: use the .pt that Ultralytics saved"
    if head.startswith(b"PK"):
        return _of_zip(path)
    return _of_text(head)


def _is_safetensors(head: bytes, size: int) -> bool:
    """Return True if the file begins with 8 bytes of header length and JSON."""
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < size


def _of_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"is cut short, or a damaged ZIP archive: copy it again or {_DOWNLOAD_AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(("/constants.pkl", "/model.json")) or "/code/" in name for name in names):
        return f"is a TorchScript file, maybe of `format=torchscript`: {_USE_SOURCE}"
    if any(name.endswith("/data.pkl") for name in names):
        return ""
    if {"config.json", "model.weights.h5"} <= set(names):
        return f"is a Keras model: {_USE_SOURCE}"
    inside = next((name for name in names if name.endswith((".pt", ".onnx"))), "")
    return f"is a ZIP archive, not weights: unpack it{f' and use {inside}' if inside else ''}"


def _of_text(head: bytes) -> str:
    try:
        text = head.decode("utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if error.end < len(head):  # otherwise the head ends inside a character
            return ""
        text = head[: error.start].decode("utf-8-sig").strip()
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    start = text[:200].lower()
    for words, what in _TEXTS:
        if start.startswith(words):
            return what
    if "backbone:" in text:
        return "describes a network and has no weights: train it, and use the best.pt"
    first = text.partition("\n")[0].strip()[:40]
    return f"is a text that begins with {first!r}, not weights: {_DOWNLOAD_AGAIN}"


def of_folder(path: Path) -> str:
    """Return what a folder is, and what to do."""
    inside = sorted((*path.glob("*.pt"), *path.glob("weights/*.pt"), *path.glob("*.onnx")))
    advice = f"use the file, such as {inside[0]}" if inside else _USE_SOURCE
    for pattern, what in _FOLDERS:
        if not inside and next(path.glob(pattern), None):
            return f"{what}: {_USE_SOURCE}"
    return f"a folder: {advice}"

"""Hostile files of TMVA: each is refused in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tmva_files as tmva
from hostile_files import refused

from lstm_cli.errors import WeightsError
from lstm_cli.formats.interchange import ReadOptions
from lstm_cli.formats.tmva.reader import read

SOUND = tmva.text(
    [
        tmva.recurrent("LSTMLayer", 2, 3, 4, np.random.default_rng(0), ReturnSequence=0),
        tmva.dense(3, 2, 3, np.random.default_rng(1)),
    ],
    shape=(4, 2),
)
LAUGHS = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 10))
DECLARATIONS = {
    "laughs": f'<!DOCTYPE M [<!ENTITY a0 "ha">{LAUGHS}]>',
    "quadratic": f'<!DOCTYPE M [<!ENTITY a9 "{"x" * 100_000}">]>',
    "external": '<!DOCTYPE M [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>',
    "parameter": '<!DOCTYPE M [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;]>',
    "dtd": '<!DOCTYPE M SYSTEM "file:///etc/passwd">',
    "bare": "<!DOCTYPE M>",
}


def refused_file(path: Path, content: bytes, message: str) -> None:
    """Refuse a file with the content, in memory of a small multiple of its size."""
    path.write_bytes(content)
    refused(lambda: read(path, ReadOptions()), message, memory=40 * len(content) + (16 << 20))


@pytest.mark.parametrize("kind", DECLARATIONS)
def test_declarations_are_refused(kind: str, tmp_path: Path) -> None:
    start = SOUND.index("<MethodSetup")
    content = f'<?xml version="1.0"?>{DECLARATIONS[kind]}{SOUND[start:]}'
    content = content.replace("4.2.1", "&a9;" * 1000)
    refused_file(tmp_path / "w.xml", content.encode(), "document type")


HOSTILE = {
    "an undefined entity": (SOUND.replace("4.2.1", "&nbsp;"), "well-formed"),
    "deep": ("<MethodSetup>" + "<a>" * 100_000, "levels"),
    "deep among what is passed over": ("<M><Options>" + "<a>" * 100_000, "levels"),
    "many elements": ("<MethodSetup>" + "<a/>" * 200_000, "elements"),
    "a long tag": (f'<MethodSetup a="{"x" * (12 << 20)}"/>', "does not end"),
    "a long comment": (f"<MethodSetup><!--{'x' * (12 << 20)}--></MethodSetup>", "does not end"),
    "a long name": ("<" + "x" * (12 << 20), "does not end|well-formed"),
    "a long number": (
        f'<M><Weights><a Rows="1" Columns="2">{"9" * (4 << 20)} 1</a></Weights></M>',
        "a word of",
    ),
    "more numbers": (f'<M><W Rows="1" Columns="9">{"1 " * (2 << 20)}</W></M>', "more numbers"),
    "a huge claim": ('<M><W Rows="16777216" Columns="16777216">1</W></M>', "1 number"),
    "a larger claim": ('<M><W Rows="16777217" Columns="1">1</W></M>', "16,777,216"),
    "a claim beyond all": (f'<M><W Rows="{"9" * 5000}" Columns="1">1</W></M>', "16,777,216"),
    "a negative claim": ('<M><W Rows="-1" Columns="-1">1</W></M>', "1 to 16,777,216"),
    "no number": ('<M><W Rows="1" Columns="2">1 x</W></M>', "the word 'x'"),
    "digits in groups": ('<M><W Rows="1" Columns="2">1 1_0</W></M>', "the word '1_0'"),
    "an element among numbers": ('<M><W Rows="1" Columns="1">1<b/></W></M>', "among numbers"),
    "a zero byte": ("<M>\0</M>", "well-formed"),
    "an unknown encoding": ('<?xml version="1.0" encoding="hex"?><M/>', "has no layers"),
    "no layers": ("<MethodSetup/>", "has no layers"),
    "an empty network": ("<Weights/>", "has no layers"),
    "two roots": ("<Weights/><Weights/>", "well-formed"),
    "no end": (SOUND[: len(SOUND) // 2], "well-formed|declares"),
    "nothing": ("", "well-formed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path) -> None:
    content, message = HOSTILE[kind]
    refused_file(tmp_path / "w.xml", content.encode("latin-1"), message)


def test_a_huge_output_behind_few_weights(tmp_path: Path) -> None:
    """A softmax behind a tanh would be an identity matrix, the square of what the file holds."""
    wide = 1 << 17
    layer = tmva.Layer("DenseLayer", {"Width": wide, "ActivationFunction": 3})
    layer.matrices = {"W": np.zeros((wide, 1)), "b": np.zeros((wide, 1))}
    content = tmva.text([layer], output="M", digits=1)
    refused_file(tmp_path / "w.xml", content.encode(), "OutputFunction softmax")


def test_words_that_are_not_finite_reach_the_weights(tmp_path: Path) -> None:
    for word in ("nan", "-nan", "inf", "-Infinity", "1e999", "1e39"):
        path = tmp_path / "w.xml"
        path.write_text(
            '<Weights><DenseLayer Width="1" ActivationFunction="0"><Weights Rows="1" Columns="2">'
            f'{word} 2</Weights><Biases Rows="1" Columns="1">0</Biases></DenseLayer></Weights>'
        )
        assert not np.isfinite(read(path, ReadOptions()).tensors["layers.0.weight"]).all()


def test_missing_and_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "none.xml", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(WeightsError, match="cannot be read"):
            read(path, ReadOptions())

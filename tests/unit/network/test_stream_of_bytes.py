"""Steps read from bytes, and outputs written as they come."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest

import lstm_cli
from lstm_cli.errors import DataError
from lstm_cli.network.stream import run_stream

D, F = 3, 2
LAYERS = [{"type": "gru", "hidden_size": 5}, {"type": "dense", "units": F}]
X = np.random.default_rng(1).standard_normal((4, D)).astype(np.float32)


@pytest.fixture(params=["float32", "float64"])
def model(request: pytest.FixtureRequest) -> lstm_cli.Model:
    config = {"model": {"input_size": D, "layers": LAYERS}}
    return lstm_cli.build(config, device="cpu", dtype=request.param, threads=1)


def lines() -> bytes:
    return b"".join(",".join(map(str, row)).encode() + b"\n" for row in X)


def test_lines_have_the_digits_of_the_outputs(model):
    target = io.BytesIO()
    assert run_stream(model.network, "csv", io.BytesIO(b"\n" + lines() + b"\n  \n"), target) == 4
    outputs = np.loadtxt(io.BytesIO(target.getvalue()), delimiter=",", dtype=model.network.dtype)
    read = np.loadtxt(io.BytesIO(lines()), delimiter=",").astype(model.network.dtype)
    expected = model.run(read[None]).outputs[0]
    if model.network.engine.name == "jit":
        np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_frames(model):
    target = io.BytesIO()
    assert run_stream(model.network, "f32", io.BytesIO(X.astype("<f4").tobytes()), target) == 4
    outputs = np.frombuffer(target.getvalue(), "<f4").reshape(4, F)
    np.testing.assert_allclose(outputs, model.run(X[None]).outputs[0], rtol=1e-5)


def test_a_step_is_answered_before_the_next_one_is_read(model):
    class Target(io.BytesIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed = self.getvalue().count(b"\n")

    target, answered = Target(), list[int]()

    class Source:
        def __iter__(self) -> Iterator[bytes]:
            for line in lines().splitlines(keepends=True):
                answered.append(target.flushed)
                yield line

    run_stream(model.network, "csv", Source(), target)
    assert answered == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (b"1,2\n", "2 numbers: 1,2"),
        (b"1,2,3,4\n", "4 numbers"),
        (b"1,x,3\n", "1,x,3"),
        (b"a,b,c\n", "a,b,c"),
        (b"1;2;3\n", "1;2;3"),
        (b"\xff\xfe,1,2\n", "�"),
    ],
)
def test_other_lines_are_errors_with_their_number(model, source, found):
    target = io.BytesIO()
    with pytest.raises(DataError, match="line 6 of the stream") as caught:
        run_stream(model.network, "csv", io.BytesIO(lines() + b"\n" + source), target)
    assert target.getvalue().count(b"\n") == 4
    problem = caught.value.problems[0]
    assert found in str(problem.found)
    assert problem.expected == "3 numbers, separated by commas"


def test_a_partial_frame_is_an_error(model):
    target, source = io.BytesIO(), X.astype("<f4").tobytes()[:-3]
    with pytest.raises(DataError, match="ends within step 3") as caught:
        run_stream(model.network, "f32", io.BytesIO(source), target)
    assert caught.value.problems[0].found == "9 bytes"
    assert len(target.getvalue()) == 3 * 4 * F

"""``convert --check`` says which reading of the steps a reference of one vector a sequence has.

Every hint is followed, and gives the reference's outputs.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lstm_cli

pytestmark = pytest.mark.usefixtures("in_tmp_path")

torch = pytest.importorskip("torch")

N, T, D, H = 4, 5, 2, 3
LENGTHS = np.array([5, 2, 4, 1])
SETTING = re.compile(r"--set (\S+?)[;,]?(?:\s|$)")
Command = Any


class Net(torch.nn.Module):
    """A recurrent module, what is taken of it, and a head that may be missing."""

    def __init__(self, kind="LSTM", layers=2, both=True, head=None, width=None):
        super().__init__()
        torch.manual_seed(3)
        self.rnn = getattr(torch.nn, kind)(
            D, H, num_layers=layers, bidirectional=both, batch_first=True
        )
        width = width or (2 * H if both else H)
        self.head = torch.nn.Linear(width, head) if head else torch.nn.Identity()
        self.take = lambda y, h: y

    def states(self, x, lengths=None, **options):
        """Every step's outputs and h_n."""
        if lengths is not None:
            pack = torch.nn.utils.rnn
            x = pack.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, h = self.rnn(x)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
        return y, h[0] if isinstance(h, tuple) else h

    def forward(self, x, lengths=None):
        return self.head(self.take(*self.states(x, lengths)))


@dataclass(frozen=True)
class Taken:
    """Outputs that a model takes of its steps, their name, and how to get them from our results."""

    take: Any
    name: str
    own: Any = None


READINGS = {
    "last": Taken(lambda y, h: y[:, -1], r"last step .*\(y\[:, -1\]\)", lambda y: y[:, -1]),
    "final": Taken(lambda y, h: torch.cat([h[-2], h[-1]], 1), "final states of both directions"),
    "first": Taken(lambda y, h: y[:, 0], r"first step \(y\[:, 0\]\)", lambda y: y[:, 0]),
}
POOLS = {
    "mean": Taken(lambda y, h: y.mean(1), "mean over the valid steps", lambda y: y.mean(1)),
    "largest": Taken(lambda y, h: y.amax(1), "largest value over", lambda y: y.max(1)),
    "sum": Taken(lambda y, h: y.sum(1), "sum over the steps", lambda y: y.sum(1)),
}
HALVES = {
    "h_n[-1]": Taken(lambda y, h: h[-1], r"reverse direction's .*h_n\[-1\]", lambda y: y[:, H:]),
    "h_n[-2]": Taken(lambda y, h: h[-2], r"forward direction's .*h_n\[-2\]", lambda y: y[:, :H]),
    "states' mean": Taken(lambda y, h: (h[-1] + h[-2]) / 2, "mean of both final states",
                          lambda y: (y[:, :H] + y[:, H:]) / 2),
    "states multiplied": Taken(lambda y, h: h[-1] * h[-2], "product of both final states",
                               lambda y: y[:, :H] * y[:, H:]),
    "halves' mean": Taken(lambda y, h: (y[..., :H] + y[..., H:]) / 2, "mean of both directions",
                          lambda y: (y[..., :H] + y[..., H:]) / 2),
    "last steps added": Taken(lambda y, h: y[:, -1, :H] + y[:, -1, H:],
                              r"sum of both directions' last step \(y\[:, -1\]\)",
                              lambda y: y[:, -1, :H] + y[:, -1, H:]),
    "last steps multiplied": Taken(lambda y, h: y[:, -1, :H] * y[:, -1, H:],
                                   r"product of both directions' last step",
                                   lambda y: y[:, -1, :H] * y[:, -1, H:]),
    "both added": Taken(lambda y, h: h[-1] + h[-2], "sum of both final states",
                        lambda y: y[:, :H] + y[:, H:]),
    "halves added": Taken(lambda y, h: y[..., :H] + y[..., H:], "sum of both directions",
                          lambda y: y[..., :H] + y[..., H:]),
}  # fmt: skip


def checked(lstm: Command, net: Net, taken: Taken, *settings: str, **arguments: Any) -> Any:
    """Output of convert with a reference, and its files."""
    net.take = taken.take
    x = np.random.default_rng(1).standard_normal((N, T, D)).astype("f4")
    lengths = arguments.get("lengths")
    with torch.no_grad():
        after = arguments.get("after", lambda y: y)
        expected = after(net.eval()(torch.from_numpy(x), lengths)).numpy()
    torch.save(net.state_dict(), "m.pt")
    extra = {} if lengths is None else {"lengths": lengths}
    np.savez("r.npz", inputs=x, outputs=expected, **extra)
    with h5py.File("d.h5", "w") as file:
        file["inputs"] = x
        file.update(extra)
    options = [part for setting in settings for part in ("--set", setting)]
    return expected, lstm("convert", "m.pt", "m.safetensors", "--check", "r.npz", *options)


def hint_of(outcome: Any) -> str:
    _, hint = outcome.err.split("hint: ")
    return " ".join(hint.split())


def followed(lstm: Command, hint: str, steps: Taken, expected: Any) -> None:
    """The hint's settings, with the reference, and what is then taken of the results."""
    settings = [part for s in SETTING.findall(hint + " ") for part in ("--set", s)]
    check = [] if steps.own else ["--check", "r.npz"]
    outcome = lstm("convert", "m.pt", "m.safetensors", *settings, *check)
    assert outcome.code == 0, outcome.err
    outcome = lstm("run", "m.safetensors", "d.h5", "--output", "o.h5")
    assert outcome.code == 0, outcome.err
    with h5py.File("o.h5") as file:
        found = file["outputs"][...]
    found = steps.own(found) if steps.own else found
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("set_before", ["", "model.layers.1.return_sequences=false"])
@pytest.mark.parametrize("head", [None, 4])
@pytest.mark.parametrize("reading", READINGS)
def test_which_step(reading, head, set_before, lstm):
    kind = {"last": "LSTM", "final": "GRU", "first": "RNN"}[reading]
    steps = READINGS[reading]
    settings = [set_before] if set_before else []
    expected, outcome = checked(lstm, Net(kind, head=head), steps, *settings)
    if reading == "final" and settings:
        assert outcome.code == 0, outcome.err
        return
    assert outcome.code == (1 if settings else 3)
    assert not Path("m.safetensors").exists()
    assert re.search(f"they are the {steps.name}", " ".join(outcome.err.split()))
    hint = hint_of(outcome)
    followed(lstm, hint, steps, expected)
    if steps.own:
        assert "a reference of every step checks it" in hint
        every = Taken(lambda y, h: y, "")
        settings = SETTING.findall(hint + " ")
        assert checked(lstm, Net(kind, head=head), every, *settings)[1].code == 0


@pytest.mark.parametrize("reading", [*POOLS, *HALVES])
def test_what_no_layer_does(reading, lstm):
    steps = (POOLS | HALVES)[reading]
    expected, outcome = checked(lstm, Net(), steps)
    assert outcome.code == 3
    assert re.search(f"they are the {steps.name}", " ".join(outcome.err.split()))
    followed(lstm, hint_of(outcome), steps, expected)


def test_a_mean_with_a_head_behind_it(lstm):
    """The recurrent module alone is converted, and the rest computed of its steps."""
    net = Net(head=4)
    expected, outcome = checked(lstm, net, POOLS["mean"])
    hint = hint_of(outcome)
    assert "the steps of layer 1 alone" in hint
    alone = ("convert", "m.pt", "m.safetensors", "--prefix", "rnn")
    assert lstm(*alone).code == 0
    assert lstm("run", "m.safetensors", "d.h5", "--output", "o.h5").code == 0
    with h5py.File("o.h5") as file, torch.no_grad():
        found = net.head(torch.from_numpy(file["outputs"][...]).mean(1)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_an_activation_that_the_file_lacks(lstm):
    def softmax(y):
        return torch.softmax(y, -1)

    expected, outcome = checked(lstm, Net(head=4), READINGS["last"], after=softmax)
    hint = hint_of(outcome)
    assert "model.layers.2.activation=softmax" in hint
    followed(lstm, hint, READINGS["last"], expected)
    every = Taken(lambda y, h: y, "every step")
    _, outcome = checked(lstm, Net(head=4), every, after=softmax)
    assert outcome.code == 1
    settings = SETTING.findall(hint_of(outcome) + " ")
    assert settings == ["model.layers.2.activation=softmax"]
    assert checked(lstm, Net(head=4), every, *settings, after=softmax)[1].code == 0


def test_one_direction(lstm):
    expected, outcome = checked(lstm, Net(both=False, head=4), READINGS["last"])
    assert SETTING.findall(hint_of(outcome) + " ") == ["model.layers.1.return_sequences=false"]
    taken = Taken(None, "")
    followed(lstm, hint_of(outcome), taken, expected)


def test_ragged(lstm):
    """The last valid step, the batch's last one, and steps computed over the padding."""
    rows = np.arange(N)
    valid = Taken(lambda y, h: y[rows, LENGTHS - 1], "last valid step of both directions",
                  lambda y: y[rows, LENGTHS - 1])  # fmt: skip
    expected, outcome = checked(lstm, Net(), valid, lengths=LENGTHS)
    assert re.search(f"they are the {valid.name}", " ".join(outcome.err.split()))
    followed(lstm, hint_of(outcome), valid, expected)
    expected, outcome = checked(lstm, Net(), READINGS["last"], lengths=LENGTHS)
    assert "last step of the batch, 0 for shorter sequences" in " ".join(outcome.err.split())
    followed(lstm, hint_of(outcome), READINGS["last"], expected)
    expected, outcome = checked(lstm, Net(), READINGS["final"], lengths=LENGTHS)
    followed(lstm, hint_of(outcome), READINGS["final"], expected)
    expected, outcome = checked(lstm, Net(), READINGS["final"])
    with np.load("r.npz") as plain:
        np.savez("r.npz", **plain, lengths=LENGTHS)
    outcome = lstm("convert", "m.pt", "m.safetensors", "--check", "r.npz")
    assert "computed over the padding as well" in " ".join(outcome.err.split())
    settings = SETTING.findall(hint_of(outcome) + " ")
    with np.load("r.npz") as plain:
        np.savez("s.npz", inputs=plain["inputs"], outputs=plain["outputs"])
    options = ("--check", "s.npz", "--set", *settings)
    assert lstm("convert", "m.pt", "m.safetensors", *options).code == 0


@pytest.mark.parametrize("whole", [True, False])
def test_time_first(whole, lstm):
    taken = Taken(lambda y, h: y, "") if whole else READINGS["final"]
    checked(lstm, Net(head=4), taken)
    with np.load("r.npz") as plain:
        x, y = plain["inputs"].swapaxes(0, 1), plain["outputs"]
    np.savez("t.npz", inputs=x, outputs=y.swapaxes(0, 1) if whole else y)
    outcome = lstm("convert", "m.pt", "m.safetensors", "--check", "t.npz")
    assert outcome.code == (1 if whole else 3)
    hint = hint_of(outcome)
    assert "steps as the first axis" in " ".join(outcome.err.split())
    assert ("inputs and outputs" in hint) == whole
    settings = [part for s in SETTING.findall(hint + " ") for part in ("--set", s)]
    assert lstm("convert", "m.pt", "m.safetensors", "--check", "r.npz", *settings).code == 0


def test_neither_reading_fits(lstm):
    for settings in ((), ("model.layers.1.return_sequences=false",)):
        taken = Taken(lambda y, h: y[:, -1] * 1.5, "")
        _, outcome = checked(lstm, Net(), taken, *settings)
        assert outcome.code == (1 if settings else 3)
        text = " ".join(outcome.err.split())
        assert "final states of both directions" in text
        assert "y[:, -1]" in text
        assert ": they are" not in text


def test_the_note_on_a_state_dict_names_both_and_both_are_right(lstm):
    expected, _ = checked(lstm, Net(head=4), READINGS["last"])
    outcome = lstm("run", "m.pt", "d.h5", "--output", "o.h5")
    note = " ".join(outcome.err.split())
    assert "h_n" in note
    assert "outputs[:, -1] of the results with every step" in note
    with h5py.File("o.h5") as file:
        np.testing.assert_allclose(file["outputs"][:, -1], expected, rtol=0, atol=2e-5)
    expected, _ = checked(lstm, Net(head=4), READINGS["final"])
    setting = next(s for s in SETTING.findall(note) if "return_sequences" in s)
    assert lstm("run", "m.pt", "d.h5", "--output", "o.h5", "--set", setting).code == 0
    with h5py.File("o.h5") as file:
        np.testing.assert_allclose(file["outputs"][...], expected, rtol=0, atol=2e-5)
    written = lstm("convert", "m.pt", "n.pt", "--set", setting)
    assert "(h_n), not the last step" in " ".join(written.err.split())


@pytest.mark.parametrize("reading", ["last", "h_n[-1]", "h_n[-2]", "both added"])
def test_onnx_says_which(reading, lstm):
    """A head on one direction is refused in a state dict; the hint's export can be run."""
    pytest.importorskip("onnx")
    taken = (READINGS | HALVES)[reading]
    net = Net(head=4, width=None if reading == "last" else H)
    expected, outcome = checked(lstm, net, taken)
    assert outcome.code != 0
    if reading != "last":
        assert "a model of torch.onnx.export does" in " ".join(outcome.err.split())
    with h5py.File("d.h5") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.from_numpy(file["inputs"][...])
        torch.onnx.export(net.eval(), (x,), "m.onnx", dynamo=False, input_names=["x"])
    found = lstm_cli.load("m.onnx", engine="reference").run(x.numpy()).outputs
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_all_layers_states_are_no_flatten_without_a_word(lstm):
    net = Net(both=False, head=4, width=2 * H)
    checked(lstm, net, Taken(lambda y, h: torch.cat([h[0], h[1]], 1), ""))
    outcome = lstm("inspect-shapes", "m.pt")
    assert "not as the final states of all 2 layers (h_n)" in " ".join(outcome.err.split())


@pytest.mark.parametrize("set_before", ["", "model.layers.1.return_sequences=false"])
@pytest.mark.parametrize(
    ("both", "form"), [(True, "h_n"), (True, "all"), (True, "N"), (False, "all")]
)
def test_final_states_stacked(both, form, set_before, lstm):
    """The hint's store and settings are followed until the check passes."""
    takes = {
        "h_n": lambda y, h: h[-2:],
        "all": lambda y, h: h,
        "N": lambda y, h: h[-2:].swapaxes(0, 1),
    }
    settings = [set_before] if set_before else []
    _, outcome = checked(lstm, Net("GRU", both=both), Taken(takes[form], ""), *settings)
    assert outcome.code == 3
    hint = hint_of(outcome)
    assert "stacked by direction" in " ".join(outcome.err.split())
    with np.load("r.npz") as plain:
        x, outputs = plain["inputs"], plain["outputs"]
    if "concatenate" in hint:
        first = int(re.search(r"outputs\[(-\d)", hint)[1])
        outputs = np.concatenate(list(outputs[first:]), axis=1)
    else:
        outputs = outputs.reshape(N, -1)
    np.savez("r.npz", inputs=x, outputs=outputs)
    options = [part for s in {*SETTING.findall(hint + " "), *settings} for part in ("--set", s)]
    assert lstm("convert", "m.pt", "m.safetensors", "--check", "r.npz", *options).code == 0

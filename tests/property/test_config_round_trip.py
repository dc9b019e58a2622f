"""Any valid config, written out as resolved, is read back equal."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lstm_cli.cells import FORMULAS
from lstm_cli.config import from_mapping, from_text
from lstm_cli.config.schema import INIT_SCHEMES

sizes = st.integers(1, 40)
rates = st.floats(0, 0.99)
positive = st.floats(1e-12, 1e12)
names = st.text(min_size=1, max_size=12)
formulas = st.sampled_from(sorted(FORMULAS))


@st.composite
def activations(draw: st.DrawFn) -> Any:
    name = draw(formulas)
    given_keys = [k for k in ("alpha", "beta") if getattr(FORMULAS[name], k) is not None]
    if not given_keys or draw(st.booleans()):
        return name
    return {"name": name, **{k: draw(st.floats(-3, 3)) for k in given_keys if draw(st.booleans())}}


@st.composite
def recurrent(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["lstm", "gru", "rnn"]))
    both = draw(st.booleans())
    one_or_pair = activations()
    if both:
        one_or_pair = st.one_of(activations(), st.lists(activations(), min_size=2, max_size=2))
    options: dict[str, st.SearchStrategy[Any]] = {
        "stateful": st.booleans(),
        "bias": st.booleans(),
        "clip": positive,
        "activation": one_or_pair,
        "dropout": rates,
        "recurrent_dropout": rates,
    }
    if kind != "rnn":
        options["recurrent_activation"] = one_or_pair
    if kind == "gru":
        options["reset_after"] = st.booleans()
    if kind == "lstm":
        gate = draw(st.sampled_from(["coupled_input_forget", "forget_gate"]))
        options |= {
            gate: st.booleans(),
            "cell_activation": one_or_pair,
            "peepholes": st.booleans(),
            "projection_size": sizes,
            "forget_bias": st.floats(-9, 9),
        }
    layer = draw(st.fixed_dictionaries({"hidden_size": sizes}, optional=options))
    if not layer.get("bias", True):
        layer.pop("forget_bias", None)
    return {"type": kind, "bidirectional": both, **layer}


dense = st.fixed_dictionaries(
    {"type": st.just("dense"), "units": sizes},
    optional={
        "activation": st.one_of(activations(), st.just("softmax")),
        "bias": st.booleans(),
    },
)
dropout = st.fixed_dictionaries({"type": st.just("dropout"), "rate": rates})
optimizers = st.one_of(
    st.sampled_from(["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta"]),
    st.fixed_dictionaries(
        {"type": st.just("rmsprop")}, optional={"rho": rates, "epsilon": positive, "l1": positive}
    ),
)
schedules = st.one_of(
    st.sampled_from(["constant", "step", "exponential", "cosine", "reduce_on_plateau"]),
    st.fixed_dictionaries(
        {"type": st.just("cosine")}, optional={"epochs": sizes, "warmup_steps": sizes}
    ),
)
trains = st.fixed_dictionaries(
    {"loss": st.sampled_from(["mse", "mae", "huber"])},
    optional={
        "optimizer": optimizers,
        "schedule": schedules,
        "validation": st.one_of(st.floats(0.01, 0.99), names),
        "normalize": st.sampled_from([True, False, "standard", "minmax"]),
        "clip_norm": positive,
        "patience": sizes,
        "seed": st.integers(0, 2**63 - 1),
    },
)
windows = st.fixed_dictionaries({"length": sizes}, optional={"horizon": st.integers(0, 9)})
datas = st.fixed_dictionaries(
    {}, optional={"inputs": names, "mask": names, "window": windows, "layout": st.just("series")}
)
inits = st.fixed_dictionaries(
    {}, optional={"scheme": st.sampled_from(INIT_SCHEMES), "seed": st.integers(0, 9)}
)
models = st.fixed_dictionaries(
    {
        "input_size": sizes,
        "layers": st.lists(st.one_of(recurrent(), dense, dropout), min_size=1, max_size=4),
    },
    optional={"steps": sizes, "init": inits},
)
configs = st.fixed_dictionaries(
    {"model": models}, optional={"data": datas, "train": trains, "weights": names}
)


@seed(20240517)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_to_yaml_reads_back_equal(mapping: dict[str, Any]) -> None:
    config = from_mapping(mapping)
    text = config.to_yaml()
    again = from_text(text, "config", None)
    assert again == config
    assert again.specs == config.specs
    assert again.to_yaml() == text

"""Limits of a machine: what is kept of several measurements, and who knows them."""

from lstm_cli.engines.limits import Limits, Measurable, Reads
from lstm_cli.engines.reference import ReferenceEngine


def test_the_best_of_each_limit_is_kept_wherever_it_was_seen():
    found = Limits.best(
        [
            Limits(200.0, (Reads(64, 30.0), Reads(128, 50.0))),
            Limits(230.0, (Reads(128, 20.0),)),
            Limits(100.0, (Reads(64, 40.0), Reads(32, 7.0))),
        ]
    )
    assert found == Limits(230.0, (Reads(64, 40.0), Reads(128, 50.0), Reads(32, 7.0)))


def test_the_reference_engine_does_not_know_its_machine():
    assert not isinstance(ReferenceEngine(), Measurable)

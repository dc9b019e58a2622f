"""Options of the data: importing them does not load h5py."""

from __future__ import annotations

import subprocess
import sys


def test_options_do_not_load_hdf5():
    code = (
        "import sys; from lstm_cli.data import DataOptions, Window; "
        "DataOptions(window=Window(3)); sys.exit('h5py' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

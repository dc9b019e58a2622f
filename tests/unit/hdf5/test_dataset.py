"""Chunks of a dataset are decompressed once, and cached."""

from __future__ import annotations

import gc

import h5py
import numpy as np
import pytest
from data_files import total

from lstm_cli.data import DataOptions, Window, open_data
from lstm_cli.errors import DataError
from lstm_cli.hdf5 import dataset as hdf5_dataset
from lstm_cli.hdf5.dataset import ChunkSlabs


class TestChunkSlabs:
    @staticmethod
    def counted(monkeypatch):
        """Chunks that are unpacked: each band that is read."""
        reads = []
        read = ChunkSlabs._slab

        def band(self, number):
            key = self._number, number
            if key not in hdf5_dataset._slab_cache:
                reads.append(number)
            return read(self, number)

        monkeypatch.setattr(ChunkSlabs, "_slab", band)
        monkeypatch.setattr(hdf5_dataset, "CHUNK_CACHE_BYTES", 1 << 10)
        return reads

    @pytest.mark.parametrize("packed", [{"compression": 1}, {"compression": "lzf"}, {"shuffle": 1}])
    @pytest.mark.parametrize("layout", ["dense", "concatenated", "turned"])
    def test_each_chunk_is_unpacked_once(self, write, monkeypatch, layout, packed):
        values = np.random.default_rng(5).normal(size=(60, 4, 3))
        path, options = write("x.h5"), DataOptions(transpose=layout == "turned" or None)
        stored, chunks = {
            "dense": (values, (25, 2, 3)),
            "concatenated": (values.reshape(-1, 3), (110, 3)),
            "turned": (values.T, (3, 4, 25)),
        }[layout]
        with h5py.File(path, "a") as file:
            file.create_dataset("inputs", data=stored, chunks=chunks, **packed)
            if layout == "concatenated":
                file["lengths"] = np.full(60, 4)
        reads = self.counted(monkeypatch)
        with open_data([path], options) as data:
            found = np.concatenate([batch.x for batch in data.batches(7, np.float64)])
            np.testing.assert_array_equal(found, values)
            assert sorted(reads) == [0, 1, 2]
            monkeypatch.setattr("lstm_cli.data.batches.MEMORY_BYTES", 0)
            order = np.random.default_rng(6).permutation(60)
            for start in range(0, 60, 7):
                numbers = order[start : start + 7]
                np.testing.assert_array_equal(data.take(numbers, np.float64).x, values[numbers])
            assert sorted(reads) == [0, 1, 2]
        gc.collect()
        assert not hdf5_dataset._slab_cache

    def test_chunks_that_cannot_be_kept(self, write, monkeypatch):
        monkeypatch.setattr(hdf5_dataset, "SLAB_CACHE_BYTES", 1000)
        monkeypatch.setattr(hdf5_dataset, "MAX_WASTED_BYTES", 4000)
        monkeypatch.setattr(hdf5_dataset, "CHUNK_CACHE_BYTES", 1000)
        path = write("x.h5")
        values = np.ones((50, 4, 3))
        with h5py.File(path, "a") as file:
            file.create_dataset("inputs", data=values, chunks=(50, 4, 3), compression=1)
        with pytest.raises(DataError, match="decompress all of them again") as error:
            total(path)
        assert "chunks=True" in error.value.hints[0]
        with h5py.File(path, "a") as file:
            del file["inputs"]
            file.create_dataset("inputs", data=values, chunks=(5, 4, 3), compression="gzip")
        assert total(path) == values.sum()

    def test_windows_over_groups(self, write, monkeypatch):
        path = write("x.h5")
        values = np.random.default_rng(7).normal(size=(2, 50, 3))
        with h5py.File(path, "a") as file:
            for n in range(2):
                file.create_dataset(f"s{n}/inputs", data=values[n], chunks=(50, 3), compression=1)
        reads = self.counted(monkeypatch)
        with open_data([path], DataOptions(window=Window(5, horizon=0))) as data:
            found = np.concatenate([batch.x for batch in data.batches(9, np.float64)])
        cut = [values[n, k : k + 5] for n in range(2) for k in range(46)]
        np.testing.assert_array_equal(found, cut)
        assert reads == [0, 0]

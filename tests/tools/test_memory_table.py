"""The rows of the memory table that nothing is measured for."""

import pytest

from tools import bench_memory_table, train_processes


@pytest.mark.slow
def test_each_form_needs_less_than_the_one_before():
    peak = {
        name: bench_memory_table.planned("xs", form, host=False)
        for name, form in bench_memory_table.FORMS.items()
    }
    assert peak["plain"] > peak["remat"] > peak["algorithm_1"] > peak["slots"] > 0
    assert peak["algorithm_1"] > peak["sharded"] > peak["algorithm_1"] / bench_memory_table.DEVICES


def test_a_runtime_of_no_known_name_is_said():
    assert train_processes.flags_of("dtensor_4x1_batch") == [
        "--runtime=dtensor", "--mesh=4x1", "--shard_over=batch",
    ]  # fmt: skip
    for name in ("mirrored", "gpu_2", ""):
        with pytest.raises(ValueError, match="multi_worker_N"):
            train_processes.flags_of(name)

"""What multi_worker is told by its environment, before any worker is contacted."""

import pytest

from basic_tf.parallel import runtime, strategies


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "host0:2222",
        "[]",
        '{"cluster": {}, "task": {"index": 0}}',
        '{"cluster": {"worker": ["localhost:2222"]}}',
        '{"cluster": {"worker": ["localhost:2222"]}, "task": {"type": "worker", "index": "first"}}',
        '{"cluster": {"worker": ["localhost:2222"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_an_environment_that_names_no_place_in_a_cluster_is_said_in_one_line(monkeypatch, config):
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(runtime.DeviceError, match=r"TF_CONFIG.*cluster.*worker") as raised:
        strategies.create("multi_worker")
    assert "\n" not in str(raised.value)

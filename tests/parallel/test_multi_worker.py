"""What multi_worker is told by its environment, before any worker is contacted."""

import json

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.parallel import runtime, strategies
from tools import train_processes


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
        '{"cluster": {"worker": ["localhost:2222"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["localhost:2222"]}, "task": {"index": 0}}',
        '{"cluster": "localhost:2222", "task": {"type": "worker", "index": 0}}',
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


CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}


@pytest.mark.parametrize(
    "cluster,kind,index,expected",
    [
        (CLUSTER, "chief", 0, (0, 3)),
        (CLUSTER, "worker", 0, (1, 3)),
        (CLUSTER, "worker", 1, (2, 3)),
        ({"worker": ["a:1", "b:1"]}, "worker", 0, (0, 2)),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, (1, 2)),
    ],
)
def test_the_chief_is_the_first_host_and_workers_follow(monkeypatch, cluster, kind, index, expected):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
    assert strategies.place_in_cluster() == expected


@pytest.mark.parametrize(
    "cluster,kind,message",
    [
        (CLUSTER, "evaluator", "'evaluator' does not train; evaluate with --mode=continuous_eval"),
        ({"worker": ["a:1"], "ps": ["b:1"]}, "ps", "'ps' does not train"),
        ({"worker": ["a:1"], "ps": ["b:1"]}, "worker", "parameter servers"),
        ({"chief": ["a:1", "b:1"]}, "chief", "at most one"),
    ],
)
def test_tasks_that_do_not_train_are_refused_in_words(monkeypatch, cluster, kind, message):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}}))
    with pytest.raises(runtime.DeviceError, match=message):
        strategies.create("multi_worker")


def test_hosts_with_unequal_devices_are_refused():
    with pytest.raises(runtime.DeviceError, match="1 replicas cannot be shared evenly by 2 hosts"):
        strategies.StrategyRuntime("multi_worker", tf.distribute.get_strategy(), 0, 2)


@pytest.mark.slow
def test_a_chief_and_a_worker_equal_one_device(run, one_device, monkeypatch):
    workers = train_processes._environments

    def with_chief(count):
        own = json.loads(workers(count)[0]["TF_CONFIG"])["cluster"]["worker"]
        cluster = {"chief": own[:1], "worker": own[1:]}
        tasks = [("chief", 0), *(("worker", index) for index in range(count - 1))]
        return [
            train_processes.environment(
                TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
            )
            for kind, index in tasks
        ]

    monkeypatch.setattr(train_processes, "_environments", with_chief)
    np.testing.assert_allclose(run.losses("multi_worker_2"), one_device, rtol=1e-9)

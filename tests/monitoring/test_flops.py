import json

import numpy as np

from basic_tf.monitoring import flops


def test_gemm_rate_is_plausible_and_cached(tmp_path):
    cache = str(tmp_path / "run" / "machine.json")
    rate = flops.gemm_rate(cache, seconds=0.05)
    assert 1e8 < rate < 1e16
    assert flops.gemm_rate(cache, seconds=0.05) == rate
    content = json.loads((tmp_path / "run" / "machine.json").read_text())
    content["devices"] = "another machine"
    content["gemm_flops_per_second"] = 1.0
    (tmp_path / "run" / "machine.json").write_text(json.dumps(content))
    assert flops.gemm_rate(cache, seconds=0.05) > 1e8
    (tmp_path / "run" / "machine.json").write_text("{")
    assert np.isfinite(flops.gemm_rate(cache, seconds=0.05))

"""Liveness against a walk by hand and against brute force over random graphs."""

import numpy as np

from basic_tf.planning.liveness import Op, executor_order, liveness


def test_by_hand():
    # a (given, 4) -> b (8) -> c (8, in place over b) -> d (1, reads a and c)
    ops = [Op((0,), (1,)), Op((1,), (2,), in_place=True), Op((0, 2), (3,))]
    found = liveness(ops, [4, 8, 8, 1], given=[0], kept=[3])
    assert found.during == [12, 12, 13]
    assert found.after == [12, 12, 1]
    assert found.peak == 13
    assert liveness([ops[0], Op((1,), (2,)), ops[2]], [4, 8, 8, 1], given=[0]).during[1] == 20


def test_what_nobody_reads_is_freed_at_once_and_what_is_kept_stays():
    ops = [Op((), (0,)), Op((), (1,))]
    assert liveness(ops, [5, 7]).after == [0, 0]
    assert liveness(ops, [5, 7], kept=[0]).after == [5, 5]


def test_random_programs_equal_a_recount_at_every_step():
    rng = np.random.default_rng()
    for _ in range(30):
        count = int(rng.integers(2, 25))
        sizes = rng.integers(1, 100, count).tolist()
        ops = [
            Op(tuple(rng.choice(n, min(n, 2), replace=False).tolist()) if n else (), (n,))
            for n in range(count)
        ]
        kept = set(rng.choice(count, 2).tolist())
        found = liveness(ops, sizes, kept=kept)
        for now in range(count):
            alive = [
                b for b in range(now + 1) if b == now or b in kept or any(b in op.reads for op in ops[now:])
            ]
            assert found.during[now] == sum(sizes[b] for b in alive)
        assert found.peak == max(found.during)


def test_the_executor_goes_deep_and_takes_the_earliest_first():
    a, b, c = Op((0,), (1,)), Op((1,), (2,)), Op((1,), (3,))  # a makes b and c ready
    d, e = Op((2,), (4,)), Op((3, 4), (5,))
    f = Op((9,), (6,))  # waits for nothing
    assert executor_order([a, b, c, d, e, f]) == [a, b, d, c, e, f]


def test_any_program_is_run_whole_and_in_a_possible_order():
    rng = np.random.default_rng()
    for _ in range(30):
        count = int(rng.integers(2, 40))
        ops = [
            Op(tuple(rng.choice(n, min(n, 3), replace=False).tolist()) if n else (), (n,))
            for n in range(count)
        ]
        ordered, made = executor_order(ops), set()
        assert sorted(op.writes for op in ordered) == [op.writes for op in ops]
        for op in ordered:
            assert set(op.reads) <= made
            made |= set(op.writes)

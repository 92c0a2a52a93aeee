"""Every side of every case that `alkernels bench` knows, a benchmark each; conftest.py prints them as a table."""

import pytest

from alkernels._bench import CASES
from alkernels._bench.cases import OURS
from alkernels._bench.measure import check_agreement, devices, label, moved, peak_memory, row, sides_on, synchronized

ROUNDS, ROUNDS_OF_RIVALS = 9, 3

BENCHMARKS = [
    pytest.param(case, pool, device, side, id=f"{case.op}-{pool}-{device}-{side}")
    for case in CASES
    for pool in case.pools
    for device in devices()
    for side in sides_on(case, device)
]


@pytest.mark.parametrize(("case", "pool", "device", "side"), BENCHMARKS)
def bench_op(case, pool, device, side, small, benchmark, sgemm_rate, rows):
    data = case.pools[pool](small)
    name = label(pool, data)
    data = moved(data, device)
    call = synchronized(case.sides[side].prepare(data), device)
    result = call()
    if side != OURS and case.sides[side].checked:
        check_agreement(case, name, side, data, case.sides[OURS].prepare(data)(), result)
    del result
    memory = peak_memory(call, device)
    benchmark.group = f"{case.op}, {name}, {device}"
    rounds = ROUNDS if side.startswith(OURS) else ROUNDS_OF_RIVALS
    benchmark.pedantic(call, warmup_rounds=1, rounds=1 if small else rounds)
    if benchmark.stats is not None:  # None under --benchmark-disable
        times = benchmark.stats.stats.data
        rows.append(row(case, name, device, side, data, times, memory, sgemm_rate(device)))

"""The kernel's vector code for processors that may not be here: right, and fast where read."""

import platform
import re

import pytest
from llvmlite import binding as llvm
from llvmlite import ir
from test_kernel_ladder import SELF_TEST, python

from xsoilsm import _tiles
from xsoilsm import kernel as kernel_module
from xsoilsm._emit import (
    Convolution,
    Dense,
    Pairs,
    emit_convolution,
    emit_dense,
    emit_pairs,
)
from xsoilsm._layers import MACHINE, PAIRS_TAIL, TAIL, Machine

PROCESSORS = {
    "haswell": ("+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+f16c,+fma,+lzcnt,+popcnt,+sse4.2", 8),
    "x86-64": ("+64bit,+sse,+sse2", 4),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 processors only")
@pytest.mark.parametrize("name", PROCESSORS)
def test_code_for_older_processors_is_right(name):
    features, lanes = PROCESSORS[name]
    host = llvm.get_host_cpu_features()
    if not all(host.get(f[1:], True) for f in features.split(",")):
        pytest.skip(f"this processor cannot run code for {name}")
    code = SELF_TEST + "from xsoilsm._layers import MACHINE; print(engine.way, MACHINE.lanes)"
    found = python(code, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert found == f"kernel {lanes}"


# --------------------------------------------------------------------------- assembly

TARGETS = [
    ("x86_64-unknown-linux-gnu", "skylake-avx512", "+avx,+avx2,+fma,+avx512f"),
    ("x86_64-unknown-linux-gnu", "znver4", "+avx,+avx2,+fma,+avx512f"),
    ("x86_64-unknown-linux-gnu", "haswell", "+avx,+avx2,+fma"),
    ("x86_64-unknown-linux-gnu", "sandybridge", "+avx"),
    ("x86_64-unknown-linux-gnu", "x86-64", "+sse2"),
    ("x86_64-apple-darwin", "penryn", "+sse2"),
    ("aarch64-unknown-linux-gnu", "generic", "+neon"),
    ("aarch64-unknown-linux-gnu", "neoverse-v1", "+neon"),
    ("arm64-apple-macosx", "apple-m1", "+neon"),
]


@pytest.mark.parametrize(("triple", "processor", "features"), TARGETS)
def test_sums_stay_in_registers_on(triple, processor, features):
    """The vector code is compiled for processors that may not be here, and read."""
    machine = Machine.of(triple, features.split(","))
    lanes, positions, vectors, outputs = machine
    for emit, tile, values in (
        (emit_convolution, Convolution(lanes, 4, positions, 2), 7),
        (emit_convolution, Convolution(lanes, 4, positions, 2, given=46), 7),
        (emit_dense, Dense(lanes, vectors, outputs, relu=True), 5),
        *((_line(i), Pairs(lanes, 4, positions), 10) for i in range(4)),
    ):
        assembly = _assembly(emit, tile, values, triple, processor)
        loops = [b for b in re.split(r"\n(?=\S+:)", assembly) if len(_PRODUCT.findall(b)) > 7]
        assert loops, "no loop of products found"
        # the convolution by differences needs all registers: a few sums may have to leave
        for loop in loops:
            allowed = len(_PRODUCT.findall(loop)) // 8 if isinstance(tile, Pairs) else 0
            assert len(_STACK.findall(loop)) <= allowed


def _line(number, compute=False):
    return lambda builder, tile, values: emit_pairs(builder, tile, number, compute, values)


_PRODUCT = re.compile(r"\bv?fmadd\w+|\bv?mulps|\bfmla")
_STACK = re.compile(r"\(%rsp\)|\(%rbp\)|\[sp")


def _assembly(emit, tile, values, triple, processor):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * values), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, tile, list(function.args))
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    return machine.emit_assembly(parsed)


def test_the_sizes_of_this_processor_fit_the_networks():
    assert 46 % MACHINE.positions == 22 % MACHINE.positions == TAIL
    assert TAIL % 2 == 0
    assert 0 < PAIRS_TAIL == 11 % MACHINE.positions
    assert kernel_module._compiled_loops(0) is kernel_module._compiled_loops(0)
    assert 0 < _tiles.FINGERPRINT < 2**63

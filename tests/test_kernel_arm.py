"""The kernel's vector code for ARM, run in an emulator: right numbers, whatever machine tests."""

import struct

import numpy as np
import pytest
from llvmlite import binding as llvm
from llvmlite import ir

from xsoilsm._emit import (
    Convolution,
    Dense,
    Pairs,
    emit_convolution,
    emit_copy,
    emit_dense,
    emit_pairs,
)
from xsoilsm._layers import FILTER_TILE, Machine
from xsoilsm.folding import Layer
from xsoilsm.kernel import _pack_pairs

unicorn = pytest.importorskip("unicorn", reason="the emulator is a development extra")

TRIPLE = "aarch64-unknown-linux-gnu"
LANES, POSITIONS, VECTORS, OUTPUTS = Machine.of(TRIPLE, ["+neon"])
CODE, STACK, DATA = 0x10000, 0x80000, 0x100000


def machine_code(emit, values):
    """Code of a function of so many int64; it refers to nothing outside."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = TRIPLE
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * values), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, list(function.args))
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu="neoverse-n1", opt=3)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    elf = machine.emit_object(parsed)
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    executable = [elf[at : at + length] for _, _, flags, _, at, length in sections if flags & 4]
    (code,) = (part for part in executable if part)
    return code


class Arm:
    """Memory and processor."""

    def __init__(self):
        from unicorn import arm64_const

        self.registers = arm64_const
        self.emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.emulator.mem_map(CODE, DATA - CODE)
        self.emulator.mem_map(DATA, 1 << 22)
        self.emulator.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        self.next = DATA

    def put(self, values):
        """Copy numbers into memory, return their address."""
        address = self.next
        data = np.ascontiguousarray(values, np.float32).tobytes()
        self.emulator.mem_write(address, data)
        self.next += -(-len(data) // 64) * 64
        return address

    def get(self, address, shape):
        data = self.emulator.mem_read(address, 4 * int(np.prod(shape)))
        return np.frombuffer(bytes(data), np.float32).reshape(shape)

    def call(self, emit, *values):
        code = machine_code(emit, len(values))
        emulator, registers = self.emulator, self.registers
        emulator.ctl_remove_cache(CODE, STACK)
        emulator.mem_write(CODE, code)
        for number, value in enumerate(values[:8]):
            emulator.reg_write(getattr(registers, f"UC_ARM64_REG_X{number}"), value)
        emulator.mem_write(STACK, struct.pack(f"<{len(values[8:])}q", *values[8:]))
        emulator.reg_write(registers.UC_ARM64_REG_SP, STACK)
        end = CODE + len(code)
        emulator.reg_write(registers.UC_ARM64_REG_LR, end)
        emulator.emu_start(CODE, end)


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def convolved(x, kernels, bias):
    """Return the valid convolution (filter, position, lane) of (channel, position, lane)."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(float), 5, axis=1)
    return np.einsum("cplk,fkc->fpl", windows, kernels) + bias[:, None, None]


def test_convolution():
    arm, channels = Arm(), 3
    x, bias = random(channels, POSITIONS + 4, LANES), random(FILTER_TILE)
    kernels = random(FILTER_TILE, 5, channels)
    out = arm.put(np.zeros((FILTER_TILE, POSITIONS // 2, LANES)))
    tile = Convolution(LANES, FILTER_TILE, POSITIONS, 2)
    arm.call(
        lambda builder, values: emit_convolution(builder, tile, values),
        arm.put(kernels.transpose(2, 1, 0)), arm.put(bias), arm.put(x), channels, x[0].nbytes,
        out, 4 * POSITIONS // 2 * LANES,
    )  # fmt: skip
    y = np.maximum(convolved(x, kernels, bias), 0)
    found = arm.get(out, (FILTER_TILE, POSITIONS // 2, LANES))
    np.testing.assert_allclose(found, y[:, ::2] + y[:, 1::2], atol=1e-5)


@pytest.mark.parametrize("pairs", [POSITIONS, 11 % POSITIONS])
def test_convolution_by_differences(pairs):
    arm, channels, filters = Arm(), 32, 2 * FILTER_TILE
    x, bias = random(channels, 2 * pairs + 4, LANES), random(filters)
    kernels = random(filters, 5, channels) / 8
    weights = [arm.put(part) for part in _pack_pairs(kernels)]
    start, source = arm.put(bias), arm.put(x)
    size = FILTER_TILE * pairs * LANES
    kept = arm.put(np.zeros(2 * 2 * size))
    differences = arm.put(np.zeros((2, channels, pairs + 1, LANES)))
    out = arm.put(np.zeros((filters, pairs, LANES)))
    for number in range(8):
        line, tile = divmod(number, 2)
        arm.call(
            lambda builder, values, line=line, tile=tile: emit_pairs(
                builder, Pairs(LANES, FILTER_TILE, pairs), line, tile == 0, values
            ),
            weights[number], start + 4 * FILTER_TILE * tile, differences, source, channels,
            x[0].nbytes, kept + 4 * size * tile, 2 * 4 * size, out + 4 * size * tile,
            4 * pairs * LANES,
        )  # fmt: skip
    y = np.maximum(convolved(x, kernels, bias), 0)
    found = arm.get(out, (filters, pairs, LANES))
    np.testing.assert_allclose(found, y[:, ::2] + y[:, 1::2], atol=1e-5)


@pytest.mark.parametrize("inputs", [1, 30])
def test_dense(inputs):
    arm = Arm()
    layer = Layer(random(OUTPUTS, inputs), random(OUTPUTS))
    x = random(inputs, VECTORS, LANES)
    x[0, 0, 1] = np.nan
    out = arm.put(np.zeros((OUTPUTS, VECTORS, LANES)))
    tile = Dense(LANES, VECTORS, OUTPUTS, relu=True)
    arm.call(
        lambda builder, values: emit_dense(builder, tile, values),
        arm.put(layer.weight.T), arm.put(layer.bias), arm.put(x), inputs, out,
    )  # fmt: skip
    found = arm.get(out, (OUTPUTS, VECTORS, LANES))
    y = np.einsum("oi,ivl->ovl", layer.weight, x) + layer.bias[:, None, None]
    np.testing.assert_allclose(found, np.maximum(y, 0), atol=1e-5)
    assert np.isnan(found[:, 0, 1]).all()


def test_copies_from_any_address():
    arm = Arm()
    source, target = arm.put(random(LANES + 1)), arm.put(np.zeros(LANES))
    arm.call(lambda builder, values: emit_copy(builder, LANES, values), source + 4, target)
    assert np.array_equal(arm.get(target, LANES), random(LANES + 1)[1:])

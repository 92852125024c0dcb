"""Step 5 of 7 (networks): vector code of the innermost loops, in LLVM's language.

Each function here writes, at the place where a builder stands, one loop whose sums stay in the
processor's registers from the first product to the last: a vector holds one number for each of
`lanes` pixels, an accumulator is such a vector, and a tile of accumulators is as large as the
register file allows. `xsoilsm.kernel` calls them between ordinary loops.

Addresses and strides are 64-bit integers, in bytes. Products are added by ``llvm.fmuladd``: one
rounding where the processor has the instruction, two where it has not, never a library call.
ReLU is ``0 if x < 0 else x``, which keeps NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llvmlite import ir

__all__ = [
    "KERNEL",
    "PRODUCTS",
    "Convolution",
    "Dense",
    "Pairs",
    "emit_convolution",
    "emit_copy",
    "emit_dense",
    "emit_pairs",
]

KERNEL = 5
"""Steps that a convolution sees."""

PRODUCTS = 7
"""Products that two neighbouring positions of a convolution need with `emit_pairs`."""

BYTE, INT, INDEX, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
SIZE = 4  # bytes of a float32

Values = Sequence[ir.Value]
Body = Callable[[list[ir.Value], list[ir.Value]], list[ir.Value]]


class Convolution(NamedTuple):
    """What is fixed when the loop of a convolution is written.

    Parameters
    ----------
    lanes : int
        Pixels in a vector.
    filters, positions : int
        Size of the tile.
    window : int
        Sums over so many positions are stored, after ReLU; 0 stores the plain results.
    given : int
        Not zero: the sums start from a number for each filter and position, instead of each
        filter, and the numbers of two filters are so many vectors apart.
    more : bool
        Add to what is at the target, instead of replacing it.
    """

    lanes: int
    filters: int
    positions: int
    window: int
    given: int = 0
    more: bool = False


class Pairs(NamedTuple):
    """What is fixed when the loops of a convolution by differences are written.

    Parameters
    ----------
    lanes : int
        Pixels in a vector.
    filters, pairs : int
        Size of the tile; a pair is two neighbouring positions.
    """

    lanes: int
    filters: int
    pairs: int


class Dense(NamedTuple):
    """What is fixed when the loop of a dense layer is written.

    Parameters
    ----------
    lanes : int
        Pixels in a vector.
    vectors, outputs : int
        Size of the tile.
    relu : bool
    """

    lanes: int
    vectors: int
    outputs: int
    relu: bool


class _Vectors:
    """Loads, stores and arithmetic on vectors of one length."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder = builder
        self.type = ir.VectorType(FLOAT, lanes)
        self.bytes = lanes * SIZE
        self.zero = ir.Constant(self.type, None)
        self._undefined = ir.Constant(self.type, ir.Undefined)
        self._first = ir.Constant(ir.VectorType(INT, lanes), None)
        name = f"llvm.fmuladd.v{lanes}f32"
        signature = ir.FunctionType(self.type, [self.type] * 3)
        known = builder.module.globals.get(name)
        self._fmuladd = known or ir.Function(builder.module, signature, name)

    def pointer(self, address: ir.Value) -> ir.Value:
        """Pointer to an address."""
        return self.builder.inttoptr(address, BYTE.as_pointer())

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        """Pointer some bytes further on."""
        distance = ir.Constant(INDEX, offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [distance])

    def load(self, pointer: ir.Value, offset: int, align: int = 0) -> ir.Value:
        """Vector from memory, by default aligned to its length."""
        place = self.builder.bitcast(self.at(pointer, offset), self.type.as_pointer())
        return self.builder.load(place, align=align or self.bytes)

    def store(self, value: ir.Value, pointer: ir.Value, offset: int) -> None:
        """Vector to memory aligned to its length."""
        place = self.builder.bitcast(self.at(pointer, offset), self.type.as_pointer())
        self.builder.store(value, place, align=self.bytes)

    def broadcast(self, pointer: ir.Value, offset: int) -> ir.Value:
        """One number from memory in all lanes."""
        place = self.builder.bitcast(self.at(pointer, offset), FLOAT.as_pointer())
        number = self.builder.load(place, align=SIZE)
        single = self.builder.insert_element(self._undefined, number, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(single, self._undefined, self._first)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return a * b + c."""
        return self.builder.call(self._fmuladd, [a, b, c])

    def relu(self, x: ir.Value) -> ir.Value:
        """Zero where x is below zero, else x."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, self.zero), self.zero, x)

    def loop(
        self, count: ir.Value, moving: Values, steps: Values, sums: Values, body: Body
    ) -> Sums:
        """Repeat `body`: pointers move on by their steps, sums become what it returns.

        Returns the pointers and the sums after the last turn.
        """
        builder, entry = self.builder, self.builder.block
        head = builder.append_basic_block()
        inside = builder.append_basic_block()
        after = builder.append_basic_block()
        zero, one = ir.Constant(INDEX, 0), ir.Constant(INDEX, 1)
        starts = [zero, *moving, *sums]
        builder.branch(head)
        builder.position_at_end(head)
        running = [builder.phi(start.type) for start in starts]
        index, pointers = running[0], running[1 : 1 + len(moving)]
        builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
        builder.position_at_end(inside)
        new_sums = body(pointers, running[1 + len(moving) :])
        new_pointers = [self.at(p, step) for p, step in zip(pointers, steps, strict=True)]
        ends = [builder.add(index, one), *new_pointers, *new_sums]
        for phi, start, end in zip(running, starts, ends, strict=True):
            phi.add_incoming(start, entry)
            phi.add_incoming(end, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return Sums(pointers, running[1 + len(moving) :])


class Sums(NamedTuple):
    """Pointers and sums after a loop."""

    pointers: list[ir.Value]
    values: list[ir.Value]


def emit_convolution(builder: ir.IRBuilder, tile: Convolution, values: Values) -> None:
    """Write the code of some filters at some neighbouring positions.

    Parameters
    ----------
    builder : IRBuilder
    tile : Convolution
        Nothing is written for a tile without positions.
    values : sequence of 7 int64 values
        Addresses of the weights (channel, kernel, filter), of the numbers to start from
        ((filter), or one lane of (filter, position, lane)) and of the input (channel, position,
        lane); number of channels and bytes between them; address of the output (filter, window,
        lane) and bytes between its filters.
    """
    if tile.positions == 0:
        return
    weights, start, source, channels, channel_step, target, filter_step = values
    v = _Vectors(builder, tile.lanes)
    filters, positions = range(tile.filters), range(tile.positions)
    start, target = v.pointer(start), v.pointer(target)
    if tile.given:
        numbers = [f * tile.given + p for f in filters for p in positions]
        sums = [v.broadcast(start, v.bytes * i) for i in numbers]
    else:
        sums = [bias for f in filters for bias in [v.broadcast(start, SIZE * f)] for _ in positions]

    def channel(pointers: list[ir.Value], sums: list[ir.Value]) -> list[ir.Value]:
        weight_row, row = pointers
        for k in range(KERNEL):
            x = [v.load(row, v.bytes * (p + k)) for p in positions]
            for f in filters:
                weight = v.broadcast(weight_row, SIZE * (k * tile.filters + f))
                for p in positions:
                    i = f * tile.positions + p
                    sums[i] = v.multiply_add(x[p], weight, sums[i])
        return sums

    steps = [ir.Constant(INDEX, SIZE * KERNEL * tile.filters), channel_step]
    moving = [v.pointer(weights), v.pointer(source)]
    sums = v.loop(channels, moving, steps, sums, channel).values
    for f in filters:
        row = sums[f * tile.positions : (f + 1) * tile.positions]
        if tile.window:
            row = [v.relu(x) for x in row]
            row = [_sum(builder, row[p : p + tile.window]) for p in positions[:: tile.window]]
        for i, x in enumerate(row):
            x = builder.fadd(v.load(target, v.bytes * i), x) if tile.more else x
            v.store(x, target, v.bytes * i)
        target = v.at(target, filter_step)


class _Term(NamedTuple):
    """Inputs of one of the products in a line of `emit_pairs`: x[left] +- x[right].

    What is computed for the first filters is kept in a row of memory for the others; a slot
    that is not given means inputs that need no computing.
    """

    left: int
    right: int
    sign: int
    slot: int = 0
    computed: bool = True
    shift: int = 0


_LINES = (
    (_Term(1, 2, 1), _Term(4, 0, 0, computed=False)),
    (_Term(2, 1, -1, slot=1),),
    (_Term(0, 2, -1), _Term(0, 0, 0, slot=1, computed=False, shift=1)),
    (_Term(3, 1, -1), _Term(5, 4, -1, slot=1)),
)


def emit_pairs(
    builder: ir.IRBuilder, tile: Pairs, line: int, compute: bool, values: Values
) -> None:
    """Write the code of one part of a convolution with `KERNEL` steps, ReLU and sums of pairs.

    Two positions need 10 products, but 7 suffice if differences of inputs and sums of weights
    are taken before: 4 for the first three steps (Winograd 1980, F(2, 3)) and 3 for the last
    two (F(2, 2)). With inputs x0 to x5, weights g0 to g4 and sums over channels, the lines are

    0. both = bias + (x1 + x2) (g0 + g1 + g2) / 2 + x4 (g3 + g4)
    1. apart = (x2 - x1) (g0 - g1 + g2) / 2
    2. first = both + apart + (x0 - x2) g0 + (x4 - x3) (-g3)
    3. second = both - apart + (x3 - x1) g2 + (x5 - x4) g4

    Parameters
    ----------
    builder : IRBuilder
    tile : Pairs
    line : int
        Lines are run one after the other.
    compute : bool
        Take differences and keep them, which the first filters of each line must.
    values : sequence of 10 int64 values
        Addresses of the weights (channel, product, filter) of a line, of the biases (filter), of
        memory for differences (2, channel, pair + 1, lane), of the input from x0 on (channel,
        position, lane); number of channels and bytes between them in the input; address of
        memory for a tile and bytes to another one; address of the output (filter, pair, lane)
        and bytes between its filters.
    """
    weights, bias, differences, source, channels, channel_step = values[:6]
    kept, other, target, filter_step = values[6:]
    v = _Vectors(builder, tile.lanes)
    filters, pairs = range(tile.filters), range(tile.pairs)
    bias, kept, target = v.pointer(bias), v.pointer(kept), v.pointer(target)
    other = v.at(kept, other)
    places = [v.bytes * i for i in range(tile.filters * tile.pairs)]
    row_bytes = ir.Constant(INDEX, v.bytes * (tile.pairs + 1))
    slots = [v.pointer(differences)]
    slots.append(v.at(slots[0], builder.mul(channels, row_bytes)))
    start = {
        0: lambda: [b for f in filters for b in [v.broadcast(bias, SIZE * f)] for _ in pairs],
        1: lambda: [v.zero for _ in places],
        2: lambda: [v.load(other, at) for at in places],
        3: lambda: [v.load(kept, at) for at in places],
    }[line]()

    def inputs(term: _Term, row: ir.Value, slots: Values) -> list[ir.Value]:
        if term.sign == 0 and term.shift == 0:
            return [v.load(row, v.bytes * (term.left + 2 * p)) for p in pairs]
        if not (compute and term.computed):
            return [v.load(slots[term.slot], v.bytes * (p + term.shift)) for p in pairs]
        combine = builder.fadd if term.sign > 0 else builder.fsub
        found = []
        for p in range(tile.pairs + (line == 1)):
            left, right = (v.load(row, v.bytes * (i + 2 * p)) for i in (term.left, term.right))
            found.append(combine(left, right))
            v.store(found[-1], slots[term.slot], v.bytes * p)
        return found

    def channel(pointers: list[ir.Value], sums: list[ir.Value]) -> list[ir.Value]:
        weight_row, row, *slots = pointers
        for number, term in enumerate(_LINES[line]):
            x = inputs(term, row, slots)
            for f in filters:
                weight = v.broadcast(weight_row, SIZE * (number * tile.filters + f))
                for p in pairs:
                    i = f * tile.pairs + p
                    sums[i] = v.multiply_add(x[p], weight, sums[i])
        return sums

    weight_step = ir.Constant(INDEX, SIZE * tile.filters * len(_LINES[line]))
    moving = [v.pointer(weights), v.pointer(source), *slots]
    steps = [weight_step, channel_step, row_bytes, row_bytes]
    sums = v.loop(channels, moving, steps, start, channel).values
    if line == 0:
        for x, at in zip(sums, places, strict=True):
            v.store(x, kept, at)
    elif line == 1:
        for x, at in zip(sums, places, strict=True):
            both = v.load(kept, at)
            v.store(builder.fadd(both, x), other, at)
            v.store(builder.fsub(both, x), kept, at)
    elif line == 2:
        for x, at in zip(sums, places, strict=True):
            v.store(v.relu(x), other, at)
    else:
        for f in filters:
            for p in pairs:
                at = f * tile.pairs + p
                pair = builder.fadd(v.load(other, places[at]), v.relu(sums[at]))
                v.store(pair, target, v.bytes * p)
            target = v.at(target, filter_step)


def emit_dense(builder: ir.IRBuilder, tile: Dense, values: Values) -> None:
    """Write the code of some outputs of a dense layer.

    Parameters
    ----------
    builder : IRBuilder
    tile : Dense
    values : sequence of 5 int64 values
        Addresses of the weights (input, output), of the biases (output) and of the inputs
        (input, vector, lane); number of inputs; address of the outputs (output, vector, lane).
    """
    weights, bias, source, inputs, target = values
    v = _Vectors(builder, tile.lanes)
    outputs, vectors = range(tile.outputs), range(tile.vectors)
    row_bytes = v.bytes * tile.vectors
    bias, target = v.pointer(bias), v.pointer(target)
    start = [b for o in outputs for b in [v.broadcast(bias, SIZE * o)] for _ in vectors]

    def turn(rows: int) -> Body:
        def body(pointers: list[ir.Value], sums: list[ir.Value]) -> list[ir.Value]:
            weight_row, row = pointers
            for k in range(rows):
                x = [v.load(row, k * row_bytes + v.bytes * i) for i in vectors]
                for o in outputs:
                    weight = v.broadcast(weight_row, SIZE * (k * tile.outputs + o))
                    for i in vectors:
                        at = o * tile.vectors + i
                        sums[at] = v.multiply_add(x[i], weight, sums[at])
            return sums

        return body

    def steps(rows: int) -> list[ir.Value]:
        return [ir.Constant(INDEX, rows * b) for b in (SIZE * tile.outputs, row_bytes)]

    one = ir.Constant(INDEX, 1)
    moving = [v.pointer(weights), v.pointer(source)]
    pairs = v.loop(builder.lshr(inputs, one), moving, steps(2), start, turn(2))
    last = v.loop(builder.and_(inputs, one), pairs.pointers, steps(1), pairs.values, turn(1))
    for i, x in enumerate(last.values):
        v.store(v.relu(x) if tile.relu else x, target, v.bytes * i)


def emit_copy(builder: ir.IRBuilder, lanes: int, values: Values) -> None:
    """Write the code that copies a vector.

    Parameters
    ----------
    builder : IRBuilder
    lanes : int
    values : sequence of 2 int64 values
        Address of the source, aligned to a number only, and of the target.
    """
    v = _Vectors(builder, lanes)
    source, target = map(v.pointer, values)
    v.store(v.load(source, 0, align=SIZE), target, 0)


def _sum(builder: ir.IRBuilder, terms: list[ir.Value]) -> ir.Value:
    total = terms[0]
    for term in terms[1:]:
        total = builder.fadd(total, term)
    return total

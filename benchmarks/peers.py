"""The same networks in general inference engines, one thread each; development extras only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xsoilsm.folding import fold
from xsoilsm.state import State

BATCH = 1024
"""Pixels of a call, at which these engines do well."""

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From snapshot (n, 18) and series (n, 3, 46) to the mean of the members (n,)."""


def peers(states: Sequence[State]) -> dict[str, Run | str]:
    """Return a function for each engine, or why it is not here."""
    found: dict[str, Run | str] = {}
    for name, prepare in (("onnxruntime", _onnxruntime), ("OpenVINO f32", _openvino)):
        try:
            found[name] = _in_batches(prepare(states))
        except ImportError as error:
            found[name] = f"not measured: {error}"
    return found


def _in_batches(run: Run) -> Run:
    def batches(snapshot: np.ndarray, series: np.ndarray) -> np.ndarray:
        parts = [slice(i, i + BATCH) for i in range(0, len(snapshot), BATCH)]
        return np.concatenate([run(snapshot[part], series[part]) for part in parts])

    return batches


def _onnxruntime(states: Sequence[State]) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_model(states), options, providers=["CPUExecutionProvider"]
    )

    def run(snapshot: np.ndarray, series: np.ndarray) -> np.ndarray:
        (mean,) = session.run(["mean"], {"snapshot": snapshot, "series": series})
        return np.asarray(mean)

    return run


def _openvino(states: Sequence[State]) -> Run:
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    compiled = core.compile_model(core.read_model(onnx_model(states)), "CPU", settings)
    request = compiled.create_infer_request()

    def run(snapshot: np.ndarray, series: np.ndarray) -> np.ndarray:
        request.infer({"snapshot": snapshot, "series": series}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return run


def onnx_model(states: Sequence[State]) -> bytes:
    """All members in one ONNX graph, from snapshot and series to the mean.

    Batch norms stay nodes: folding them is what these engines do themselves.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []
    constants: dict[str, Any] = {}

    def constant(name: str, values: Any, dtype: Any = np.float32) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype), name)
        return name

    def add(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def member(number: int, state: State) -> str:
        def parameters(name: str, *parts: str) -> list[str]:
            keys = [f"{name}.{part}" for part in parts]
            return [constant(f"{number}.{key}", state[key]) for key in keys]

        def norm(x: str, name: str) -> str:
            parts = parameters(name, "weight", "bias", "running_mean", "running_var")
            return add("BatchNormalization", [x, *parts], f"{number}.{name}", epsilon=1e-5)

        def linear(x: str, name: str) -> str:
            inputs = [x, *parameters(name, "weight", "bias")]
            return add("Gemm", inputs, f"{number}.{name}", transB=1)

        def relu(x: str) -> str:
            return add("Relu", [x], f"{x}.relu")

        def part(x: str, name: str, start: int, stop: int) -> str:
            bounds = [constant(f"{name}.{v}", [v], np.int64) for v in (start, stop)]
            axis = constant(f"{name}.axis", [2], np.int64)
            return add("Slice", [x, *bounds, axis], name)

        x = "series"
        for layer in (1, 2, 3):
            name = f"conv_block.conv{layer}"
            padded = add("Pad", [x, "pads"], f"{number}.{name}.pad", mode="edge")
            inputs = [padded, *parameters(name, "weight", "bias")]
            y = relu(norm(add("Conv", inputs, f"{number}.{name}"), f"conv_block.bn{layer}"))
            if layer < 3:
                x = add("AveragePool", [y], f"{y}.pool", kernel_shape=[2], strides=[2])
        pooled = add(
            "AveragePool", [part(y, f"{y}.8", 0, 8)], f"{y}.a", kernel_shape=[4], strides=[4]
        )
        last = add("AveragePool", [part(y, f"{y}.3", 8, 11)], f"{y}.b", kernel_shape=[3])
        joined = add("Concat", [pooled, last], f"{y}.pooled", axis=2)
        flat = add("Flatten", [joined], f"{y}.flat")
        x = norm(add("Concat", ["snapshot", flat], f"{number}.joined", axis=1), "norm")
        for block in range(fold(state).depth):
            new = x
            for layer in (1, 2, 3):
                name = f"dense_layers.{block}"
                new = relu(norm(linear(new, f"{name}.linear{layer}"), f"{name}.bn{layer}"))
            x = add("Concat", [new, x], f"{number}.block{block}", axis=1)
        head = norm(relu(linear(x, "fc_layers.0.linear1")), "fc_layers.0.bn1")
        return linear(head, "out")

    constant("pads", [0, 0, 2, 0, 0, 2], np.int64)
    members = [member(number, state) for number, state in enumerate(states)]
    together = add("Concat", members, "members", axis=1)
    axis = constant("member_axis", [1], np.int64)
    add("ReduceMean", [together, axis], "mean", keepdims=0)
    shapes: dict[str, list[str | int | None]] = {"snapshot": ["n", 18], "series": ["n", 3, 46]}
    graph = helper.make_graph(
        nodes,
        "ensemble",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n"])],
        list(constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data

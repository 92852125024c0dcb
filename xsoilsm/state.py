"""Step 5 of 7 (networks): what a file of weights holds, read with suspicion.

Published files are pickled state dicts: their SHA-256 is compared with the card before anything
reads them, they are read with ``weights_only=True``, and names, shapes, types and values must be
exactly those of the member's network. Everything else in the package sees plain arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm.card import Member

if TYPE_CHECKING:
    from xsoilsm.network import DenseSM

__all__ = [
    "SERIES_SHAPE",
    "SNAPSHOT_FEATURES",
    "State",
    "WeightsError",
    "build_module",
    "check_state",
    "checked",
    "one_line",
    "read_member",
    "read_safetensors",
    "state_shapes",
    "tensors_digest",
    "to_safetensors",
]

SNAPSHOT_FEATURES = 18
"""Numbers per sample that a network reads beside the series."""

SERIES_SHAPE = (3, 46)
"""Channels and steps of the series that a network reads."""

State = Mapping[str, npt.NDArray[Any]]
"""Arrays of one network by the names of its state dict."""


class WeightsError(RuntimeError):
    """Weights are missing, or are not what the card says."""


def state_shapes(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in the state dict of DenseSM-d-w, without PyTorch.

    Parameters
    ----------
    depth, width : int

    Returns
    -------
    dict of str to tuple of int
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def norm(name: str, size: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (size,)
        shapes[f"{name}.num_batches_tracked"] = ()

    filters = (SERIES_SHAPE[0], 32, 16, 4)
    for number in (1, 2, 3):
        layer(f"conv_block.conv{number}", filters[number], filters[number - 1], 5)
        norm(f"conv_block.bn{number}", filters[number])
    inputs = SNAPSHOT_FEATURES + 12
    norm("norm", inputs)
    for block in range(depth):
        for number in (1, 2, 3):
            columns = inputs if number == 1 else width
            layer(f"dense_layers.{block}.linear{number}", width, columns)
            norm(f"dense_layers.{block}.bn{number}", width)
        inputs += width
    layer("fc_layers.0.linear1", 32, inputs)
    norm("fc_layers.0.bn1", 32)
    layer("out", 1, 32)
    return shapes


def tensors_digest(state: State) -> str:
    """SHA-256 of names, types, shapes and values, independent of the file format.

    Parameters
    ----------
    state : mapping of str to ndarray

    Returns
    -------
    str
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        little = array.astype(array.dtype.newbyteorder("<"), order="C")
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def check_state(state: State, member: Member, where: str) -> None:
    """Refuse arrays that are not the parameters of the member's network.

    Parameters
    ----------
    state : mapping of str to ndarray
    member : Member
    where : str
        Name of the file, for the message.

    Raises
    ------
    WeightsError
        For missing or unknown names, other shapes or types, and numbers that are not finite.
    """
    expected = state_shapes(member.depth, member.width)
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        array, shape = state[name], expected[name]
        counter = name.endswith("num_batches_tracked")
        if array.shape != shape:
            faults.append(f"{name} has shape {array.shape} instead of {shape}")
        elif array.dtype != np.float32 and not (counter and array.dtype == np.int64):
            faults.append(f"{name} has type {array.dtype} instead of float32")
        elif not np.isfinite(array).all():
            faults.append(f"{name} holds numbers that are not finite")
        elif name.endswith("running_var") and (array < 0).any():
            faults.append(f"{name} holds negative variances")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        msg = f"{where} does not hold a DenseSM-{member.label}: {'; '.join(sorted(faults)[:3])}"
        raise WeightsError(msg + more)


def build_module(state: State, member: Member) -> DenseSM:
    """Network with these parameters, in evaluation mode. PyTorch's random state stays as it is.

    Parameters
    ----------
    state : mapping of str to ndarray
    member : Member

    Returns
    -------
    DenseSM

    Raises
    ------
    WeightsError
        When PyTorch is not installed or the parameters do not fit strictly.
    """
    torch = _torch()
    from xsoilsm.network import DenseSM

    with torch.device("meta"):
        module = DenseSM(member.depth, member.width)
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        msg = f"the parameters do not fit DenseSM-{member.label}: {one_line(error)}"
        raise WeightsError(msg) from error
    return module.eval()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        msg = "networks need PyTorch; install it with `pip install 'xsoilsm[torch]'`"
        raise WeightsError(msg) from error
    return torch


def _read_pickle(content: bytes, where: str) -> dict[str, npt.NDArray[Any]]:
    torch = _torch()
    try:
        tensors = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        return {str(name): tensor.detach().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # whatever a foreign file brings about, it is refused
        msg = f"{where} is not a plain state dict and was refused: {one_line(error)}"
        raise WeightsError(msg) from error


def read_safetensors(content: bytes, where: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays in the content of a safetensors file.

    Raises
    ------
    WeightsError
        When it is none.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, npt.NDArray[Any]] = load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        msg = f"{where} is not a valid safetensors file: {one_line(error)}"
        raise WeightsError(msg) from error
    return arrays


def read_member(content: bytes, member: Member, where: str) -> State:
    """Check the hash of a member's file as the card lists it, then read and check its arrays.

    Parameters
    ----------
    content : bytes
    member : Member
    where : str
        Name of the file, for messages.

    Returns
    -------
    mapping of str to ndarray

    Raises
    ------
    WeightsError
        When anything differs from the card.
    """
    found = hashlib.sha256(content).hexdigest()
    if member.sha256 is not None and found != member.sha256:
        msg = (
            f"{where} has sha256 {found}, the card expects {member.sha256}: the file is damaged, "
            "incomplete or another one"
        )
        raise WeightsError(msg)
    read = _read_pickle if member.file.endswith(".pt") else read_safetensors
    return checked(read(content, where), member, where)


def checked(state: State, member: Member, where: str) -> State:
    """Return arrays that pass `check_state` and have the values that the card lists, if it does.

    Raises
    ------
    WeightsError
        When they do not.
    """
    check_state(state, member, where)
    if member.tensors_sha256 not in (None, tensors_digest(state)):
        msg = f"the values in {where} differ from those that the card lists"
        raise WeightsError(msg)
    return state


def to_safetensors(state: State) -> bytes:
    """Content of a safetensors file; the same arrays give the same bytes.

    Parameters
    ----------
    state : mapping of str to ndarray

    Returns
    -------
    bytes
    """
    from safetensors.numpy import save

    arrays = {name: np.array(state[name], order="C") for name in sorted(state)}
    content: bytes = save(arrays, metadata={"format": "pt"})
    return content


def one_line(error: BaseException) -> str:
    """Type and text of an error on one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else text[:157] + "..."

"""Step 5 of 7 (networks): how exactly the products of matrices are computed on a GPU.

float32 is the rule, whatever a process has allowed PyTorch elsewhere. Tensor cores are faster with
operands of fewer bits, at the price of an error that `KNOWN` states. What they do to the
operands and to the sums is imitated on a CPU, so that the error can be had without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

__all__ = ["KNOWN", "Precision", "tensor_cores"]

STEP = 8
"""Products that a tensor core adds to a sum at a time, with TF32 operands."""


@dataclass(frozen=True)
class Precision:
    """A way to compute products of matrices.

    Parameters
    ----------
    name : str
    meaning : str
        For a person.
    error : float
        Largest difference in m3 m-3 from float32 to be expected in mean and spread of the
        published networks; see the documentation on performance.
    dtype : torch.dtype
        Of weights and activations.
    tf32 : bool
        Whether tensor cores take float32 operands, of which they read 11 bits.
    split : bool
        Whether operands are cut in two parts of 11 bits first, for three products.
    """

    name: str
    meaning: str
    error: float
    dtype: torch.dtype = field(default=torch.float32)
    tf32: bool = False
    split: bool = False

    def parts(self, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut numbers in two whose sum is as good as float32 after the loss of bits."""
        if self.dtype != torch.float32:
            high = bias.to(self.dtype).float()
        else:
            high = _chopped(bias) if self.tf32 else bias
        return high, bias - high

    def product(self, weight: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
        """Multiply matrices, or as many pairs of them as there are.

        Computes. On a GPU what `tensor_cores` allows is done by the hardware; on a CPU it is
        imitated.
        """
        imitate = self.tf32 and x.device.type == "cpu"
        multiply = _toward_zero if imitate else (torch.mm if out.ndim == 2 else torch.bmm)
        if not self.split:
            multiply(weight, x, out=out)
            return
        high, weight_high = _chopped(x), _chopped(weight)
        small = torch.empty_like(out)
        multiply(weight_high, x - high, out=out)
        multiply(weight - weight_high, high, out=small)
        out += small
        multiply(weight_high, high, out=small)
        out += small


KNOWN = {
    precision.name: precision
    for precision in (
        Precision("float32", "operands and sums of 24 bits", 1e-6),
        Precision("tf32", "operands of 11 bits, sums of 24", 2e-3, tf32=True),
        Precision("bf16", "operands and results of 8 bits, sums of 24", 5e-3, torch.bfloat16),
        Precision("split-tf32", "operands of 22 bits in two parts", 2e-6, tf32=True, split=True),
    )
}
"""Ways to compute products of matrices, by the names in `xsoilsm.engine.PRECISIONS`."""


def _chopped(x: torch.Tensor) -> torch.Tensor:
    """Leave the 11 leading bits of float32, which is what a tensor core reads of it."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def _toward_zero(weight: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    """Multiply as a tensor core does, at its worst.

    Operands lose the bits that are not read. Products are exact, and a sum of `STEP` of them is
    rounded towards zero as it joins the 24 bits of the whole.
    """
    weight, x = _chopped(weight).double(), _chopped(x.contiguous()).double()
    total = torch.zeros(out.shape, dtype=torch.float64)
    for start in range(0, x.shape[-2], STEP):
        total += weight[..., start : start + STEP] @ x[..., start : start + STEP, :]
        total = (total.view(torch.int64) & ~((1 << 29) - 1)).view(torch.float64)
    out.copy_(total)


# --------------------------------------------------------------------------- settings of torch

_launching = threading.RLock()


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in the products that are launched meanwhile.

    The setting belongs to the process. It is touched only where it differs, for the time of a
    launch rather than of the computation, by one thread at a time, and put back.

    Parameters
    ----------
    allowed : bool
    """
    settings = torch.backends.cuda.matmul
    # torch 2.9 brought the second name, and refuses to read the first one where they disagree.
    new = hasattr(settings, "fp32_precision")
    with _launching:
        before = settings.fp32_precision if new else settings.allow_tf32
        if (before == ("tf32" if new else True)) == allowed:
            yield
            return
        if not new:
            settings.allow_tf32 = allowed
            try:
                yield
            finally:
                settings.allow_tf32 = before
            return
        settings.fp32_precision = "tf32" if allowed else "ieee"
        try:
            yield
        finally:
            settings.fp32_precision = "none"
            if settings.fp32_precision != before:  # else it came from a wider setting
                settings.fp32_precision = before

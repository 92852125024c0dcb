"""Step 7 of 7 (write): what a composite says of the acquisitions of its period.

A period is a day in UTC, one of the 46 fixed eight-day periods of a year (`xsoilsm.periods`), or
a calendar month; an acquisition belongs to that of its date. For each cell, over the retrievals
of the period that are not missing:

* ``soil_moisture`` is their arithmetic mean,
* ``soil_moisture_std`` is the mean of their spreads: the members err alike from one acquisition
  to the next, so averaging in time does not reduce their spread,
* ``quality_flag`` has every bit that one of them has,
* ``observations`` is their number.

Where no retrieval is there, the first two are NaN, ``observations`` is 0, and ``quality_flag`` has
every bit of the acquisitions that see the cell, or ``no_scene`` where none does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm.quality import QualityFlag

__all__ = ["Composite"]


class Composite:
    """Sums over acquisitions, which are added one by one in order of time.

    Examples
    --------
    >>> composite = Composite()
    >>> composite.add(result)  # doctest: +SKIP
    >>> composite.finish()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._like: xr.Dataset | None = None
        self._mean: npt.NDArray[np.float64] = np.zeros(())
        self._std: npt.NDArray[np.float64] = np.zeros(())
        self._count: npt.NDArray[np.uint16] = np.zeros((), np.uint16)
        self._used: npt.NDArray[np.uint32] = np.zeros((), np.uint32)
        self._unused: npt.NDArray[np.uint32] = np.zeros((), np.uint32)
        self._seen: npt.NDArray[np.bool_] = np.zeros((), np.bool_)

    def add(self, result: xr.Dataset) -> None:
        """Add one acquisition. Computes.

        Parameters
        ----------
        result : Dataset
            Of `xsoilsm.retrieve`, variables (y, x).
        """
        mean = result["soil_moisture"].values
        flags = result["quality_flag"].values.astype(np.uint32)
        if self._like is None:
            self._like = result
            self._mean, self._std = np.zeros((2, *mean.shape))
            self._count = np.zeros(mean.shape, np.uint16)
            self._used, self._unused = np.zeros((2, *mean.shape), np.uint32)
            self._seen = np.zeros(mean.shape, bool)
        valid = ~np.isnan(mean)
        self._mean[valid] += mean[valid]
        self._std[valid] += result["soil_moisture_std"].values[valid]
        self._count += valid
        self._used[valid] |= flags[valid]
        seen = (flags & np.uint32(QualityFlag.NO_SCENE)) == 0
        self._unused[seen & ~valid] |= flags[seen & ~valid]
        self._seen |= seen

    def finish(self) -> xr.Dataset:
        """Composite of what was added.

        Returns
        -------
        Dataset
            Variables (y, x) with the attributes of the first acquisition, and ``observations``.

        Raises
        ------
        ValueError
            When nothing was added.
        """
        if self._like is None:
            msg = "a composite of no acquisition was asked for; add at least one"
            raise ValueError(msg)
        empty = self._count == 0
        count = np.where(empty, 1, self._count)
        mean, std = ((s / count).astype(np.float32) for s in (self._mean, self._std))
        mean[empty] = std[empty] = np.nan
        missing = np.where(self._seen, self._unused, np.uint32(QualityFlag.NO_SCENE))
        flags = np.where(empty, missing, self._used).astype(np.uint32)
        like = self._like
        values = {"soil_moisture": mean, "soil_moisture_std": std, "quality_flag": flags}
        like = like[list(values)]  # a composite has nothing else of single acquisitions
        data = {name: like[name].copy(data=value) for name, value in values.items()}
        data["observations"] = xr.DataArray(
            self._count,
            dims=("y", "x"),
            attrs={"units": "1", "long_name": "number of retrievals in the mean"},
        )
        whole = like.assign(data)
        along = ("time", "relative_orbit", "orbit_state", "platform", "sigma0_from")
        return whole.drop_vars([name for name in along if name in whole.coords])

"""Outside the seven steps (simulate): C-band backscatter of soil under vegetation.

Pure functions of arrays: sigma nought of rough bare soil, vegetation above it, speckle, noise
and the two ways of normalising by area. Nothing is read.

Sources
-------
Bare soil: Oh (2004), IEEE TGRS 42(3), 596-601, fitted for 0.04-0.29 m3 m-3, ks 0.13-6.98 and
10-70 degrees; used a little beyond in moisture, where it stays smooth and monotonic.
Vegetation: water cloud model of Attema and Ulaby (1978), Radio Science 13(2), with NDVI as the
descriptor and coefficients as fitted for C band by Baghdadi et al. (2017), Remote Sensing 9(9),
969 (their values are still to be held against the article). Speckle: multilook intensity follows
a gamma distribution (Ulaby, Moore and Fung 1986).
Normalisation: Small (2011), IEEE TGRS 49(8).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "LOOKS",
    "angle_factor",
    "bare_soil",
    "cloud",
    "local_incidence",
    "noise_equivalent",
    "soil_factor",
    "speckle",
    "terrain_flattened",
    "water_cloud",
]

Float32 = npt.NDArray[np.float32]
Polarisation = Literal["vv", "vh"]

LOOKS = 4.4
"""Equivalent number of looks of IW GRD at high resolution (product specification)."""

_CLOUD: dict[Polarisation, tuple[float, float]] = {"vv": (0.0950, 0.5513), "vh": (0.0413, 1.1662)}
"""Coefficients A and B of the water cloud model with NDVI as the vegetation descriptor."""


def soil_factor(moisture: Float32, roughness: Float32, polarisation: Polarisation) -> Float32:
    """Share of the bare-soil model that does not depend on the angle.

    Parameters
    ----------
    moisture : ndarray
        Volumetric soil moisture in m3 m-3.
    roughness : ndarray
        Wave number times standard deviation of heights (ks), 1.
    polarisation : {"vv", "vh"}

    Returns
    -------
    ndarray of float32
        Its product with `angle_factor` is sigma nought.
    """
    cross = moisture**0.7 * (1 - np.exp(-0.32 * roughness**1.8))
    if polarisation == "vv":
        cross = cross / (1 - np.exp(-1.3 * roughness**0.9))
    return np.asarray(cross, dtype=np.float32)


def angle_factor(cosine: Float32, polarisation: Polarisation) -> Float32:
    """Share of the bare-soil model that depends on the angle.

    Parameters
    ----------
    cosine : ndarray
        Cosine of the local incidence angle.
    polarisation : {"vv", "vh"}

    Returns
    -------
    ndarray of float32
    """
    cross = np.float32(0.11) * cosine ** np.float32(2.2)
    if polarisation == "vv":
        angle = np.arccos(cosine)
        cross = cross / (0.095 * (0.13 + np.sin(1.5 * angle)) ** np.float32(1.4))
    return np.asarray(cross, dtype=np.float32)


def bare_soil(
    moisture: Float32, roughness: Float32, incidence: Float32, polarisation: Polarisation
) -> Float32:
    """Sigma nought of bare soil (Oh 2004).

    Parameters
    ----------
    moisture : ndarray
        m3 m-3.
    roughness : ndarray
        ks, 1.
    incidence : ndarray
        Local incidence angle in degrees.
    polarisation : {"vv", "vh"}

    Returns
    -------
    ndarray of float32
        Power, 1.
    """
    cosine = np.cos(np.deg2rad(incidence))
    return soil_factor(moisture, roughness, polarisation) * angle_factor(cosine, polarisation)


def cloud(cosine: Float32, vegetation: Float32, polarisation: Polarisation) -> tuple[
    Float32, Float32
]:  # fmt: skip
    """Scattering and two-way transmission of vegetation (Attema and Ulaby 1978).

    Parameters
    ----------
    cosine : ndarray
        Cosine of the local incidence angle.
    vegetation : ndarray
        NDVI, not negative.
    polarisation : {"vv", "vh"}

    Returns
    -------
    scattering, transmission : ndarray of float32
        ``A V cos(theta) (1 - T)`` and ``T = exp(-2 B V / cos(theta))``.
    """
    a, b = (np.float32(c) for c in _CLOUD[polarisation])
    transmission = np.exp(-2 * b * vegetation / cosine)
    return a * vegetation * cosine * (1 - transmission), transmission


def water_cloud(
    soil: Float32, vegetation: Float32, incidence: Float32, polarisation: Polarisation
) -> Float32:
    """Sigma nought of soil under vegetation.

    Parameters
    ----------
    soil : ndarray
        Sigma nought of the bare soil, power.
    vegetation : ndarray
        NDVI; negative values count as bare.
    incidence : ndarray
        Local incidence angle in degrees.
    polarisation : {"vv", "vh"}

    Returns
    -------
    ndarray of float32
        Power, 1.
    """
    cosine = np.cos(np.deg2rad(incidence))
    above, passed = cloud(cosine, np.maximum(vegetation, 0), polarisation)
    return np.asarray(above + passed * soil, dtype=np.float32)


def local_incidence(
    cosine: Float32, sine: Float32, azimuth: tuple[Float32, Float32], east: Float32, north: Float32
) -> Float32:
    """Cosine of the angle between the look and the normal of a slope.

    Parameters
    ----------
    cosine, sine : ndarray
        Of the incidence angle on the ellipsoid.
    azimuth : (ndarray, ndarray)
        Sine and cosine of the direction from the ground to the satellite, clockwise from north.
    east, north : ndarray
        Rise of the terrain per m to the east and to the north.

    Returns
    -------
    ndarray of float32
        At least 0.05: steeper shadow is not simulated.
    """
    towards = azimuth[0] * east + azimuth[1] * north
    value = (cosine - sine * towards) / np.sqrt(1 + east**2 + north**2)
    return np.asarray(np.maximum(value, np.float32(0.05)), dtype=np.float32)


def noise_equivalent(share: Float32) -> Float32:
    """Noise-equivalent sigma nought across the swath.

    Parameters
    ----------
    share : ndarray
        Place in the swath, 0 at near to 1 at far range.

    Returns
    -------
    ndarray of float32
        Power: -25 dB in the middle of each of the three sub-swaths and -23 dB at their edges,
        a simple course within the -22 to -29 dB of real products.
    """
    across = np.mod(share * np.float32(3), 1) * 2 - 1
    return np.asarray(np.float32(10) ** ((across**2 * 2 - 25) / 10), dtype=np.float32)


def terrain_flattened(sigma0: Float32, local_cosine: Float32) -> Float32:
    """Gamma nought, terrain-flattened, of sigma nought per area of the sloping surface.

    Power per area perpendicular to the look: ``sigma0 / cos(local incidence)``. On flat ground
    that is ``sigma0 / cos(incidence)``, so ``sigma0 = gamma0 * cos(incidence)`` there.
    """
    return np.asarray(sigma0 / local_cosine, dtype=np.float32)


def speckle(rng: np.random.Generator, shape: tuple[int, ...], looks: float = LOOKS) -> Float32:
    """Multiplicative speckle of mean 1 and variance ``1 / looks``, uncorrelated.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    looks : float, default 4.4
        Equivalent number of looks.

    Returns
    -------
    ndarray of float32
    """
    return rng.standard_gamma(looks, shape, dtype=np.float32) / np.float32(looks)

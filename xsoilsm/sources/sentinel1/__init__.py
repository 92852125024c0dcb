"""Step 3 of 7 (load): Sentinel-1 as sigma nought in dB, with its incidence angle.

``acquisitions`` groups items by pass, ``companions`` finds what lies beside them. Terrain-flattened
products (``rtc``): ``flattening`` makes sigma nought of gamma nought, ``seams`` lets slices that
overlap count once, ``border`` erodes old images, ``angles`` serves pixels loaded elsewhere. Digital
numbers (``grd``, found by ``grd_items``): ``calibration`` with ``fringe``, ``geocode`` with
``heights``, ``sampling``. The angle comes from ``annotation``, or by ``tracks`` and ``incidence``
from other passes. ``passes`` makes either kind to lazy arrays.
"""

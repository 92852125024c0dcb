"""Step 3 of 7 (load): from STAC items to arrays on a GeoBox, one room per kind of source.

``access`` finds items and gets their bytes, ``pixels`` reads windows. Upon these stand ``ground``
(terrain, soil, land cover), ``sentinel1``, and ``series`` (NDVI and weather).
"""

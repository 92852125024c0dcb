"""Step 3 of 7 (load): one module per kind of source, from STAC items to arrays on a GeoBox.

``search`` finds items and makes their links readable, ``reading`` reads native pixels, and
``sentinel1``, ``modis``, ``era5``, ``terrain`` and ``soil`` each know one kind of source.
"""

"""Step 3 of 7 (load): one module per kind of source, from STAC items to arrays on a GeoBox.

``search`` finds items, ``access`` makes their links readable, ``reading`` reads native pixels.
``sentinel1`` and ``grd``, ``modis``, ``era5``, ``terrain``, ``soil`` and ``landcover`` each know
one kind of source. ``acquisitions`` groups radar items by pass, ``flattening`` makes sigma nought
of terrain-flattened images, ``border`` erodes old ones, ``elevation`` puts models together, and
``layers`` keeps on disk what does not change.
"""

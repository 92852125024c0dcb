"""Step 7 of 7 (write): from the tiles of a map to what its users open.

Tiles, each a Cloud-Optimized GeoTIFF, become mosaics per acquisition or composite
(:mod:`xsoilsm.outputs.mosaic`), a Zarr store (:mod:`xsoilsm.outputs.store`), a NetCDF file
(:mod:`xsoilsm.outputs.netcdf`) and a static STAC catalog (:mod:`xsoilsm.outputs.stac`). All of
them read pixels window by window, so that memory does not grow with the map.
"""

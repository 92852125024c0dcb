"""Step 3 of 7 (load): what goes in 8-day periods: NDVI and weather.

``modis`` reads NDVI, ``era5`` finds stores of reanalysis, ``stores`` reads their hours, ``weather``
makes periods of them, ``arrays`` makes both to lazy arrays.
"""

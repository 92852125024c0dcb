"""Step 3 of 7 (load): from a description of items to bytes, over networks that fail.

``transport`` asks over HTTP and neither gives up early nor hangs, ``links`` signs addresses and
knows mirrors, ``search`` finds items in STAC APIs and static catalogs, ``webzarr`` reads the keys
of Zarr stores, ``kept`` holds in memory what will be asked for again.
"""

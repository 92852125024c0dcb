"""Step 3 of 7 (load): what no date changes: terrain, soil and land cover.

``elevation`` puts elevation models together, ``terrain``, ``soil`` and ``landcover`` each know one
kind of source, ``layers`` keeps their results on disk, ``static`` makes them to lazy arrays.
"""

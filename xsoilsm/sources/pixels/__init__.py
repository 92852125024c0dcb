"""Step 3 of 7 (load): native pixels in windows, whatever they show.

``reading`` reads windows of files and sums them up on a GeoBox, ``edges`` keeps in memory what the
next window needs again, ``mesh`` spreads smooth quantities over a window, ``graph`` makes readers
to Dask arrays, ``stacks`` understands pixels that users loaded themselves.
"""

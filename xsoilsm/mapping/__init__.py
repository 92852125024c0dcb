"""Step 7 of 7 (write): maps of whole regions that never lose a tile, and say why a pixel is empty.

A *job* is a configuration and the folder that it fills. `make_job` searches its inputs once,
`run_job` makes what is missing, on processes of this machine or on a Dask cluster, and every run
goes on where the last one ended, however that ended. Where to change what: `region` reads
regions, `inputs` keeps the items that were found, `job` is the configuration, `plan` cuts it into
products, tiles and units, `tile` makes one unit, `composite` puts acquisitions together, `ledger`
records, `verify` compares the record with the files, `workers` are threads or a cluster,
`processes` what their name says (forked by `nursery`), `run` leads them, `publish` puts tiles
together, `explain` and `estimate` answer questions.
"""

from __future__ import annotations

from xsoilsm.mapping.job import Configuration, Job, JobError, make_job, open_job
from xsoilsm.mapping.lock import JobBusyError
from xsoilsm.mapping.run import InterruptedJobError, Summary, run_job, verify_job

__all__ = [
    "Configuration",
    "InterruptedJobError",
    "Job",
    "JobBusyError",
    "JobError",
    "Summary",
    "make_job",
    "open_job",
    "run_job",
    "verify_job",
]

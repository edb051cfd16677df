"""Any recipe as a probe, and many probes at once: small students on frozen features, trained as one problem.

`fit_probes` trains recipes × seeds × settings × noise draws, and each student is what `limbeck.fit` gives;
`limbeck.probes.run.run_probes` is a pilot whose cells are trained so.
"""

from limbeck.probes.cells import fit_probes, train_cells
from limbeck.probes.stages import Cell

__all__ = ["Cell", "fit_probes", "train_cells"]

"""Samples that would decide everything by themselves: a sensor that jumped, an image that was never scaled.

Ranges of activations and second moments are least-squares estimates, so what a sample counts grows with its energy
e_i, the mean square of its values in a tensor. Of n samples, the k of largest energy are suspected, k a fiftieth of
them, and i among these is wild if

    e_i > sum of e over the n - k others      and      e_i > `RATIO` times their mean

so that it alone outweighs all others together: whatever fits it best is then lost on them. With hundreds of samples the
first condition implies the second, which speaks where there are few. Where more than k are wild they outweigh each
other: up to a twentieth of the samples are wild, too, whose values are a thousand times as large as those of the median
sample.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array

# Energies; values are the square root.
RATIO = 100.0
# With fewer samples nobody can say which are the usual ones.
FEWEST = 10
# Of so many samples one is suspected, but a few of a few, too.
_ONE_OF, _FEW = 50, 3
# A ratio of energies that no usual data has, and the share of the samples that may have it.
_FAR, _FAR_ONE_OF = 1e6, 20


def wild(energies: Array) -> Array:
    """Positions of the wild samples by their energies in one tensor [samples], the wildest first.

    Where a tensor is zero it is not in use, and that says nothing of the samples that use it.
    """
    used = int(np.count_nonzero(energies))
    order = np.argsort(-energies, kind="stable")[:used]
    if used < FEWEST:
        return order[:0]
    suspected = max(used // _ONE_OF, min(_FEW, used // FEWEST))
    others, median = float(energies[order[suspected:]].sum()), float(np.median(energies[order]))
    limit = max(others, RATIO * others / (used - suspected))
    alone = int((energies[order[:suspected]] > limit).sum())
    far = int((energies > _FAR * median).sum())
    return order[: max(alone, far if far <= used // _FAR_ONE_OF else 0)]

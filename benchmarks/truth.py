"""How good are labels and predictions on a simulated dataset, whose truth is known?

    python benchmarks/truth.py BIDS_DIR OUTPUT_DIR

For each participant: macro-F1 of tissue against the truth, and the median angle to the true
direction in white matter with one fibre, for the reference labels, the network, and a tensor
fitted to the same preprocessed volumes. All are scored in the same voxels. The split is that of
the newest model: only `test` was neither learnt from nor used to choose a step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.images import load_volume
from bidsapp.bids.outputs import output_path
from bidsapp.bids.prepared import find_prepared
from bidsapp.learn.cards import newest_model
from bidsapp.learn.metrics import angular_errors, confusion, f1_macro
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.tasks.orientation import DIRECTION
from bidsapp.modalities.dwi.tasks.tissue import DSEG

if TYPE_CHECKING:
    from bidsapp.core import Case


def truth_of(bids: Path, case: Case, what: str) -> np.ndarray:
    """A truth map of one run, by the end of its name."""
    folder = bids / 'derivatives' / 'truth' / f'sub-{case.subject}' / 'dwi'
    stem = case.files['dwi'].name.removesuffix('_desc-preproc_dwi.nii.gz')
    return load_volume(folder / f'{stem}_{what}.nii.gz')


def tissue_scores(bids: Path, out: Path, case: Case) -> dict[str, float]:
    """Macro-F1 in voxels that both the truth and the app's mask call brain."""
    truth = truth_of(bids, case, 'seg-tissue_desc-truth_dseg')
    inside = (truth > 0) & (load_volume(case.files['mask']) > 0)
    scores = {}
    for source in ('reference', 'unet'):
        path = out / output_path(case.entities, DSEG, source, '.nii.gz')
        if path.is_file():
            said = load_volume(path)
            both = inside & (said > 0)
            counts = confusion(torch.from_numpy(said[both]), torch.from_numpy(truth[both]), 3)
            scores[source] = f1_macro(counts)
    return scores


def direction_scores(bids: Path, out: Path, case: Case) -> dict[str, float]:
    """Median angle in degrees, in true single-fibre white matter inside the app's mask."""
    truth = truth_of(bids, case, 'model-truth_param-direction_dwimap')[..., :3]
    single = truth_of(bids, case, 'seg-nfib_desc-truth_dseg') == 1
    single &= load_volume(case.files['mask']) > 0
    data = load_volume(case.files['dwi'])
    directions = {'tensor': fit_tensor(data, load_table(case), single).direction}
    for source in ('csd', 'unet'):
        path = out / output_path(case.entities, DIRECTION, source, '.nii.gz')
        if path.is_file():
            directions[source] = load_volume(path)[..., :3]
    scores = {}
    for source, field in directions.items():
        known = single & (np.linalg.norm(field, axis=-1) > 0.5)
        errors = angular_errors(torch.from_numpy(field[known]), torch.from_numpy(truth[known]))
        scores[source] = float(errors.median())
        if source == 'csd':
            scores['csd_share'] = float(known.sum() / single.sum())
    return scores


def split_of(out: Path, subject: str) -> str:
    """The participant's part in the newest model, or '-'."""
    folder = newest_model(out / 'models', 'orientation') or newest_model(out / 'models', 'tissue')
    if folder is None:
        return '-'
    rows = [line.split('\t') for line in (folder / 'split.tsv').read_text().splitlines()[1:]]
    return dict(rows).get(f'sub-{subject}', '-')


def main(bids: Path, out: Path) -> None:
    """Print a row a run."""
    print(
        'Tissue: macro-F1 against the truth. Direction: median degrees, single-fibre white matter.'
    )
    print(
        f'{"run":10} {"split":6} {"F1 ref":>7} {"F1 unet":>8} {"tensor":>7} {"csd":>6} {"unet":>6}'
    )
    for case in find_prepared(out, 'dwi'):
        tissue, angle = tissue_scores(bids, out, case), direction_scores(bids, out, case)
        nan = float('nan')
        print(
            f'sub-{case.subject:6} {split_of(out, case.subject):6} '
            f'{tissue.get("reference", nan):7.3f} {tissue.get("unet", nan):8.3f} '
            f'{angle["tensor"]:7.2f} {angle.get("csd", nan):6.2f} {angle.get("unet", nan):6.2f}'
        )


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())

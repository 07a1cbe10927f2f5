"""Parts of one scheme: each is preprocessed, then they are joined and written as one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface, Merge

from bidsapp.bids.derivatives import linked_uri
from bidsapp.modalities.dwi.bids.survey import survey as survey_of
from bidsapp.modalities.dwi.interfaces.corrections import TensorMaps
from bidsapp.modalities.dwi.interfaces.joining import JoinRuns
from bidsapp.modalities.dwi.interfaces.outputs import CORRECTIONS, WritePreprocessed
from bidsapp.modalities.dwi.workflows.ingest import OUTPUTS
from bidsapp.modalities.dwi.workflows.preparation import (
    RAW,
    init_preparation_wf,
    steps_of,
)

if TYPE_CHECKING:
    from bidsapp.bids.runs import Survey
    from bidsapp.modalities.dwi.bids.runs import DwiRun
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.workflows.preparation import Place, Steps


def steps(run: DwiRun) -> Steps:
    """Every step that the graph of ``run`` may hold."""
    return (*RAW, JoinRuns) if run.parts else steps_of(run)


def init_dwi_wf(run: DwiRun, survey: Survey[Acquisition], place: Place) -> Workflow:
    """One run, or the parts that it is joined from."""
    if not run.parts:
        return init_preparation_wf(run, survey, place)
    workflow = Workflow(name='dwi_preproc_wf')
    inputnode = Node(IdentityInterface(fields=['t1w', 't1w_quality']), name='inputnode')
    outputnode = Node(IdentityInterface(fields=list(OUTPUTS)), name='outputnode')
    size_gb = survey.size.run_gb
    join = Node(
        JoinRuns(names=[part.name for part in run.parts], seed=place.seed),
        name='join', mem_gb=4 * size_gb + 0.6,
    )  # fmt: skip
    merge = Node(Merge(len(run.parts)), name='parts')
    for number, part in enumerate(run.parts, start=1):
        own = init_preparation_wf(
            part, survey_of(part), replace(place, out_root=Path()), f'part{number}_wf'
        )
        workflow.connect([
            (inputnode, own, [(k, f'inputnode.{k}') for k in ('t1w', 't1w_quality')]),
            (own, merge, [('outputnode.dwi', f'in{number}')]),
        ])  # fmt: skip
    maps = Node(TensorMaps(), name='maps', mem_gb=3 * size_gb + 0.8)
    write = WritePreprocessed(
        out_root=str(place.out_root), entities=dict(run.case.entities),
        sources=[linked_uri(p.path, 'raw', place.roots['raw']) for p in run.parts],
        metadata=dict(run.metadata), notes=list(run.notes), like=str(run.path),
    )  # fmt: skip
    ds_preproc = Node(write, name='ds_preproc', mem_gb=2 * size_gb + 0.3, overwrite=True)
    for node in (maps, ds_preproc):
        node.inputs.b0_threshold = survey.acquisition.b0_threshold
    given = (
        'noise',
        'confounds',
        'left_out',
        'gradient_check',
        *(key for _, key, _ in CORRECTIONS),
    )
    workflow.connect([
        (merge, join, [('out', 'dwi')]),
        (join, maps, [(kind, kind) for kind in OUTPUTS]),
        (join, ds_preproc, [(kind, kind) for kind in (*OUTPUTS, *given)]),
        (join, ds_preproc, [('warnings', 'scan_warnings')]),
        (maps, ds_preproc, [('fa', 'fa'), ('md', 'md'), ('warnings', 'map_warnings')]),
        (ds_preproc, outputnode, [(kind, kind) for kind in OUTPUTS]),
    ])  # fmt: skip
    return workflow

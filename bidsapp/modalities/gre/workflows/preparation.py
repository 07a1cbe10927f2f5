"""Preparation of one gradient-echo run: from raw phase, or from a finished field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.modalities.gre.bids.fields import KINDS, units_of
from bidsapp.modalities.gre.bids.prepared import PREPARED
from bidsapp.modalities.gre.bids.regions import DSEG
from bidsapp.modalities.gre.bids.runs import several
from bidsapp.modalities.gre.interfaces.field import (
    CheckSign,
    FitDecay,
    FitField,
    ReadField,
    RemoveBackground,
)
from bidsapp.modalities.gre.interfaces.inversion import Invert, WriteRegions
from bidsapp.modalities.gre.interfaces.outputs import WriteField
from bidsapp.modalities.gre.interfaces.signal import BrainMask, ReadSignal
from bidsapp.modalities.gre.interfaces.weighted import WeightBySusceptibility
from bidsapp.workflows.basis import uris
from bidsapp.workflows.preparation import Aid

if TYPE_CHECKING:
    from bidsapp.bids.runs import Size, Survey
    from bidsapp.modalities.gre.bids.runs import GreRun
    from bidsapp.modalities.gre.physics.acquisition import Acquisition
    from bidsapp.workflows.preparation import Place, Steps

#: Steps of a raw run, and of a finished field.
RAW = (
    ReadSignal, BrainMask, FitField, FitDecay, RemoveBackground, CheckSign, WeightBySusceptibility,
    WriteField,
)  # fmt: skip
GIVEN = (ReadField, BrainMask, RemoveBackground, WriteField)
#: Bytes a voxel of one volume: complex arithmetic of the fit, frames of the filters.
FIT, FILTER = 400, 300


def steps(run: GreRun) -> Steps:
    """Every step that the graph of ``run`` may hold."""
    return GIVEN if run.given else RAW


def init_preparation_wf(
    run: GreRun, survey: Survey[Acquisition], place: Place, name: str = 'gre_wf'
) -> Workflow:
    """Signal → mask → total field and where to believe it → decay, local field, sign → write.

    Of a finished field: read → local field, if it is the total one → write.

    Outputs
    -------
    magnitude, mask, field : the written derivatives
    """
    workflow = Workflow(name=name)
    outputnode = Node(IdentityInterface(fields=list(PREPARED.names)), name='outputnode')
    ds_field = Node(
        WriteField(**_written(run, survey, place)), name='ds_field',
        mem_gb=survey.size.gb(FILTER) + 0.3, overwrite=True,
    )  # fmt: skip
    add_field = _add_given if run.given else _add_fit
    field = add_field(workflow, run, survey, ds_field)
    local = field
    if run.given != KINDS[0]:
        local = Node(
            RemoveBackground(n_threads=place.omp_nthreads), name='background',
            mem_gb=survey.size.gb(FILTER) + 0.5, n_procs=place.omp_nthreads,
        )  # fmt: skip
        workflow.connect([
            (field, local, [('field', 'field'), ('reliable', 'mask')]),
            (field, ds_field, [('field', 'total')]),
            (local, ds_field, [('quality', 'background_quality')]),
        ])  # fmt: skip
    workflow.connect([
        (field, ds_field, [('reliable', 'mask'), ('magnitude', 'magnitude'), ('noise', 'noise'),
                           ('quality', 'field_quality'), ('warnings', 'field_warnings')]),
        (local, ds_field, [('field', 'field')]),
        (ds_field, outputnode, [(kind, kind) for kind in PREPARED.names]),
    ])  # fmt: skip
    if not run.given:
        _add_weighted(workflow, local, survey, ds_field)
    if len(survey.acquisition.echo_times) > 1:
        _add_decay(workflow, field, local, survey, ds_field)
    return workflow


def _written(run: GreRun, survey: Survey[Acquisition], place: Place) -> dict[str, Any]:
    """Constant inputs of the writer."""
    assert run.facts is not None
    found = survey.acquisition
    return {
        'like': str(run.path),
        'out_root': str(place.out_root),
        'entities': dict(run.case.entities),
        'sources': list(uris(run.sources(), place.roots)),
        'imaging_mhz': found.imaging_mhz,
        'frequency_from': run.facts.frequency_from,
        'direction': list(found.direction),
        'echo_times': list(found.echo_times),
        'notes': list(run.notes),
        'survey_warnings': list(survey.warnings),
    }


def _add_given(
    workflow: Workflow, run: GreRun, survey: Survey[Acquisition], ds_field: Node
) -> Node:
    """The node of a finished field."""
    files, size = run.case.files, survey.size
    unit = units_of(run.path.name, run.metadata)
    field = Node(ReadField(field=str(files['field']), unit=unit), name='field')
    if 'mask' in files:
        field.inputs.mask = ds_field.inputs.brain = str(files['mask'])
        workflow.add_nodes([field])
        return field
    images = [str(path) for path in several(files, 'magnitude')]
    find = Node(BrainMask(images=images), name='brain_mask', mem_gb=size.gb(FIT) + 0.3)
    _connect_brain(workflow, find, field, ds_field)
    return field


def _connect_brain(workflow: Workflow, brain_mask: Node, field: Node, ds_field: Node) -> None:
    """The brain that is found, to the field and to the writer."""
    workflow.connect([
        (brain_mask, field, [('mask', 'mask')]),
        (brain_mask, ds_field, [('mask', 'brain'), ('warnings', 'mask_warnings')]),
    ])  # fmt: skip


def _add_fit(workflow: Workflow, run: GreRun, survey: Survey[Acquisition], ds_field: Node) -> Node:
    """The node of the field that is fitted to the phase, and what is before it."""
    files, size = run.case.files, survey.size
    cartesian = 'real_1' in files
    kinds = ('real', 'imaginary') if cartesian else ('magnitude', 'phase')
    parts, others = ([str(path) for path in several(files, kind)] for kind in kinds)
    read = ReadSignal(parts=parts, others=others, cartesian=cartesian, turned=run.turned)
    signal = Node(read, name='signal', mem_gb=6 * size.run_gb + 0.3)
    times = list(survey.acquisition.echo_times)
    field = Node(
        FitField(echo_times=times), name='field', mem_gb=8 * size.run_gb + size.gb(FIT) + 0.3
    )
    workflow.connect([
        (signal, field, [('magnitude', 'magnitude'), ('phase', 'phase')]),
        (signal, ds_field, [('quality', 'phase_quality'), ('warnings', 'phase_warnings')]),
    ])  # fmt: skip
    if 'mask' in files:
        field.inputs.mask = ds_field.inputs.brain = str(files['mask'])
        return field
    brain_mask = Node(BrainMask(), name='brain_mask', mem_gb=2 * size.run_gb + size.gb(FIT) + 0.3)
    workflow.connect([(signal, brain_mask, [('magnitude', 'magnitude')])])
    _connect_brain(workflow, brain_mask, field, ds_field)
    return field


def _add_decay(
    workflow: Workflow, field: Node, local: Node, survey: Survey[Acquisition], ds_field: Node
) -> None:
    """R2* and T2*, and what they say about the sign of the phase."""
    found, size = survey.acquisition, survey.size
    decay = Node(
        FitDecay(echo_times=list(found.echo_times)), name='decay', mem_gb=6 * size.run_gb + 0.3
    )
    sign = Node(
        CheckSign(imaging_mhz=found.imaging_mhz, direction=list(found.direction)), name='sign',
        mem_gb=size.gb(FILTER) + 0.3,
    )  # fmt: skip
    workflow.connect([
        (workflow.get_node('signal'), decay, [('magnitude', 'magnitude')]),
        (field, decay, [('sigma', 'sigma')]),
        (local, sign, [('field', 'field')]),
        (field, sign, [('reliable', 'mask')]),
        (decay, sign, [('r2star', 'r2star')]),
        (decay, ds_field, [('r2star', 'r2star'), ('t2star', 't2star')]),
        (sign, ds_field, [('quality', 'sign_quality'), ('warnings', 'sign_warnings')]),
    ])  # fmt: skip
    _give_brain(workflow, decay)


def _add_weighted(
    workflow: Workflow, local: Node, survey: Survey[Acquisition], ds_field: Node
) -> None:
    """The susceptibility-weighted image and its minimum projection."""
    weighted = Node(
        WeightBySusceptibility(echo_times=list(survey.acquisition.echo_times)), name='weighted',
        mem_gb=6 * survey.size.run_gb + 0.3,
    )  # fmt: skip
    workflow.connect([
        (workflow.get_node('signal'), weighted, [('magnitude', 'magnitude')]),
        (local, weighted, [('field', 'field')]),
        (weighted, ds_field, [('swi', 'swi'), ('minip', 'minip')]),
    ])  # fmt: skip
    _give_brain(workflow, weighted)


def _give_brain(workflow: Workflow, node: Node) -> None:
    """To ``node`` the brain mask: the one that is made, or the user's."""
    if (brain_mask := workflow.get_node('brain_mask')) is not None:
        workflow.connect([(brain_mask, node, [('mask', 'mask')])])
    else:
        node.inputs.mask = workflow.get_node('field').inputs.mask


def init_chimaps_wf(run: GreRun, size: Size, place: Place) -> Workflow:
    """The classical susceptibility maps; and, where somebody has drawn regions, a table of them.

    Inputs
    ------
    magnitude, mask, field : the prepared run

    Outputs
    -------
    chimaps : (X, Y, Z, 3) ppm, in the order of `interfaces.inversion.MAPS`
    quality : what to say of them
    """
    workflow = Workflow(name='chimaps_wf')
    kinds = list(PREPARED.names)
    inputnode = Node(IdentityInterface(fields=kinds), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['chimaps', 'quality']), name='outputnode')
    threads = place.omp_nthreads
    told: dict[str, Any] = {
        'modality': 'gre', 'entities': dict(run.case.entities), 'part': dict(run.case.part),
        'n_threads': threads,
    }  # fmt: skip
    regions = run.case.files.get(DSEG)
    step = Invert(kinds, [DSEG], **told)
    invert = Node(step, name='invert', mem_gb=size.gb(FILTER) + 1, n_procs=threads)
    if regions is not None:
        invert.inputs.dseg = str(regions)
    workflow.connect([
        (inputnode, invert, [(kind, kind) for kind in kinds]),
        (invert, outputnode, [(k, k) for k in ('chimaps', 'quality')]),
    ])  # fmt: skip
    if regions is not None:
        write = WriteRegions(
            [*kinds, DSEG], out_root=str(place.out_root),
            sources=list(uris([regions], place.roots)), seed=place.seed, **told,
        )  # fmt: skip
        write.inputs.dseg = str(regions)
        table = Node(
            write, name='ds_regions', mem_gb=size.gb(FILTER) + 1, n_procs=threads, overwrite=True
        )
        workflow.connect([
            (inputnode, table, [(kind, kind) for kind in kinds]),
            (invert, table, [('chimaps', 'chimaps')]),
        ])  # fmt: skip
    return workflow


CHIMAPS = Aid(init_chimaps_wf, (Invert, WriteRegions))

"""Graphs of gradient-echo runs over skeletons, looked at and never run."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from bidsapp.bids.prepared import prepared_files
from bidsapp.bids.runs import Size
from bidsapp.interfaces.base import Step
from bidsapp.modalities.gre.bids import files
from bidsapp.modalities.gre.bids.prepared import PREPARED, further
from bidsapp.modalities.gre.workflows import preparation
from bidsapp.workflows.preparation import Place
from tests.modalities.gre.skeletons import SHAPE, image, only, sidecar, write_run


@pytest.fixture
def built(tmp_path):
    """What a run and folders of -d hold → its graph, checked."""
    roots = {name: tmp_path / name for name in ('raw', 'fields', 'masks')}
    place = Place(roots, tmp_path / 'out', seed=0, device='cpu', omp_nthreads=2)

    def build(given=(), options=None, **more):
        write_run(roots['raw'], **more)
        folders = {name: roots[name] for name in given}
        run = only(roots['raw'], options=options or {}, **folders)
        survey = files.survey(run)
        return checked(run, preparation.graph(run, survey, place))

    return build


def checked(run, workflow):
    """``workflow`` without circles, of whose inputs none lacks, and its steps by name."""
    graph = workflow._create_flat_graph()
    assert nx.is_directed_acyclic_graph(graph)
    nodes = {node.name: node for node in graph.nodes}
    known = {step.__name__ for step in preparation.steps(run)}
    for node in nodes.values():
        if not isinstance(node.interface, Step):
            continue
        assert type(node.interface).__name__ in known
        connected = {pair[1] for *_, d in graph.in_edges(node, data=True) for pair in d['connect']}
        for name in node.inputs.traits(mandatory=True):
            assert name in connected or node.inputs.get()[name], (node.name, name)
    (out,) = (node for name, node in nodes.items() if name == 'outputnode')
    ends = {pair[1] for *_, d in graph.in_edges(out, data=True) for pair in d['connect']}
    assert ends == set(PREPARED.names)
    written = {pair[1] for *_, d in graph.in_edges(nodes['ds_field'], data=True)
               for pair in d['connect']}  # fmt: skip
    assert {k for k in further(run) if k != 'total_magnitude'} <= written
    return run, nodes


def given_field(folder, kind):
    path = image(folder / f'sub-01/fmap/sub-01_desc-{kind}_fieldmap.nii.gz')
    sidecar(path, {'Units': 'T'})
    image(folder / 'sub-01/anat/sub-01_desc-brain_mask.nii.gz', np.ones(SHAPE))


def test_a_raw_run_goes_through_every_step(built):
    _, nodes = built(options={'phase_sign': 'turn'})
    assert set(nodes) == {
        'signal', 'brain_mask', 'field', 'decay', 'background', 'sign', 'weighted', 'ds_field',
        'outputnode',
    }  # fmt: skip
    signal = nodes['signal'].inputs
    assert [p.rpartition('/')[2] for p in signal.others] == [
        f'sub-01_echo-{n}_part-phase_MEGRE.nii.gz' for n in (1, 2, 3)
    ]
    assert signal.turned
    assert not signal.cartesian
    written = nodes['ds_field'].inputs
    assert written.sources[0] == 'bids:raw:sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz'
    assert len(written.sources) == 6
    assert (written.imaging_mhz, written.frequency_from) == (123.2, 'ImagingFrequency')
    assert nodes['ds_field'].overwrite


def test_one_echo_has_no_decay_and_nothing_to_tell_the_sign_by(built):
    _, nodes = built(echoes=None)
    assert not {'decay', 'sign'} & set(nodes)


def test_real_and_imaginary_parts_are_taken_as_such(built):
    _, nodes = built(parts=('real', 'imag'))
    assert nodes['signal'].inputs.cartesian


def test_a_mask_of_the_users_stands_in_for_a_step(built, tmp_path):
    drawn = image(tmp_path / 'masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz', np.ones(SHAPE))
    _, nodes = built(given=['masks'])
    assert 'brain_mask' not in nodes
    assert {nodes[n].inputs.mask for n in ('field', 'decay', 'weighted')} == {str(drawn)}
    written = nodes['ds_field'].inputs
    assert written.brain == str(drawn)
    assert written.sources[-1] == 'bids:masks:sub-01/anat/sub-01_desc-brain_mask.nii.gz'


@pytest.mark.parametrize('kind', ['total', 'local'])
def test_a_finished_field_is_read_and_at_most_filtered(built, tmp_path, kind):
    given_field(tmp_path / 'fields', kind)
    _, nodes = built(given=['fields'])
    filtered = ['background'] if kind == 'total' else []
    assert set(nodes) == {'field', 'ds_field', 'outputnode', *filtered}
    assert nodes['field'].inputs.unit == 'T'
    assert nodes['ds_field'].inputs.sources[0].startswith('bids:fields:sub-01/fmap/')


def test_a_field_without_a_mask_takes_the_brain_of_the_raw_magnitude(built, tmp_path):
    given_field(tmp_path / 'fields', 'local')
    (tmp_path / 'fields/sub-01/anat/sub-01_desc-brain_mask.nii.gz').unlink()
    _, nodes = built(given=['fields'])
    assert set(nodes) == {'field', 'brain_mask', 'ds_field', 'outputnode'}
    assert len(nodes['brain_mask'].inputs.images) == 3


def test_memory_grows_with_echoes_and_voxels(built):
    _, one = built(echoes=1)
    _, three = built(echoes=3)
    assert one['signal'].mem_gb < three['signal'].mem_gb < 0.5


def test_the_maps_are_an_aid_that_reads_what_is_prepared(tmp_path):
    aid = preparation.aids['chimaps']
    place = Place({}, tmp_path, seed=0, device='cpu', omp_nthreads=2)
    write_run(tmp_path / 'raw')
    run = only(tmp_path / 'raw')
    workflow = aid.graph(run, Size(1000, 6), place)
    taken = workflow.get_node('inputnode').inputs.get()
    assert set(taken) == set(prepared_files(PREPARED, run.case.entities))
    assert set(workflow.get_node('outputnode').inputs.get()) == {'chimaps', 'quality'}
    assert workflow.get_node('invert').n_procs == 2
    assert [step.__name__ for step in aid.steps] == ['Invert', 'WriteRegions']

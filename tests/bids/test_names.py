"""Names are built and taken apart by one pattern, and pybids reads them the same way."""

from __future__ import annotations

import pytest

from bidsapp import registry
from bidsapp.bids.names import ENTITIES, build, parse, source_entities, stem
from bidsapp.bids.outputs import files_of

RUN = {'subject': '01', 'session': 'pre', 'acquisition': 'b1000', 'direction': 'AP', 'run': '02'}


def promised():
    return [
        path
        for name in registry.names()
        for output in registry.get(name).writes
        for source in ('unet', *output.references)
        for path in files_of(RUN, output, source)
    ]


@pytest.mark.parametrize('path', promised(), ids=str)
def test_name_to_entities_to_name(path):
    assert build(parse(path.name)) == path


def test_padding_of_a_run_number_is_kept():
    assert stem(parse('sub-01_run-007_dwi.nii.gz')) == 'sub-01_run-007'


def test_only_entities_of_the_recording_name_the_source():
    found = parse('sub-01_ses-pre_seg-tissue_desc-unet_dseg.nii.gz')
    assert source_entities(found) == {'subject': '01', 'session': 'pre'}


def test_an_entity_without_a_place_is_refused():
    with pytest.raises(ValueError, match='flavour'):
        build({'subject': '01', 'flavour': 'x', 'suffix': 'dwi', 'extension': '.json'})


def test_pybids_reads_our_names_as_we_do(tmp_path):
    from bids.layout import BIDSLayout

    (tmp_path / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for path in promised():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('{}' if path.suffix == '.json' else '')
    layout = BIDSLayout(
        tmp_path, validate=False, config=['bids', 'derivatives', str(ENTITIES)], is_derivative=True
    )
    for path in promised():
        theirs = {k: str(v) for k, v in layout.get_file(tmp_path / path).get_entities().items()}
        theirs.pop('datatype')
        theirs.pop('fmap', None)
        ours = parse(path.name)
        if 'run' in theirs:
            theirs['run'] = ours['run']  # pybids makes a number of it
        assert theirs == ours

"""Names are built and taken apart by one pattern, and pybids reads them the same way."""

from __future__ import annotations

import pytest

from bidsapp import registry
from bidsapp.bids.names import ENTITIES, build, parse, source_entities, stem
from bidsapp.bids.outputs import files_of

RUN = {'subject': '01', 'session': 'pre', 'acquisition': 'b1000', 'direction': 'AP', 'run': '02'}

NAMED = {'subject': '01', 'datatype': 'anat', 'suffix': 'T1w', 'extension': '.json'}


def promised():
    """Every file of every task's outputs, of any modality."""
    return [
        path
        for modality in registry.modalities()
        for task in registry.tasks_of(modality)
        for output in task.writes
        for source in ('unet', *output.references)
        for path in files_of(
            {**RUN, 'suffix': 'T1w', 'datatype': registry.files(modality).prepared.datatype},
            output, source,
        )
    ]  # fmt: skip


@pytest.mark.parametrize('path', promised(), ids=str)
def test_name_to_entities_to_name(path):
    assert build({**parse(path.name), 'datatype': path.parent.name}) == path


def test_padding_of_a_run_number_is_kept():
    assert stem(parse('sub-01_run-007_dwi.nii.gz')) == 'sub-01_run-007'


def test_only_entities_of_the_recording_name_the_source():
    found = parse('sub-01_ses-pre_seg-tissue_desc-unet_dseg.nii.gz')
    assert source_entities(found) == {'subject': '01', 'session': 'pre'}


def test_an_entity_without_a_place_is_refused():
    with pytest.raises(ValueError, match='flavour'):
        build({**NAMED, 'flavour': 'x'})


def test_a_path_needs_a_datatype_and_a_stem_none():
    with pytest.raises(ValueError, match='datatype'):
        build({key: value for key, value in NAMED.items() if key != 'datatype'})
    assert build({**NAMED, 'session': 'a'}).as_posix() == 'sub-01/ses-a/anat/sub-01_ses-a_T1w.json'
    assert stem({**NAMED, 'datatype': 'anat'}) == stem({'subject': '01'}) == 'sub-01'


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
        assert theirs.pop('datatype') == path.parent.name
        theirs.pop('fmap', None)
        ours = parse(path.name)
        if 'run' in theirs:
            theirs['run'] = ours['run']  # pybids makes a number of it
        assert theirs == ours

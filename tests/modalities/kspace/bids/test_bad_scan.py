"""What cannot be read, or not reconstructed, says so in one message of its own."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from bidsapp.modalities.kspace.bids.header import Unserved
from bidsapp.modalities.kspace.bids.layout import NOISE
from bidsapp.modalities.kspace.bids.scan import opened_scan, survey_scan
from bidsapp.modalities.kspace.simulate.files import write_fastmri
from bidsapp.problems import BadData
from tests.modalities.kspace import raw


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def not_hdf5(path):
    path.write_text('a scan')


def xml(old, new):
    def change(path):
        with h5py.File(path, 'r+') as file:
            text = file['dataset/xml'][0].decode()
            assert old in text
            file['dataset/xml'][0] = text.replace(old, new)

    return change


def heads(change):
    """Changes the heads of a file's lines."""

    def edit(path):
        with h5py.File(path, 'r+') as file:
            lines = file['dataset/data'][()]
            change(lines['head'])
            file['dataset/data'][...] = lines

    return edit


def counter(name):
    return heads(lambda head: head['idx'][name].__setitem__(slice(0, 9), 1))


def field(name, value, which=slice(0, 9)):
    return heads(lambda head: head[name].__setitem__(which, value))


def without(name):
    def take(path):
        with h5py.File(path, 'r+') as file:
            del file[name]

    return take


def no_lines(path):
    with h5py.File(path, 'r+') as file:
        none = file['dataset/data'][()][:0]
        del file['dataset/data']
        file['dataset/data'] = none


def samples(value):
    def fill(path):
        with h5py.File(path, 'r+') as file:
            lines = file['dataset/data'][()]
            for line in lines:
                line['data'][:] = value
            file['dataset/data'][...] = lines

    return fill


def few_lines(path):
    raw.write(path, measured=np.arange(raw.Y) % 3 == 0)


def a_point(path):
    raw.write(path, kspace=np.ones((2, 1, 1, 1, 1), np.complex64), measured=np.ones(1, bool),
              given=raw.protocol(recon_x=1))  # fmt: skip


def uneven(path):
    raw.write(path, raw.protocol(positions=((0, 0, 0), (0, 0, 4), (0, 0, 9))), kspace=raw.scan(3))


def one_place(path):
    raw.write(path, raw.protocol(positions=((0, 0, 1), (0, 0, 1))))


def fastmri_of_another_size(path):
    write_fastmri(path, raw.scan()[:, 0], np.ones(raw.Y, bool), raw.protocol())
    with h5py.File(path, 'r+') as file:
        del file['kspace']
        file['kspace'] = np.ones((2, 3, raw.X, 5), np.complex64)


BAD = {
    'truncated': (truncated, 'cannot be read as HDF5'),
    'not HDF5': (not_hdf5, 'cannot be read as HDF5'),
    'no header': (without('dataset/xml'), 'no XML header'),
    'XML that ends early': (xml('</encoding>', ''), 'not valid XML'),
    'no encoding': (xml('encoding>', 'coding>'), 'no <encoding>'),
    'no matrix': (xml('matrixSize', 'size'), 'three numbers'),
    'a field of view of nothing': (xml('<x>96.0</x>', '<x>0</x>'), 'positive'),
    'a bandwidth of words': (
        xml(
            '<encoding>',
            '<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>much'
            '</relativeReceiverNoiseBandwidth></acquisitionSystemInformation><encoding>',
        ),
        'positive number',
    ),
    'no limits': (xml('kspace_encoding_step_1', 'step'), 'centre of k-space'),
    'no lines': (no_lines, 'no acquisition'),
    'NaN': (samples(np.nan), 'not finite'),
    'zeros': (samples(0), 'are 0'),
    'fewer coils in some lines': (field('active_channels', 2), 'some lines have 2 coils'),
    'fewer samples than said': (field('number_of_samples', raw.X - 1), 'announced'),
    'a line that does not fit': (field('center_sample', 3), 'does not fit'),
    'a line beyond the matrix': (
        heads(lambda head: head['idx']['kspace_encode_step_1'].__setitem__(0, 400)),
        'do not fit a matrix',
    ),
    'two repetitions': (counter('repetition'), 'repetition'),
    'two sets': (counter('set'), "'set'"),
    'two phases': (counter('phase'), "'phase'"),
    'an encoding that is not there': (field('encoding_space_ref', 4), 'encoding 4'),
    'skew directions': (field('read_dir', [1, 1, 0], slice(None)), 'perpendicular'),
    'a place that is no number': (field('position', np.nan, slice(None)), 'not finite'),
    'no calibration lines': (few_lines, 'calibration lines'),
    'k-space of one point': (a_point, '1 x 1'),
    'uneven slices': (uneven, '4.00 to 5.00 mm apart'),
    'slices in one place': (one_place, 'one place'),
    'a shape that the header does not know': (fastmri_of_another_size, 'the matrix of the header'),
}


def everything(path):
    with opened_scan(path) as scan:
        return [scan.read(image, 0) for image in scan.images]


@pytest.mark.parametrize('name', BAD)
def test_a_damaged_scan_is_bad_data_in_one_message(name, tmp_path):
    damage, said = BAD[name]
    path = raw.write(tmp_path / 'scan.h5')
    damage(path)
    with pytest.raises(BadData, match=said) as found:
        everything(path)
    assert not isinstance(found.value, Unserved)
    assert found.value.exit_code == 65
    assert 'scan.h5' in str(found.value)


def two_matrices(path):
    with h5py.File(path, 'r+') as file:
        text = file['dataset/xml'][0].decode()
        first, last = text.index('<encoding>'), text.index('</encoding>') + len('</encoding>')
        one = text[first:last]
        other = one.replace(f'<y>{raw.Y}</y>', f'<y>{raw.Y + 4}</y>')
        file['dataset/xml'][0] = text[:last] + other + text[last:]
    field('encoding_space_ref', 1)(path)


def test_two_matrix_sizes_are_no_image(tmp_path):
    path = raw.write(tmp_path / 'scan.h5')
    two_matrices(path)
    with pytest.raises(BadData, match='two matrix sizes'):
        survey_scan(path)


def neither(path):
    with h5py.File(path, 'w') as file:
        file['image'] = np.zeros((3, 3))


UNSERVED = {
    'radial': (xml('cartesian', 'radial'), 'radial'),
    'spiral': (xml('cartesian', 'spiral'), 'spiral'),
    'EPI': (xml('cartesian', 'epi'), 'epi'),
    'two slices at once': (
        xml('</trajectory>', '</trajectory><parallelImaging><multiband><multiband_factor>2'
            '</multiband_factor></multiband></parallelImaging>'), 'slices at once',
    ),
    'noise alone': (field('flags', 1 << (NOISE - 1), slice(None)), 'calibration'),
    'navigators alone': (field('flags', 1 << 22, slice(None)), 'no line of an image'),
    'another layout': (neither, 'neither layout'),
}  # fmt: skip


@pytest.mark.parametrize('name', UNSERVED)
def test_what_cannot_be_served_in_principle_is_named(name, tmp_path):
    change, said = UNSERVED[name]
    path = raw.write(tmp_path / 'scan.h5')
    change(path)
    with pytest.raises(Unserved, match=said):
        survey_scan(path)


def test_raw_data_of_a_vendor_name_the_converter(tmp_path):
    for end, converter in (('.dat', 'siemens'), ('.7', 'ge'), ('.lab', 'philips')):
        with pytest.raises(Unserved, match=f'{converter}_to_ismrmrd'):
            survey_scan(tmp_path / f'scan{end}')


def test_a_file_that_is_not_there_is_that(tmp_path):
    with pytest.raises(FileNotFoundError):
        survey_scan(tmp_path / 'scan.h5')


@pytest.mark.parametrize('bit', [23, 24, 26, 27, 28, 29, 30, 31])
def test_lines_of_no_image_are_left_out_and_counted(bit, tmp_path):
    path = raw.write(tmp_path / 'scan.h5')
    before, _ = raw.read(path)
    field('flags', 1 << (bit - 1), slice(0, 2))(path)
    image, slices = raw.read(path)
    assert image.measured.sum() == before.measured.sum() - 2
    assert not slices[0].weights[0, :2].any()
    assert image.notes[0].startswith('2 ')

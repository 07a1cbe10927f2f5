"""What holds for every task of diffusion MRI, and what each of them means."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.core import Case, Sample, Task
from bidsapp.modalities.dwi.learn.losses import DENSITY_ORDER, dyad
from bidsapp.modalities.dwi.physics.acquisition import Acquisition
from bidsapp.modalities.dwi.physics.harmonics import basis, harmonics_at
from bidsapp.modalities.dwi.physics.mrtrix_basis import mrtrix_coefficients
from bidsapp.modalities.dwi.physics.qspace import DENSITY_CHANNELS, N_CHANNELS
from bidsapp.modalities.dwi.tasks import crossings, microstructure, orientation, tissue
from bidsapp.physics.geometry import MIRRORED, grid_axes
from bidsapp.problems import Unavailable

RICH = Acquisition(64, ((1000.0, 64), (2000.0, 64)), 1.5, has_t1w=True)
CLINIC = Acquisition(64, ((1000.0, 64),), 1.5)
TASKS = registry.tasks_of('dwi')
LABELLED = [task for task in TASKS if task.label is not None]


def by_name(task):
    return task.name


NOWHERE = Case({'subject': '01'}, {})
POOR = Acquisition(6, ((1000.0, 6),), 2.0)


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 6, 7, 8, dtype=torch.bool)
    mask[:, 1:5, 1:6, 1:7] = True
    axes = np.linalg.qr(np.array([[0.9, 0.3, 0], [-0.3, 0.9, 0.2], [0, -0.2, 1]]))[0]
    affine = np.eye(4)
    affine[:3, :3] = 2 * axes * np.sign(np.diag(axes))
    return Sample(torch.randn(N_CHANNELS, 6, 7, 8, generator=generator), mask, affine)


def test_these_are_the_tasks():
    names = ['crossings', 'kurtosis', 'microstructure', 'orientation', 'restore', 'tissue']
    assert [task.name for task in TASKS] == names
    assert [task.name for task in LABELLED] == [name for name in names if name != 'restore']


@pytest.mark.parametrize('task', TASKS, ids=by_name)
def test_card(task):
    assert isinstance(task, Task)
    assert (task.modality, task.head.name) == ('dwi', task.name)
    assert task.writes
    assert (task.truth is None) == (task.name == 'kurtosis')
    task.applies(RICH)
    for output in task.learnt:
        assert task.label.source(RICH) in output.references


@pytest.mark.parametrize('task', LABELLED, ids=by_name)
def test_what_is_learnt_is_among_what_is_written(task):
    assert 1 <= task.label.learns <= len(task.writes)
    assert task.learnt == task.writes[: task.label.learns]
    derived = [output for output, _ in task.labels(task.label.source(RICH))]
    assert derived == [*task.learnt, *(output for output, _ in task.label.beside)]


@pytest.mark.parametrize('task', TASKS, ids=by_name)
def test_a_task_uses_tasks_that_the_same_network_may_have(task):
    assert set(task.uses) <= {other.name for other in TASKS} - {task.name}


@pytest.mark.parametrize('task', LABELLED, ids=by_name)
def test_finish_makes_every_output_zero_outside_the_brain(task, sample):
    arrays = task.finish({task.name: torch.randn(task.head.channels, 6, 7, 8)}, sample, NOWHERE)
    outside = ~sample.mask[0].numpy()
    for output in task.writes:
        assert arrays[output.name].shape[:3] == (6, 7, 8)
        assert not arrays[output.name][outside].any()


@pytest.mark.parametrize('head', [task.head for task in TASKS], ids=by_name)
def test_loss_takes_what_the_network_gives_and_the_target_holds(head):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, head.channels, 4, 4, 4, generator=generator, requires_grad=True)
    target = torch.rand(2, head.targets, 4, 4, 4, generator=generator)
    target = target.round() if head.targets == 1 else target
    loss = head.loss(prediction, target, torch.ones(2, 1, 4, 4, 4, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad.abs().sum() > 0


@pytest.mark.parametrize('head', [task.head for task in TASKS], ids=by_name)
def test_a_target_or_output_that_is_turned_round_is_as_before(head):
    """Four turns by a right angle about z, or two mirrors, change no value."""
    generator = torch.Generator().manual_seed(0)
    for channels, turn_it in ((head.targets, head.turn_target), (head.channels, head.turn_output)):
        values = torch.randn(1, channels, 2, 2, 2, generator=generator)
        for turn, often in ((((0, -1, 0), (1, 0, 0), (0, 0, 1)), 4), (MIRRORED[1], 2)):
            turned = values
            for _ in range(often):
                turned = turn_it(turned, turn)
            assert torch.allclose(turned, values, atol=1e-4)


def test_tissue_needs_a_t1w():
    with pytest.raises(Unavailable, match='T1w'):
        tissue.source(POOR)


def test_direction_falls_back_to_the_tensor():
    assert orientation.source(RICH) == 'csd'
    assert orientation.source(POOR) == 'tensor'
    low_b = Acquisition(64, ((500.0, 64),), 1.5)
    assert orientation.source(low_b) == 'tensor'


def test_fibres_are_counted_from_thirty_directions_up():
    assert crossings.source(CLINIC) == 'reference'
    with pytest.raises(Unavailable, match='29 at b=1000'):
        crossings.source(Acquisition(29, ((1000.0, 29),), 1.5))
    with pytest.raises(Unavailable, match='b=500'):
        crossings.source(Acquisition(64, ((500.0, 64),), 1.5))


def test_one_shell_gives_no_neurite_density():
    with pytest.raises(Unavailable, match='two shells'):
        microstructure.source(CLINIC)


def test_the_number_of_fibres_is_that_of_the_vectors_that_are_there(tmp_path):
    fibres = np.zeros((3, 1, 1, 9), np.float32)
    fibres[1, 0, 0, :3] = fibres[2, 0, 0, 6:] = (0, 0.6, 0.8)
    fibres[2, 0, 0, :3] = (1, 0, 0)
    nib.save(nib.Nifti1Image(fibres, np.eye(4)), tmp_path / 'fibres.nii')
    arrays = crossings.derive(Case({}, {'fibres': tmp_path / 'fibres.nii'}))
    assert arrays['nfib'][:, 0, 0].tolist() == [0, 1, 2]


def test_no_fibre_is_a_class_of_its_own_inside_the_brain(sample, tmp_path):
    """Zero fibres in the brain is something to learn; outside there is nothing to learn."""
    count = torch.randint(0, 4, (1, 6, 7, 8)).float() * sample.mask
    nib.save(nib.Nifti1Image(count[0].numpy(), sample.affine), tmp_path / 'nfib.nii')
    target = crossings.load(sample, Case({}, {'nfib': tmp_path / 'nfib.nii'})).target
    assert torch.equal(target[sample.mask], count[sample.mask] + 1)
    assert not target[~sample.mask].any()
    logits = torch.nn.functional.one_hot(target[0].long(), 5)[..., 1:].movedim(-1, 0).float()
    assert (
        crossings.finish({'crossings': logits}, sample, NOWHERE)['nfib'] == count[0].numpy()
    ).all()
    rows = crossings.metrics(logits, replace(sample, target=target))
    assert {m: v for m, _, v in rows[:2]} == {'f1_macro': 1.0, 'accuracy': 1.0}


def test_neurites_are_told_from_two_ranges_of_b_only():
    """b = 1000 and 1200 are one range: from them no density is predicted."""
    microstructure.applies(RICH)
    for shells in (((1000.0, 64),), ((1000.0, 30), (1200.0, 30)), ((500.0, 6), (1000.0, 30))):
        with pytest.raises(Unavailable, match='FA and ADC'):
            microstructure.applies(Acquisition(60, shells, 1.5))


@pytest.mark.parametrize(
    'shells',
    [
        ((1000.0, 30), (2000.0, 30)), ((1000.0, 30), (2000.0, 6)), ((1000.0, 30), (2000.0, 11)),
        ((1250.0, 30), (1350.0, 30)), ((600.0, 30), (1200.0, 30)), ((2500.0, 30), (5000.0, 30)),
        ((300.0, 30), (1000.0, 30)), ((1000.0, 12), (2600.0, 12)), ((1000.0, 64),), (),
    ],
)  # fmt: skip
def test_a_prediction_is_promised_where_a_reference_could_be_and_nowhere_else(shells):
    """Of a shell of few directions, of two shells of nearly one b, of two in one range of b."""
    facts = Acquisition(sum(n for _, n in shells), shells, 1.5)

    def refused(question):
        try:
            question(facts)
        except Unavailable:
            return True
        return False

    both = {refused(question) for question in (microstructure.source, microstructure.applies)}
    assert both == {shells not in (((1000.0, 30), (2000.0, 30)), ((1000.0, 12), (2600.0, 12)))}


def test_stated_deviation_is_the_second_half_of_the_output(sample):
    output = torch.zeros(6, 6, 7, 8)
    output[3:] = np.log(0.1)
    arrays = microstructure.finish({'microstructure': output}, sample, NOWHERE)
    inside = sample.mask[0].numpy()
    assert np.allclose(arrays['icvf'][inside], 0.5)
    assert np.allclose(arrays['od_uncertainty'][inside], 0.1, atol=1e-6)


def test_perfect_microstructure_scores_zero(sample):
    target = torch.rand(3, 6, 7, 8) * 0.8 + 0.1
    output = torch.cat([torch.logit(target), torch.zeros_like(target)])
    target[:, 2, 3, 4] = -1  # unknown: whatever is predicted there does not count
    rows = microstructure.metrics(output, replace(sample, target=target))
    assert [name for _, name, _ in rows] == ['all', 'icvf', 'od', 'isovf']
    assert all(value < 1e-5 for *_, value in rows)


def test_predicted_direction_is_turned_to_the_world(sample):
    """A dyad along the grid's first axis is written as that axis' direction in the world."""
    output = torch.zeros(51, 6, 7, 8)
    output[0] = 1
    arrays = orientation.finish({'orientation': output}, sample, NOWHERE)
    first, *others = arrays['direction'][2, 3, 4].reshape(3, 3)
    assert abs(first @ grid_axes(sample.affine)[:, 0]) == pytest.approx(1, abs=1e-5)
    assert not np.any(others)
    assert arrays['direction_uncertainty'][2, 3, 4] == pytest.approx(0, abs=0.1)


def test_predicted_density_is_turned_to_the_world_and_says_its_degree(sample):
    """That of one fibre along the grid's first axis is highest along this axis in the world."""
    output = torch.zeros(51, 6, 7, 8)
    output[6:, 2, 3, 4] = torch.from_numpy(basis(np.eye(3)[:1], DENSITY_ORDER)[0])
    arrays = orientation.finish({'orientation': output}, sample, NOWHERE)
    axis = grid_axes(sample.affine)[:, :1].T
    expected = mrtrix_coefficients(basis(axis, DENSITY_ORDER)[0])
    np.testing.assert_allclose(arrays['fod'][2, 3, 4], expected, atol=1e-5)
    assert not arrays['fod'][3:].any()
    said = orientation.details(arrays)['fod']['OrientationEncoding']
    assert said['SphericalHarmonicDegree'] == DENSITY_ORDER


def test_a_density_is_promised_with_directions_of_deconvolution_only():
    for source, expected in (('csd', ['direction', 'fod']), ('tensor', ['direction'])):
        assert [output.name for output, _ in orientation.task.labels(source)] == expected


@pytest.mark.parametrize(('volumes', 'degree'), [(3, None), (9 + 28, 6), (9 + 45, 8)])
def test_what_deconvolution_found_is_parted_into_fibres_and_density(tmp_path, volumes, degree):
    found = np.arange(2 * volumes, dtype=np.float32).reshape(2, 1, 1, volumes)
    nib.save(nib.Nifti1Image(found, np.eye(4)), tmp_path / 'fibres.nii')
    arrays = orientation.derive(Case({}, {'fibres': tmp_path / 'fibres.nii'}))
    assert np.array_equal(arrays['direction'], found[..., :9])
    said = orientation.details(arrays)
    if degree is None:
        assert set(arrays) == {'direction'}
        assert not said
    else:
        assert np.array_equal(np.abs(arrays['fod']), found[..., 9:])
        assert said['fod']['OrientationEncoding']['SphericalHarmonicDegree'] == degree


def crossing(*fibres: tuple[tuple[float, float, float], float]) -> torch.Tensor:
    """(51,) what is predicted where fibres are there with these probabilities."""
    density = sum(
        p * harmonics_at(torch.tensor(v, dtype=torch.float64), DENSITY_ORDER) for v, p in fibres
    )
    return torch.cat([dyad(torch.tensor(fibres[0][0], dtype=torch.float64)), density]).float()


@pytest.mark.parametrize('angle', [45, 60, 90])
def test_a_second_fibre_that_is_likely_is_written_and_an_unlikely_one_is_not(sample, angle):
    """Deconvolution shows two in all three voxels; the network says which to believe."""
    second = (float(np.cos(np.deg2rad(angle))), float(np.sin(np.deg2rad(angle))), 0.0)
    output = torch.zeros(51, 6, 7, 8)
    output[:, 2, 3, 4] = crossing(((1.0, 0.0, 0.0), 1.0), (second, 0.9))
    output[:, 3, 3, 4] = crossing(((1.0, 0.0, 0.0), 1.0), (second, -0.1))
    output[:, 3, 4, 4] = crossing(((1.0, 0.0, 0.0), 0.5), (second, 0.2))
    seen = crossing(((1.0, 0.0, 0.0), 0.5), (second, 0.4))[6:]
    for at in ((2, 3, 4), (3, 3, 4), (3, 4, 4)):
        sample.image[DENSITY_CHANNELS, *at] = seen
    found = orientation.finish({'orientation': output}, sample, NOWHERE)['direction']
    likely, unlikely, few = (found[at].reshape(3, 3) for at in ((2, 3, 4), (3, 3, 4), (3, 4, 4)))
    assert abs(likely[1] @ grid_axes(sample.affine) @ second) > np.cos(np.deg2rad(8))
    assert not likely[2].any()
    for fibres in (unlikely, few):
        assert np.linalg.norm(fibres, axis=1) == pytest.approx([1, 0, 0], abs=1e-5)


def test_all_fibres_of_a_label_are_turned():
    """A quarter turn about z takes x to y in each of the three; none stays none."""
    target = torch.zeros(1, 9, 1, 1, 1)
    target[0, [0, 4]] = 1
    turned = orientation.turn_target(target, ((0, -1, 0), (1, 0, 0), (0, 0, 1)))
    expected = [[0, 1, 0], [-1, 0, 0], [0, 0, 0]]
    assert turned[0, :, 0, 0, 0].reshape(3, 3).tolist() == expected


def test_perfect_tissue_prediction_scores_one(sample):
    label = torch.randint(1, 4, (1, 6, 7, 8)).float() * sample.mask
    logits = torch.nn.functional.one_hot(label[0].long(), 4)[..., 1:].movedim(-1, 0).float()
    fractions = 0.4 * sample.mask + 0.6 * logits * sample.mask
    for target in (label, fractions):
        rows = tissue.metrics(logits, replace(sample, target=target))
        assert {m: v for m, _, v in rows[:2]} == {'f1_macro': 1.0, 'accuracy': 1.0}


@pytest.mark.parametrize('name', ['tissue', 'crossings'])
def test_entropy_is_one_where_nothing_is_known_and_zero_where_it_is_certain(name, sample):
    task = registry.task(name)
    output = torch.zeros(task.head.channels, 6, 7, 8)
    output[0, 2] = 50
    arrays = task.finish({name: output}, sample, NOWHERE)
    entropy = next(v for k, v in arrays.items() if k.endswith('entropy'))
    assert entropy[2, 3, 4] == pytest.approx(0, abs=1e-5)
    assert entropy[3, 3, 4] == pytest.approx(1, abs=1e-5)


def test_calibration_makes_two_thirds_of_the_errors_lie_within_one_deviation(sample):
    generator = torch.Generator().manual_seed(0)
    target = torch.full((3, 6, 7, 8), 0.4)
    output = torch.zeros(6, 6, 7, 8)
    output[:3] = torch.logit(target + 0.03 * torch.randn(3, 6, 7, 8, generator=generator))
    output[3:] = np.log(0.1)
    target[1] = -1  # dispersion is unknown here, and stays as it is
    labelled = replace(sample, target=target)
    factor, shift = microstructure.calibrate([output], [labelled])
    assert factor.tolist() == [1] * 6
    assert shift[:3].tolist() == [0, 0, 0]
    assert shift[4] == 0
    for k in (0, 2):
        assert np.exp(float(shift[3 + k])) * 0.1 == pytest.approx(0.03, rel=0.3)

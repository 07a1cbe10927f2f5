"""The group's page: the best step is the best, figures of one participant are not those of two."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bidsapp.problems import BadData, MissingInput
from bidsapp.reports.group import averaged, direction_of, group_page, learning_curve, spread

LOG = ['step\tloss\tvalidation', '1\t1.5\t', '2\t1.0\t30.0', '3\t0.9\tn/a', '4\t0.5\t20.0',
       '5\t0.4\t25.0']  # fmt: skip
HEADER = 'participant_id\tsplit\tmodel\tmetric\tlabel\tvalue'
ROWS = [
    'sub-01\ttrain\tfinetuned\tangular_error_median\tWM\t5',
    'sub-02\ttest\tfinetuned\tangular_error_median\tWM\t10',
    'sub-02\ttest\tscratch\tangular_error_median\tWM\t14',
    'sub-03\ttest\tfinetuned\tangular_error_median\tWM\t12',
    'sub-03\ttest\tscratch\tangular_error_median\tWM\tn/a',
]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / 'models' / 'orientation' / 'v2'
    folder.mkdir(parents=True)
    card = {'name': '<script>m</script>', 'version': 'v2', 'sha256': 'ab',
            'heads': {'orientation': 51}, 'network': {'name': 'unet3d'}}  # fmt: skip
    (folder / 'card.json').write_text(json.dumps(card))
    (folder / 'log.tsv').write_text('\n'.join(LOG) + '\n')
    (folder / 'split.tsv').write_text('participant_id\tsplit\nsub-01\ttrain\nsub-02\ttest\n')
    (tmp_path / 'group_orientation.tsv').write_text('\n'.join([HEADER, *ROWS]) + '\n')
    return tmp_path


def test_page_shows_metrics_split_curve_and_card(root):
    text = group_page(root, 'orientation').read_text()
    for expected in (
        'models/orientation/v2/curve.png', 'models/orientation/v2/metrics.png', 'sub-03',
        'Not for clinical use', 'training (1)', '11 ± 1.41', 'unet3d',
    ):  # fmt: skip
        assert expected in text
    assert (root / 'models/orientation/v2/curve.png').stat().st_size > 5000
    assert (root / 'models/orientation/v2/metrics.png').stat().st_size > 5000
    assert '<script>' not in text


@pytest.mark.parametrize('best', [0, 3])
def test_page_says_first_that_nothing_was_gained(root, best):
    path = root / 'models' / 'orientation' / 'v2' / 'card.json'
    start = {'name': 'transfermri-supervised', 'version': 'v2', 'sha256': 'cd'}
    card = json.loads(path.read_text()) | {'started_from': start, 'best_step': best}
    path.write_text(json.dumps(card))
    text = group_page(root, 'orientation').read_text()
    assert ('Nothing was gained' in text) == (best == 0)
    if best == 0:
        assert text.index('Nothing was gained') < text.index('How well it does')


def test_page_without_table_at_the_root_takes_the_models_own(root):
    folder = root / 'models' / 'orientation' / 'v2'
    (root / 'group_orientation.tsv').rename(folder / 'metrics.tsv')
    (folder / 'log.tsv').unlink()
    text = group_page(root, 'orientation').read_text()
    assert '11 ± 1.41' in text
    assert 'curve.png' not in text


def test_page_says_what_was_judged_and_what_does_without_a_network(root):
    folder = root / 'models' / 'orientation' / 'v2'
    card = json.loads((folder / 'card.json').read_text())
    like = {'words': '7 directions at b=1000', 'table': [[0, 0, 1, 1000]] * 7, 'sha256': 'cd'}
    made = {'raw': 5, 'prepared': 2}
    told = {'input_like': like, 'input_made_from': made, 'classical': 'a tensor'}
    (folder / 'card.json').write_text(json.dumps({**card, **told}))
    table = root / 'group_orientation.tsv'
    row = 'sub-02\ttest\tclassical\tangular_error_median\tWM\t13'
    table.write_text(table.read_text() + row + '\n')
    text = group_page(root, 'orientation').read_text()
    for expected in ('7 directions at b=1000', '2 of 7 inputs', 'classical: a tensor'):
        assert expected in text
    (folder / 'card.json').write_text(json.dumps({**card, 'judged_by': 'parts of each run'}))
    assert 'Inputs show parts of it' in group_page(root, 'orientation').read_text()


def test_no_model_is_said(tmp_path):
    with pytest.raises(MissingInput, match='No model of task tissue'):
        group_page(tmp_path, 'tissue')


def test_the_task_says_which_score_is_better():
    assert direction_of('angular_error_median') is False
    assert direction_of('f1_macro') is True
    assert direction_of('unheard of') is None


def test_curve_depends_on_which_score_is_better(root, tmp_path):
    log = root / 'models' / 'orientation' / 'v2' / 'log.tsv'
    pictures = {
        better: learning_curve(log, tmp_path / f'{better}.png', 'score', better).read_bytes()
        for better in (True, False, None)
    }
    assert len(set(pictures.values())) == 3
    by_task = learning_curve(log, tmp_path / 'task.png', 'angular_error_median')
    named = learning_curve(log, tmp_path / 'named.png', 'angular_error_median', False)
    assert by_task.read_bytes() == named.read_bytes()


def test_a_step_whose_loss_was_no_number_is_a_gap(tmp_path):
    for name, loss in (('gap', 'n/a'), ('none', '3')):
        (tmp_path / f'{name}.tsv').write_text(f'step\tloss\tvalidation\n1\t{loss}\t2\n2\t1\t3\n')
        assert learning_curve(tmp_path / f'{name}.tsv', tmp_path / f'{name}.png', 'f1').is_file()
    (tmp_path / 'all.tsv').write_text('step\tloss\tvalidation\n1\tn/a\tn/a\n')
    assert learning_curve(tmp_path / 'all.tsv', tmp_path / 'all.png', 'f1').is_file()


def test_test_participants_whom_the_start_had_seen_are_named_first(root):
    table = root / 'group_orientation.tsv'
    flags = ['sub-02\ttest\tfinetuned\tseen_in_training\tall\t1',
             'sub-03\ttest\tautoencoder\tseen_in_training\tall\tn/a']  # fmt: skip
    before = group_page(root, 'orientation').read_text()
    table.write_text(table.read_text() + '\n'.join(flags) + '\n')
    after = group_page(root, 'orientation').read_text()
    for words in ('Not new to the model', 'finetuned: sub-02', 'autoencoder: sub-03'):
        assert words in after
        assert words not in before
    assert after.index('finetuned: sub-02') < after.index('How well it does')
    assert 'seen_in_training' not in after


def test_hashes_are_counted_and_not_listed(root):
    path = root / 'models' / 'orientation' / 'v2' / 'card.json'
    card = json.loads(path.read_text())
    said = {'scans': {'train': ['ab' * 32], 'val': []}, 'seen_scans': ['ab' * 32, 'cd' * 32]}
    path.write_text(json.dumps({**card, **said}))
    text = group_page(root, 'orientation').read_text()
    assert 'ab' * 32 not in text
    assert 'train: 1, val: 0' in text


def test_log_of_other_columns_is_refused(tmp_path):
    (tmp_path / 'log.tsv').write_text('step\tvalue\n1\t2\n')
    with pytest.raises(BadData, match='columns step, loss and validation'):
        learning_curve(tmp_path / 'log.tsv', tmp_path / 'x.png', 'f1_macro')
    (tmp_path / 'log.tsv').write_text('step\tloss\tvalidation\n1\tmuch\t2\n')
    with pytest.raises(BadData, match='not a number'):
        learning_curve(tmp_path / 'log.tsv', tmp_path / 'x.png', 'f1_macro')


def test_two_runs_of_a_participant_count_once():
    row = {'participant_id': 'sub-01', 'split': 'test', 'model': 'm', 'metric': 'f', 'label': 'l'}
    (one,) = averaged([{**row, 'value': '1'}, {**row, 'value': '3'}])
    assert float(one['value']) == 2


def test_spread_leaves_out_what_is_missing_and_needs_two():
    assert spread([2.0]) == '2'
    assert spread([1.0, 3.0, np.nan]) == '2 ± 1.41'
    assert spread([]) == 'n/a'

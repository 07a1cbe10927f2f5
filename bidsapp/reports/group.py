"""The page of one task: how its newest model was learnt, and how well it does."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from bidsapp import registry
from bidsapp.bids.write import write_text
from bidsapp.learn import cards
from bidsapp.learn.finetune import PARTS
from bidsapp.learn.seen import FLAG, LISTS, flagged
from bidsapp.problems import BadData, MissingInput
from bidsapp.reports import html
from bidsapp.reports.charts import learning_chart, paired_dots

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    Rows = list[dict[str, str]]

#: Columns of a tidy table that say what a value is of.
KEYS = ('participant_id', 'split', 'model', 'metric', 'label')

#: Models and splits in the order in which they are shown; others follow by name.
MODELS = ('classical', 'bundled', 'scratch', 'autoencoder', 'finetuned')
SPLITS = ('test', 'val', 'train')
SPLIT_NAMES = {'test': 'test', 'val': 'validation', 'train': 'training'}


def read_table(path: Path) -> Rows:
    """Rows of a TSV file. Raises MissingInput if it is not there."""
    if not path.is_file():
        raise MissingInput(f'{path} does not exist; `group` writes it.')
    with path.open(encoding='utf-8', newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def learning_curve(
    log_tsv: Path, out_png: Path, score_name: str, higher_is_better: bool | None = None
) -> Path:
    """Draw training loss and validation score over steps; the best step is marked.

    ``log_tsv`` has columns step, loss, validation; the last two may be n/a, the last empty where it
    was not computed. Which score is better is known from the task that has it, unless it is given;
    where neither is, no step is marked. Raises MissingInput or BadData.
    """
    table = read_table(log_tsv)
    try:
        rows = [
            {k: float(row[k]) for k in ('step', 'loss', 'validation')
             if row.get(k) not in (None, '', 'n/a')}
            for row in table
        ]  # fmt: skip
    except ValueError as error:
        raise BadData(f'{log_tsv} holds something that is not a number: {error}') from error
    if not table or 'loss' not in table[0] or any('step' not in row for row in rows):
        raise BadData(f'{log_tsv} must have columns step, loss and validation, and a row a step.')
    known = direction_of(score_name) if higher_is_better is None else higher_is_better
    return learning_chart(out_png, rows, score_name, known)


def direction_of(score_name: str) -> bool | None:
    """Is a higher value of a score better, by the task that is judged by it?"""
    judged = (registry.task(name).head for name in registry.tasks())
    return next((head.higher_is_better for head in judged if head.score == score_name), None)


def group_page(root: Path, task: str, model: Path | None = None) -> Path:
    """Draw ``group_<task>.html`` from ``group_<task>.tsv`` and the model's folder below ``root``.

    ``model``: a folder below ``root`` with card.json, log.tsv and split.tsv; default is the
    newest of the task. What it lacks is left out. Raises MissingInput if there is no model.
    """
    folder = model or cards.newest_model(root / 'models', task)
    if folder is None:
        raise MissingInput(f'No model of task {task} under {root / "models"}; run `group` first.')
    score_name = registry.task(task).head.score
    tidy = root / f'group_{task}.tsv'
    rows = averaged(read_table(tidy if tidy.is_file() else folder / 'metrics.tsv'))
    flags, rows = [r for r in rows if r['metric'] == FLAG], [r for r in rows if r['metric'] != FLAG]
    card = cards.load_card(folder)
    pieces = [_unchanged(card), _seen_before(flags), html.element('h2', 'How well it does')]
    pieces += [html.element('p', text) for text in judged_by(card, {r['model'] for r in rows})]
    pieces += _metrics(root, folder, rows, score_name)
    if (folder / 'log.tsv').is_file():
        picture = learning_curve(folder / 'log.tsv', folder / 'curve.png', score_name)
        caption = (f'Training loss (bold: running mean) and {score_name} of the validation '
                   'participants; the weights of the best step (dashed) are kept.')  # fmt: skip
        pieces += [html.element('h2', 'How it was learnt'), _picture(root, picture, caption)]
    if (folder / 'split.tsv').is_file():
        pieces += [html.element('h2', 'Who was in it'), _split(read_table(folder / 'split.tsv'))]
    pieces += [html.element('h2', 'Model card'), html.facts(_for_people(card))]
    pieces += [html.element('h2', 'Every participant'), by_participant(rows)]
    where = html.element('p', f'Model {folder.relative_to(root).as_posix()}', class_='note')
    return write_text(root / f'group_{task}.html', html.page(f'Task {task}', where, *pieces))


def judged_by(card: Mapping[str, Any], models: Collection[str]) -> list[str]:
    """What figures are of, in sentences: the inputs, and what does without a network."""
    found = []
    if (like := card.get('input_like')) is not None:
        made = card.get('input_made_from', {})
        found.append(
            'Each input was made like a routine scan, its label is that of the whole run: '
            f'{like["words"]}.'
        )
        if made.get('prepared'):
            found.append(
                f'{made["prepared"]} of {sum(made.values())} inputs were made from runs that had '
                'been preprocessed with all their data, which makes them better than a routine '
                'scan is; the others from raw ones, preprocessed by themselves.'
            )
    elif card.get('judged_by') == PARTS:
        found.append(
            'Each label was derived from the whole of its run. Inputs show parts of it, so that '
            'nobody is judged by how well he repeats the noise of the label; the whole run, which '
            'participant shows, is a better input than these.'
        )
    if 'classical' in models and (words := card.get('classical')):
        found.append(f'classical: {words}; from the same inputs as the networks.')
    return found


def averaged(rows: Rows) -> Rows:
    """One row for each participant, split, model, metric and label: the mean over its runs."""
    values: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        values.setdefault(tuple(row[k] for k in KEYS), []).append(number(row['value']))
    return [
        {**dict(zip(KEYS, key, strict=True)), 'value': str(np.mean(own))}
        for key, own in values.items()
    ]


def _unchanged(card: Mapping[str, Any]) -> html.Html:
    """What must be said first: a model that is the one it started from, for no step was better."""
    start = card.get('started_from')
    if not start or card.get('best_step') != 0:
        return html.Html('')
    return html.box('warning', 'Nothing was gained: no step was better on the validation '
                    'participants than the model that it started from, whose weights are kept.',
                    [f'{start["name"]} {start["version"]}'])  # fmt: skip


def _seen_before(flags: Rows) -> html.Html:
    """What must be said first: test participants whom the start of a model had seen in training."""
    told = flagged(
        (r['participant_id'], r['split'], r['model'], FLAG, r['label'], number(r['value']))
        for r in flags
    )
    known = [f'{arm}: {", ".join(people)}' for arm, (people, _) in told.items() if people]
    unsure = [f'{arm}: {", ".join(people)}' for arm, (_, people) in told.items() if people]
    return html.Html(
        html.box('problem', 'Not new to the model: seen in training by the model that it started '
                 'from. Figures of these test participants say nothing of new people.', known)
        + html.box('warning', 'The model that it started from does not say whom it saw in '
                   'training; these test participants may be among them.', unsure)
    )  # fmt: skip


def _for_people(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card with the number of hashes in the place of long lists of them."""
    said = dict(card)
    for name in LISTS:
        own = card.get(name)
        if isinstance(own, dict):
            said[name] = ', '.join(f'{split}: {len(found)}' for split, found in own.items())
        elif isinstance(own, list):
            said[name] = f'{len(own)} (SHA-256 of each in card.json)'
    if isinstance(like := card.get('input_like'), dict):
        said['input_like'] = like.get('words', '')
    return said


def _picture(root: Path, path: Path, caption: str) -> html.Html:
    return html.figure(quote(path.relative_to(root).as_posix()), caption)


def ordered(names: set[str], first: Sequence[str]) -> list[str]:
    """``names``, those of ``first`` in its order, the others after them by name."""
    return sorted(names, key=lambda n: (first.index(n) if n in first else len(first), n))


def number(text: str) -> float:
    """A value of a table; not a number where it is missing."""
    return float('nan') if text in ('', 'n/a') else float(text)


def _metrics(root: Path, folder: Path, rows: Rows, score_name: str) -> list[html.Html]:
    """The deciding metric of each unseen participant as a picture, and a summary of all."""
    for split in SPLITS[:2]:
        values: dict[str, dict[str, float]] = {}
        for row in rows:
            if row['metric'] == score_name and row['split'] == split:
                values.setdefault(row['participant_id'], {})[row['model']] = number(row['value'])
        if values:
            models = ordered({m for own in values.values() for m in own}, MODELS)
            name = f'{SPLIT_NAMES[split]} participants'
            path = paired_dots(folder / 'metrics.png', models, values, score_name)
            text = f'{score_name} of {len(values)} {name}, a dot each; the bar is the median.'
            return [_picture(root, path, text), summary(rows)]
    return [summary(rows)]


def summary(rows: Rows) -> html.Html:
    """Mean ± standard deviation over participants, by metric and split, a column a model."""
    models = ordered({row['model'] for row in rows}, MODELS)
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        key = (row['metric'], row['label'], row['split'])
        values.setdefault(key, {}).setdefault(row['model'], []).append(number(row['value']))
    body = []
    for split in ordered({row['split'] for row in rows}, SPLITS):
        for (metric, label, own_split), own in values.items():
            if own_split == split:
                n = max(len(v) for v in own.values())
                cells = [spread(own.get(model, [])) for model in models]
                body.append((SPLIT_NAMES.get(split, split), metric, label, n, *cells))
    return html.table(('Split', 'Metric', 'Label', 'n', *models), body)


def spread(values: Sequence[float]) -> str:
    """Mean and, from two values on, sample standard deviation, of those that are numbers."""
    good = [v for v in values if not np.isnan(v)]
    if not good:
        return 'n/a'
    deviation = f' ± {np.std(good, ddof=1):.3g}' if len(good) > 1 else ''
    return f'{np.mean(good):.4g}{deviation}'


def by_participant(rows: Rows) -> html.Html:
    """Every value: a row for each participant and metric, a column a model."""
    models = ordered({row['model'] for row in rows}, MODELS)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[k] for k in ('participant_id', 'split', 'metric', 'label'))
        value = number(row['value'])
        cells.setdefault(key, {})[row['model']] = 'n/a' if np.isnan(value) else f'{value:.4g}'
    body = [(*key, *(own.get(model, '') for model in models)) for key, own in cells.items()]
    return html.table(('Participant', 'Split', 'Metric', 'Label', *models), body)


def _split(rows: Rows) -> html.Html:
    """Participants by their part in the training."""
    members: Mapping[str, list[str]] = {
        split: [row['participant_id'] for row in rows if row['split'] == split]
        for split in ordered({row['split'] for row in rows}, SPLITS)
    }
    return html.facts({
        f'{SPLIT_NAMES.get(split, split)} ({len(names)})': ', '.join(names)
        for split, names in members.items()
    })  # fmt: skip

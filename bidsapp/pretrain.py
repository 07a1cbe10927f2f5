"""The pretrain story: simulated or auxiliary scans → fit → one body with its heads, and a card.

Over 300 lines: the whole story on one page.

BIDS_DIR `-` means simulated scans. An auxiliary dataset enters by its prepared runs in OUTPUT_DIR,
as in `group`. A run that was stopped goes on with --resume, under the same plan only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bidsapp import __version__, registry
from bidsapp.bids.filters import read_filters
from bidsapp.bids.identity import raw_scans
from bidsapp.bids.prepared import choose_prepared, with_references
from bidsapp.bids.write import write_json
from bidsapp.core import Plan
from bidsapp.learn import cards
from bidsapp.learn.inputs import states, with_network_of
from bidsapp.learn.processors import nondeterminism, use_processors
from bidsapp.learn.seen import about_seen
from bidsapp.learn.splits import SPLITS, divide, read_split
from bidsapp.learn.tables import tsv
from bidsapp.problems import MissingInput, WrongUsage
from bidsapp.simulate.material import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Case, Checkpoint, Head, Objective
    from bidsapp.learn.inputs import Input
    from bidsapp.learn.state import State
    from bidsapp.networks.base import Network
    from bidsapp.settings import Settings
    from bidsapp.simulate.material import Material

log = logging.getLogger('transfermri')

#: Steps where --steps is not given; size of a batch; decay of the average of the weights.
STEPS, BATCH, LEARNING_RATE, AVERAGE = 3_200, 2, 2e-3, 0.995
#: Learning rate where weights are there to start from (at 1e-3 they were worse after 175 steps than
#: before, and after 450 at this rate better); what --init says where none are.
FINE_RATE, SCRATCH = 4e-4, ('auto', 'scratch')
#: Voxels along the edge of a block, and scans kept at hand from which batches are cut.
SIDE, WINDOW = 48, 32
#: Whole blocks that choose the best step, others after them by which uncertainty is calibrated, and
#: those that make the card's figures.
VALIDATION, CALIBRATION, TEST = 8, 12, 24
#: Steps between two looks at the validation blocks, at most.
VALIDATE_EVERY = 250


def run(settings: Settings, log_file: Path | None) -> int:
    """Tell the story; returns the exit code."""
    modality = modality_of(settings)
    name, objective = chosen_objective(settings, modality)
    log.info('pretrain %s: %s', name, objective.words)
    cases: dict[str, list[Case]] = {}
    if not settings.simulated:
        cases = auxiliary_cases(settings, modality, objective)
        log.info('%d train, %d val, %d test runs', *(len(cases[s]) for s in SPLITS))
    if settings.dry_run:
        return 0
    from bidsapp.learn.blocks import calibrate, tested
    from bidsapp.learn.checkpoint import start_model
    from bidsapp.learn.predict import resolve_device

    device = resolve_device(settings.device)
    use_processors(settings.nprocs, device)
    own = with_network(registry.input(modality), settings.network)
    start = None if settings.init in SCRATCH else start_model(settings.init, modality)
    refuse_other_network(own, start)
    steps = settings.steps or STEPS
    rate = LEARNING_RATE if settings.init in SCRATCH else FINE_RATE
    plan = Plan(
        steps=steps, patch=own.network.patch, batch=own.network.batch or BATCH, lr=rate,
        seed=settings.seed, device=device, validate_every=max(1, min(VALIDATE_EVERY, steps // 4)),
        average=AVERAGE,
    )  # fmt: skip
    place = modality, '-'.join(filter(None, (name, settings.network)))
    state_file, key = claim(settings, place, plan, cases)
    if settings.resume and (before := made_before(settings, place, key)) is not None:
        log.info('%s was made by this plan on these data: not again', before)
        state_file.unlink(missing_ok=True)
        return 0
    kept = settings.work_dir / 'pretrain'
    request = Request(name, settings.tasks, settings.seed, SIDE, kept, cases)
    made: Material = registry.pretraining(modality).material(request)
    network, state, head, shape = learnt(own, made, start, plan, state_file)
    judged = made.tasks, head, own.turned, device
    calibrate(network, (made.sample('val', VALIDATION + k) for k in range(CALIBRATION)), *judged)
    figures = tested(network, (made.sample('test', k) for k in range(TEST)), *judged)
    scans = raw_scans(modality, cases, settings.output_dir, settings.roots)
    paths = {s: [scan and scan[0] for _, scan in part] for s, part in scans.items()}
    seen = {
        **about_seen(paths, None if start is None else start.card),
        'started_from': None if start is None else
            {k: start.card[k] for k in ('name', 'version', 'sha256')},
        'fitted': key,
    }  # fmt: skip
    card = make_card(place, objective, made, own, shape, head, plan, state, figures, settings, seen)
    folder = save_model(place, card, network, state, head, cases, settings)
    state_file.unlink(missing_ok=True)
    for row in figures:
        log.info('%(task)s: %(metric)s %(label)s %(mean).4g ± %(sd).2g on %(n)d test blocks', row)
    log.info('model: %s; log: %s', folder, log_file)
    return 0


def modality_of(settings: Settings) -> str:
    """That of --tasks, else the first there was. Raises WrongUsage for tasks of several."""
    found = sorted({registry.tasks()[name] for name in settings.tasks}) or [registry.FIRST]
    if len(found) > 1:
        raise WrongUsage(
            f'--tasks {" ".join(settings.tasks)}: these are of {" and ".join(found)}, and one call '
            'of pretrain makes a network of one modality. Name tasks of one of them.'
        )
    return found[0]


def with_network(own: Input, name: str | None) -> Input:
    """A modality's input, to be learnt by another of its networks. Raises WrongUsage for none."""
    if name is None:
        return own
    if name not in own.networks:
        raise WrongUsage(
            f'--network {name}: {own.modality} has {", ".join(own.networks) or "no other network"}.'
        )
    return replace(own, network=own.networks[name])


def refuse_other_network(own: Input, start: Checkpoint | None) -> None:
    """Raises WrongUsage where the weights to start from are those of another network than asked."""
    if start is None or cards.modality_of(start.card) != own.modality:
        return  # as for every fit, another modality is refused by `learn.fit`
    usual = registry.input(own.modality)
    shape = with_network_of(usual, start).network
    if shape == own.network:
        return
    name = next((name for name, known in usual.networks.items() if known == shape), None)
    raise WrongUsage(
        f'The start model {start.card["name"]} is a {start.card["network"]["name"]}. '
        + (f'Give --network {name}' if name else 'Leave --network out')
        + ', or another --init.'
    )


def chosen_objective(settings: Settings, modality: str) -> tuple[str, Objective]:
    """Name and objective. Raises WrongUsage where it does not fit what it shall be learnt from."""
    known = registry.objectives(modality)
    usable = {
        name: own for name, own in known.items()
        if (own.simulated if settings.simulated else own.dataset)
    }  # fmt: skip
    what = 'simulated scans (BIDS_DIR -)' if settings.simulated else f'{settings.bids_dir}'
    name = settings.objective
    if name is None and settings.simulated:  # what there is to be known of them is known
        name = next((n for n, own in usable.items() if own.tasks), None)
    if name is None:
        raise WrongUsage(f'pretrain on {what} needs --objective: {", ".join(usable)}.')
    if name not in usable:
        raise WrongUsage(
            f'--objective {name} ({known[name].words if name in known else "unknown"}) cannot be '
            f'learnt from {what}; choose from {", ".join(usable)}, or give '
            f'{"an auxiliary dataset" if settings.simulated else "-"} for BIDS_DIR.'
        )
    # Of another modality a task says which modality is meant.
    if settings.tasks and not usable[name].tasks and modality == registry.FIRST:
        raise WrongUsage(f'--tasks: the objective {name} has a head of its own. Leave it out.')
    if blind := [task for task in settings.tasks if registry.task(task).truth is None]:
        raise WrongUsage(
            f'--tasks {" ".join(blind)}: what the answer is on a simulated scan is not known, so '
            'pretraining cannot teach it. Leave it out; `group` learns it from its labels.'
        )
    return name, usable[name]


def auxiliary_cases(
    settings: Settings, modality: str, objective: Objective
) -> dict[str, list[Case]]:
    """Prepared runs by split, whole participants each. Raises MissingInput for too few."""
    try:
        cases = choose_prepared(
            settings.output_dir, modality, settings.participants, settings.sessions,
            read_filters(settings.filter_file),
        )  # fmt: skip
    except MissingInput as problem:
        raise MissingInput(
            f'{problem} Pretraining on an auxiliary dataset begins with: transfermri '
            f'{settings.bids_dir} {settings.output_dir} participant'
        ) from problem
    why = f'a {registry.files(modality).prepared.words}'
    if objective.labels:
        cases = with_references(settings.output_dir, cases, registry.task(objective.labels))
        why = objective.labels_words
    if settings.split_file is None:
        split = divide([case.subject for case in cases], settings.seed, why, settings.output_dir)
    else:
        split = read_split(settings.split_file)
    found = {name: [c for c in cases if split.get(c.subject) == name] for name in SPLITS}
    if empty := [name for name in SPLITS if not found[name]]:
        raise MissingInput(
            f'{settings.split_file} puts nobody who has {why} into {", ".join(empty)}; at least '
            'one participant is needed in each of train, val and test.'
        )
    return found


def claim(
    settings: Settings, place: tuple[str, str], plan: Plan, cases: Mapping[str, Sequence[Case]]
) -> tuple[Path, str]:
    """The state file of this plan, and what the plan with its data is called.

    Raises WrongUsage if a stopped run stands there unasked.
    """
    folder = settings.work_dir / 'pretrain' / place[0] / place[1]
    state, written = folder / 'state.safetensors', folder / 'plan.json'
    main = registry.files(place[0]).prepared.main
    wanted = json.loads(json.dumps({
        'version': __version__, 'data': str(settings.bids_dir), 'tasks': settings.tasks,
        'init': settings.init,
        **({'network': settings.network} if settings.network else {}),
        **cards.described(replace(plan, device='any')), 'side': SIDE,
        'runs': {name: [str(c.files[main]) for c in part] for name, part in cases.items()},
    }))  # fmt: skip
    every = [list(states([*c.files.values()]).values()) for part in cases.values() for c in part]
    key = hashlib.sha256(json.dumps([wanted, every]).encode()).hexdigest()[:16]
    wanted['data_state'] = key
    if not state.is_file():
        if settings.resume:
            log.info('Nothing to resume in %s: beginning.', folder)
        write_json(written, wanted)
        return state, key
    if not settings.resume:
        raise WrongUsage(
            f'A stopped run of this objective stands in {folder}. Go on with --resume, or remove '
            'that folder to begin anew, or give another work folder (-w).'
        )
    found = json.loads(written.read_text(encoding='utf-8')) if written.is_file() else {}
    if other := [key for key in wanted if found.get(key) != wanted[key]]:
        said = '; '.join(f'{key} was {found.get(key)}, is {wanted[key]}' for key in other)
        raise WrongUsage(
            f'--resume: the stopped run in {folder} has another plan ({said}). Give the same '
            'options, or remove that folder to begin anew.'
        )
    return state, key


def made_before(settings: Settings, place: tuple[str, str], key: str) -> Path | None:
    """The newest model of an objective, if it is of this very plan and data."""
    return cards.fitted_before(cards.pretrained(settings.models, place[0]), place[1], key)


def learnt(
    own: Input, made: Material, start: Checkpoint | None, plan: Plan, state_file: Path
) -> tuple[Network, State, Head, dict[str, Any]]:
    """Fit all heads together; the network at its best step, how it went, joint head, its shape."""
    from bidsapp.learn.fit import fit, grown
    from bidsapp.learn.joint import joint
    from bidsapp.simulate.stream import SimulatedStream

    source = SimulatedStream(
        made.scanners['train'], made.tasks, plan.patch, WINDOW, made.steps_a_scan
    )
    validation = [made.sample('val', index) for index in range(VALIDATION)]
    head = joint([task.head for task in made.tasks])
    shape = {
        'name': own.network.name, 'channels_in': source.channels_in,
        'options': dict(own.network.options),
    }  # fmt: skip
    if start is not None:
        start = grown(start, own, head, source.channels_in)
        shape = dict(start.card['network'])  # what it stays, should its options be of before
    with nondeterminism(plan.device) as found:
        network, state = fit(own, head, source, validation, start, plan, state_file, log.info)
    if found:
        log.warning('%s on %s: made again, the weights will differ', ', '.join(found), plan.device)
    return network, state, head, shape


def make_card(
    place: tuple[str, str],
    objective: Objective,
    made: Material,
    own: Input,
    shape: Mapping[str, Any],
    head: Head,
    plan: Plan,
    state: State,
    figures: Sequence[Mapping[str, Any]],
    settings: Settings,
    seen: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything about a pretrained model but its weights, version and hash; whom it has seen."""
    modality, name = place
    return cards.make_card(
        {'objective': name, 'modality': modality},
        name,
        f'{own.network.words} pretrained to {objective.words}.',
        shape,
        head,
        {
            **made.card,
            **seen,
            'training': {
                **made.about,
                'weights_of_tasks': {task.name: task.head.weight for task in made.tasks},
            },
            'tested_ranges': dict(made.ranges),
            'metrics': list(figures),
            'metrics_over': f'{TEST} held-out blocks, {SIDE} voxels along the edge',
        },
        cards.described(plan),
        state.best_step,
        {
            'command': shlex.join(['transfermri', *settings.argv]),
            'seed': settings.seed,
            'license': made.license,
        },
    )


def save_model(
    place: tuple[str, str],
    card: Mapping[str, Any],
    network: Network,
    state: State,
    head: Head,
    cases: Mapping[str, Sequence[Case]],
    settings: Settings,
) -> Path:
    """The next version's folder: weights, card, log and split, complete at once."""
    from bidsapp.learn.checkpoint import checkpoint_of, save_next

    modality, name = place
    columns = ['step', 'loss', 'validation', *head.parts]

    def add(staging: Path) -> None:
        rows = [
            (row['step'], row['loss'], *(row.get(key, '') for key in columns[2:]))
            for row in state.log
        ]
        (staging / 'log.tsv').write_text(tsv(columns, rows))
        people = sorted({(f'sub-{c.subject}', s) for s, part in cases.items() for c in part})
        if people:
            (staging / cards.SPLIT).write_text(tsv(('participant_id', 'split'), people))

    models = cards.pretrained(settings.models, modality)
    return save_next(checkpoint_of(network, card), models, name, add)

"""The command line: arguments → Settings → one of the stories → exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import __version__
from bidsapp.arguments import Parser
from bidsapp.core import (
    InputOutputError,
    MissingInput,
    Problem,
    TryAgain,
    UnknownLevel,
    WrongUsage,
    ran_out_of_memory,
)
from bidsapp.resources import here, memory_for_steps
from bidsapp.settings import SIMULATED, Settings, derivatives, labels, memory_in_gb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

OUT_OF_MEMORY = 'Out of memory. Give the job more, or lower --nprocs.'
LEVELS = ('participant', 'group', 'pretrain')
OBJECTIVES = ('restore', 'autoencoder', 'supervised', 'auxiliary')
#: Options that scripts pass to every BIDS App and that have no meaning here.
ACCEPTED = {
    'notrack': 'nothing is ever tracked',
    'low_mem': 'images are read one run at a time anyway',
    'fs_license_file': 'FreeSurfer is not used, so no licence is needed',
}


def build_parser() -> Parser:
    """Every option of the contract."""
    parser = Parser(
        prog='transfermri',
        description='Preprocess diffusion MRI, derive labels and apply a 3D U-Net (participant), '
        'fine-tune it on the labels (group), or make its first weights (pretrain). '
        'Not for clinical use.',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        'bids_dir',
        type=Path,
        metavar='BIDS_DIR',
        help='raw dataset (read only); pretrain: an auxiliary one, or - for simulated brains',
    )
    add('output_dir', type=Path, metavar='OUTPUT_DIR', help='where the derivatives go')
    add('level', metavar='{participant,group,pretrain}', help='what to do')
    add('--version', action='version', version=f'TransferMRI {__version__}')
    add('-v', '--verbose', action='count', default=0, help='say more; twice for everything')
    _add_selection(parser.add_argument_group('what to work on'))
    _add_execution(parser.add_argument_group('how to run'))
    _add_learning(parser.add_argument_group('models and learning'))
    ignored = parser.add_argument_group('accepted because scripts pass them')
    ignored.add_argument('--notrack', action='store_true')
    ignored.add_argument('--low-mem', action='store_true')
    ignored.add_argument('--fs-license-file', metavar='FILE')
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    many: dict[str, Any] = {'nargs': '+', 'metavar': 'LABEL'}
    add('--participant-label', '--participant_label', **many,
        help='with or without sub-, or a text file with one a line')  # fmt: skip
    add('--session-label', '--session-id', '--session_label', **many,
        help='the same for sessions')  # fmt: skip
    add('--bids-filter-file', type=Path, metavar='FILE', help="fMRIPrep's JSON filter format")
    add('--tasks', nargs='+', metavar='TASK', help='default: every task the dataset can serve')
    add('-d', '--derivatives', nargs='+', action='extend', default=[], metavar='NAME=PATH',
        help="another pipeline's preprocessed dMRI, used as it is: qsiprep=PATH")  # fmt: skip
    add('--skip-bids-validation', action='store_true', help='do not look at the dataset as a whole')
    add('--bids-database-dir', type=Path, metavar='DIR', help="pybids' index, kept between runs")


def _add_execution(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add('-w', '--work-dir', type=Path, metavar='DIR', help='default OUTPUT_DIR/.work; resumable')
    add('--nprocs', '--nthreads', '--n-cpus', type=int, metavar='N',
        help='default: as many as this process may use')  # fmt: skip
    add(
        '--omp-nthreads',
        type=int,
        metavar='N',
        help='threads of one step; default: --nprocs over the number of runs, at most 8',
    )
    add('--mem', '--mem-mb', metavar='SIZE', help='such as 8G; a bare number is MB; default, '
        'and at most, nine tenths of what machine, cgroup and SLURM allow')  # fmt: skip
    add('--use-plugin', type=Path, metavar='FILE', help='Nipype plugin, YAML')
    add('--stop-on-first-crash', action='store_true', help='start nothing after a failure')
    add('--dry-run', action='store_true', help='say what was found and what would run')
    add('--reports-only', action='store_true', help='draw the pages from the files that are there')
    add('--clean-workdir', action='store_true', help='remove the work folder after success')
    add('--random-seed', type=int, default=0, metavar='N')


def _add_learning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add('--model', default='auto', metavar='auto|bundled|PATH', help='which model to apply')
    add('--device', default='auto', metavar='auto|cpu|cuda|cuda:N')
    add('--init', default='auto', metavar='bundled|scratch|PATH', help='group: where to start from')
    add('--freeze', default='none', choices=['none', 'encoder', 'body'], help='group: what to keep')
    add('--steps', type=int, metavar='N', help='group, pretrain: optimisation steps')
    add('--split-file', type=Path, metavar='TSV', help='group: participant_id, split')
    add('--compare', nargs='+', default=[], choices=['scratch', 'autoencoder'], help='group')
    add('--input-directions', type=int, metavar='N', help='group: learn from N directions only')
    add('--objective', choices=OBJECTIVES,
        help='pretrain: undo artefacts and noise (restore), give back the input (autoencoder), '
        'all tasks by the truth of simulated brains (supervised, the default with -), or NODDI of '
        'an auxiliary dataset from fewer directions and coarser voxels (auxiliary)')  # fmt: skip
    add('--resume', action='store_true', help='pretrain: go on where a run was stopped')


def parse(argv: Sequence[str]) -> Settings:
    """Arguments → Settings. Raises Problem for what cannot be meant."""
    args = build_parser().parse_args(argv)
    if args.level not in LEVELS:
        raise UnknownLevel(
            f'The analysis level {args.level!r} does not exist; choose participant, group or '
            'pretrain.'
        )
    from bidsapp import tasks

    for task in args.tasks or []:
        if task not in tasks.names():
            raise WrongUsage(f'There is no task {task!r}. Choose from: {", ".join(tasks.names())}.')
    _check_numbers(args)
    _check_level(args)
    output = args.output_dir.absolute()
    memory, processors = here()
    return Settings(
        bids_dir=args.bids_dir if args.bids_dir == SIMULATED else args.bids_dir.absolute(),
        output_dir=output,
        level=args.level,
        participants=labels(args.participant_label, 'sub-'),
        sessions=labels(args.session_label, 'ses-'),
        filter_file=args.bids_filter_file,
        tasks=tuple(dict.fromkeys(args.tasks or [])),
        derivatives=derivatives(args.derivatives),
        model=args.model,
        device=args.device,
        work_dir=(args.work_dir or output / '.work').absolute(),
        nprocs=args.nprocs or int(processors.amount),
        omp_nthreads=args.omp_nthreads or 0,
        memory=memory_for_steps(memory_in_gb(args.mem) if args.mem else None, memory),
        plugin_file=args.use_plugin,
        database_dir=args.bids_database_dir,
        skip_validation=args.skip_bids_validation,
        stop_on_first_crash=args.stop_on_first_crash,
        dry_run=args.dry_run,
        reports_only=args.reports_only,
        clean_workdir=args.clean_workdir,
        seed=args.random_seed,
        verbose=args.verbose,
        init=args.init,
        freeze=args.freeze,
        steps=args.steps,
        split_file=args.split_file,
        compare=tuple(args.compare),
        input_directions=args.input_directions,
        objective=args.objective or ('supervised' if args.bids_dir == SIMULATED else None),
        resume=args.resume,
        argv=tuple(argv),
    )


def _check_level(args: argparse.Namespace) -> None:
    """Raises WrongUsage for options that mean nothing at this level."""
    if args.level == 'pretrain':
        given = {
            '--init': args.init not in ('auto', 'scratch'),
            '--model': args.model != 'auto',
            '--freeze': args.freeze != 'none',
            '--compare': args.compare,
            '--split-file': args.split_file,
            '--input-directions': args.input_directions,
            '--reports-only': args.reports_only,
            '--derivatives': args.derivatives,
        }
        reason = 'pretrain makes weights from random ones and draws no page'
    else:
        given = {'BIDS_DIR -': args.bids_dir == SIMULATED, '--objective': args.objective,
                 '--resume': args.resume}  # fmt: skip
        reason = f'that is for pretrain; {args.level} needs a BIDS dataset and goes on by itself'
    if unfit := [name for name, value in given.items() if value]:
        raise WrongUsage(f'{args.level} with {", ".join(unfit)}: {reason}. Leave it out.')


def _check_numbers(args: argparse.Namespace) -> None:
    limits = {'nprocs': 1, 'omp_nthreads': 1, 'steps': 1, 'input_directions': 6, 'random_seed': 0}
    for name, least in limits.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise WrongUsage(f'--{name.replace("_", "-")} {value}: expected at least {least}.')
    device = args.device
    if device not in ('auto', 'cpu', 'cuda') and not (
        device.startswith('cuda:') and device[5:].isdigit()
    ):
        raise WrongUsage(f'--device {device}: expected auto, cpu, cuda or cuda:N.')
    if args.use_plugin and not args.use_plugin.is_file():
        raise MissingInput(f'The plugin file {args.use_plugin} does not exist.')
    for name, meaning in ACCEPTED.items():
        if getattr(args, name):
            print(f'--{name.replace("_", "-")} is accepted and has no effect: {meaning}.')


def quiet_environment(settings: Settings) -> None:
    """Caches and temporary files where they may be written; no look at the network."""
    home = Path(os.environ.get('HOME', '/nonexistent'))
    if not os.access(home, os.W_OK):
        os.environ['HOME'] = str(settings.work_dir)
    caches = settings.work_dir / 'cache'
    for variable in (
        'XDG_CACHE_HOME',
        'MPLCONFIGDIR',
        'NUMBA_CACHE_DIR',
        'DIPY_HOME',
        'TORCH_HOME',
    ):
        os.environ.setdefault(variable, str(caches / variable.lower()))
    os.environ['NIPYPE_NO_ET'] = os.environ['NO_ET'] = '1'
    threads = str(max(settings.omp_nthreads, 1))
    for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS',
                     'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'):  # fmt: skip
        os.environ[variable] = threads
    # Threads that wait for work sleep; spinning ones take the processor from those that work.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    os.environ['MPLBACKEND'] = 'Agg'


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    settings: Settings | None = None
    try:
        settings = parse(argv)
        return run(settings)
    except Problem as problem:
        print(f'transfermri: {problem}', file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print('transfermri: interrupted; the same command goes on from here.', file=sys.stderr)
        return TryAgain.exit_code
    except Exception as error:
        if ran_out_of_memory(error):
            print(f'transfermri: {OUT_OF_MEMORY}', file=sys.stderr)
            return TryAgain.exit_code
        if isinstance(error, OSError):
            print(f'transfermri: reading or writing failed: {error}', file=sys.stderr)
            return InputOutputError.exit_code
        # The one place where a defect of ours ends up, with its traceback.
        traceback.print_exc()
        print('transfermri: this is a defect of TransferMRI; please report it.', file=sys.stderr)
        return 1


def run(settings: Settings) -> int:
    """Look at the folders, set up the log, and tell the story."""
    from bidsapp.bids.query import check_dataset, subjects_of
    from bidsapp.settings import check_folders

    if not settings.simulated:
        if not settings.skip_validation or not settings.bids_dir.is_dir():
            check_dataset(settings.bids_dir)
        subjects_of(settings.bids_dir)
    check_folders(settings)
    quiet_environment(settings)
    log = set_up_log(settings)
    try:
        if settings.level == 'participant':
            from bidsapp import participant

            return participant.run(settings, log)
        if settings.level == 'pretrain':
            from bidsapp import pretrain

            return pretrain.run(settings, log)
        from bidsapp import group

        return group.run(settings, log)
    except Problem as problem:
        logging.getLogger('transfermri').debug('%s', problem)
        raise
    finally:
        close_log()


def set_up_log(settings: Settings) -> Path:
    """Messages to the screen, and all of them to a file of this call under OUTPUT_DIR/logs."""
    from datetime import UTC, datetime

    stamp = datetime.now(UTC).strftime('%Y%m%dT%H%M%S')
    path = settings.output_dir / 'logs' / f'{settings.level}-{stamp}-{os.getpid()}.log'
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger('transfermri')
    logger.setLevel(logging.DEBUG)
    close_log()
    logger.propagate = False
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel(logging.DEBUG if settings.verbose else logging.INFO)
    screen.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    file = logging.FileHandler(path, encoding='utf-8')
    file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    logger.addHandler(screen)
    logger.addHandler(file)
    logger.debug('TransferMRI %s: transfermri %s', __version__, ' '.join(settings.argv))
    return path


def close_log() -> None:
    """Let go of the log file."""
    logger = logging.getLogger('transfermri')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


if __name__ == '__main__':
    sys.exit(main())

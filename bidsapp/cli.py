"""The command line: arguments → Settings → one of the stories → exit code."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import __version__, registry
from bidsapp.arguments import (
    ACCEPTED,
    DESCRIBE,
    LEVELS,
    build_parser,
    least,
    modality_options,
    unfit,
)
from bidsapp.problems import (
    OUT_OF_MEMORY,
    InputOutputError,
    MissingInput,
    Problem,
    TryAgain,
    UnknownLevel,
    WrongUsage,
    ran_out_of_memory,
)
from bidsapp.resources import here, memory_for_steps
from bidsapp.settings import SIMULATED, Settings, derivatives, labels, memory_in_gb, redo
from bidsapp.stopping import Stopped, heard

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bidsapp.arguments import Parser


def parse(argv: Sequence[str]) -> Settings:
    """Arguments → Settings. Raises Problem for what cannot be meant."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.bids_exec_spec:
        raise WrongUsage(f'{DESCRIBE} with other arguments: expected it alone. Leave them out.')
    if args.level not in LEVELS:
        raise UnknownLevel(
            f'The analysis level {args.level!r} does not exist; choose participant, group or '
            'pretrain.'
        )
    for task in args.tasks or []:
        if task not in registry.tasks():
            raise WrongUsage(
                f'There is no task {task!r}. Choose from: {", ".join(registry.tasks())}.'
            )
    _check_numbers(args)
    _check_level(args, parser)
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
        skip_validation=args.skip_bids_validation,
        stop_on_first_crash=args.stop_on_first_crash,
        dry_run=args.dry_run,
        reports_only=args.reports_only,
        clean_workdir=args.clean_workdir,
        force=args.force,
        redo=redo(args.redo),
        seed=args.random_seed,
        verbose=args.verbose,
        init=args.init,
        freeze=args.freeze,
        steps=args.steps,
        split_file=args.split_file,
        compare=tuple(args.compare),
        options=_modality_options(args),
        objective=args.objective,
        network=args.network,
        resume=args.resume,
        argv=tuple(argv),
    )


def _modality_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those options of modalities that were given. Raises WrongUsage where no task has them."""
    named = args.tasks or list(registry.tasks())
    concerned = {registry.tasks()[task] for task in named}
    given = {n: getattr(args, n) for n in modality_options() if getattr(args, n) is not None}
    known = {option.name for m in concerned for option in registry.options(m)}
    if unknown := [modality_options()[n].flag for n in given if n not in known]:
        titles = ', '.join(registry.title(m) for m in sorted(concerned))
        raise WrongUsage(
            f'{", ".join(unknown)} means nothing to {", ".join(named)} ({titles}). Leave it out, '
            'or name a task that has it.'
        )
    return given


def _check_level(args: argparse.Namespace, defaults: Parser) -> None:
    """Raises WrongUsage for options that mean nothing at this level."""
    for option in modality_options().values():
        if args.level not in option.levels and getattr(args, option.name) is not None:
            raise WrongUsage(
                f'{args.level} with {option.flag}: that is for {" and ".join(option.levels)}. '
                'Leave it out.'
            )
    if args.level != 'participant' and (args.force or args.redo):
        raise WrongUsage(
            f'{args.level} with {"--force" if args.force else "--redo"}: that is for participant. '
            'Leave it out.'
        )
    found = [
        f'--{name.replace("_", "-")}'
        for name in unfit(args.level)
        if getattr(args, name) != defaults.get_default(name)
    ]
    if args.level == 'pretrain':
        reason = 'pretrain makes weights and draws no page'
    else:
        if args.bids_dir == SIMULATED:
            found.append('BIDS_DIR -')
        reason = f'that is for pretrain; {args.level} needs a BIDS dataset and goes on by itself'
    if found:
        raise WrongUsage(f'{args.level} with {", ".join(found)}: {reason}. Leave it out.')


def _check_numbers(args: argparse.Namespace) -> None:
    for name, lowest in least().items():
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise WrongUsage(f'--{name.replace("_", "-")} {value}: expected at least {lowest:g}.')
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
        if argv == [DESCRIBE]:
            return describe()
        with heard():
            settings = parse(argv)
            return run(settings)
    except Stopped as stopped:
        print(f'transfermri: {stopped}', file=sys.stderr)
        return TryAgain.exit_code
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


def describe() -> int:
    """Print the Boutiques descriptor and nothing else."""
    from bidsapp.descriptor import descriptor

    print(json.dumps(descriptor(), indent=2, ensure_ascii=False))
    return 0


def run(settings: Settings) -> int:
    """Look at the folders, set up the log, and tell the story."""
    from bidsapp.bids.dataset import check_dataset, subjects_of
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
    except (Problem, Stopped) as reason:
        logging.getLogger('transfermri').debug('%s', reason)
        raise
    finally:
        close_log()


def set_up_log(settings: Settings) -> Path | None:
    """Messages to the screen, and all of them to a file of this call under OUTPUT_DIR/logs.

    None for a dry run, which writes nothing.
    """
    from datetime import UTC, datetime

    logger = logging.getLogger('transfermri')
    logger.setLevel(logging.DEBUG)
    close_log()
    logger.propagate = False
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel(logging.DEBUG if settings.verbose else logging.INFO)
    screen.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    logger.addHandler(screen)
    if settings.dry_run:
        return None
    stamp = datetime.now(UTC).strftime('%Y%m%dT%H%M%S')
    name = f'{settings.level}-{stamp}-{secrets.token_hex(4)}.log'  # jobs of an array begin at once
    path = settings.output_dir / 'logs' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding='utf-8')
    file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
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

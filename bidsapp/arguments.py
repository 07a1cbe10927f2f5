"""Every option of the command line, and an argparse that raises a Problem, not exits with 2.

What is said of an option here is also what ``descriptor`` tells platforms; importing this module
loads no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bidsapp import __version__, registry
from bidsapp.core import PARTS
from bidsapp.problems import WrongUsage

if TYPE_CHECKING:
    from bidsapp.core import Option

LEVELS = ('participant', 'group', 'pretrain')
#: Options that scripts pass to every BIDS App and that have no meaning here.
ACCEPTED = {
    'notrack': 'nothing is ever tracked',
    'low_mem': 'images are read one run at a time anyway',
    'bids_database_dir': 'only folders of the selected participants are listed, without an index',
    'fs_license_file': 'FreeSurfer is not used, so no licence is needed',
}
#: Options that mean nothing at a level, by their names after parsing.
UNFIT = {
    'participant': ('objective', 'network', 'resume'),
    'group': ('objective', 'network', 'resume'),
    'pretrain': ('model', 'freeze', 'compare', 'reports_only', 'derivatives'),
}
#: The least that a number may be.
LEAST = {'nprocs': 1, 'omp_nthreads': 1, 'steps': 1, 'random_seed': 0}
#: The end of ``--help``.
EXAMPLES = """\
examples:
  transfermri /data/bids /data/out participant --participant-label 01 02 --nprocs 8
  transfermri /data/bids /data/out group --tasks tissue orientation --device cuda
  transfermri - /data/out pretrain --objective supervised --random-seed 1

exit codes: 0 all that was promised is there; 1 some of it; 16 no valid dataset; 17 no such level;
18 nothing selected; 64 wrong usage; 65 bad data; 66 an input is missing; 73 cannot write; 74 disk
full; 75 try again
"""
#: Given alone, prints the Boutiques descriptor.
DESCRIBE = '--bids-exec-spec'


def modality_options() -> dict[str, Option]:
    """Options that mean something to one modality or more only, by their names after parsing."""
    found = [option for m in registry.modalities() for option in registry.options(m)]
    return {option.name: option for option in found}


def unfit(level: str) -> tuple[str, ...]:
    """Options that mean nothing at a level, those of modalities too."""
    own = (name for name, option in modality_options().items() if level not in option.levels)
    return (*UNFIT[level], *own)


def least() -> dict[str, float]:
    """The least that a number may be, by the option's name."""
    own = modality_options().items()
    return LEAST | {name: option.least for name, option in own if option.least is not None}


def above(limit: float, kind: type[int] | type[float], end: float = float('inf')) -> Any:
    """Reads a number above ``limit`` and below ``end``, for argparse."""

    def number(text: str) -> int | float:
        value = kind(text)
        if not limit < value < end:
            words = f'above {limit:g}' + (f' and below {end:g}' if end < float('inf') else '')
            raise argparse.ArgumentTypeError(f'{text} given, a number {words} expected')
        return value

    return number


def below(limit: float) -> Any:
    """Reads a number of at least 0 and below ``limit``, for argparse."""

    def number(text: str) -> float:
        value = float(text)
        if not 0 <= value < limit:
            raise argparse.ArgumentTypeError(
                f'{text} given, a number of at least 0 and below {limit:g} expected'
            )
        return value

    return number


class Parser(argparse.ArgumentParser):
    """Wrong usage is exit code 64."""

    def error(self, message: str) -> NoReturn:
        """Raises WrongUsage."""
        raise WrongUsage(f'{message}. {self.prog} --help lists the options.')


def build_parser() -> Parser:
    """Every option of the contract."""
    parser = Parser(
        prog='transfermri',
        description='Preprocess diffusion MRI, derive labels and apply a 3D U-Net (participant), '
        'fine-tune it on the\nlabels (group), or make its first weights (pretrain). '
        'Not for clinical use.',
        allow_abbrev=False,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'bids_dir',
        type=Path,
        metavar='BIDS_DIR',
        help='raw dataset (read only); pretrain: an auxiliary one, or - for simulated brains',
    )
    add('output_dir', type=Path, metavar='OUTPUT_DIR', help='where the derivatives go')
    add(
        'level',
        metavar='{participant,group,pretrain}',
        help='what to do: prepare, label and predict; fine-tune; make first weights',
    )
    add('--version', action='version', version=f'TransferMRI {__version__}')
    add(
        DESCRIBE,
        action='store_true',
        help='given alone: print the Boutiques descriptor of these options',
    )
    add('-v', '--verbose', action='count', default=0, help='say more; twice for everything')
    _add_selection(parser.add_argument_group('what to work on'))
    _add_execution(parser.add_argument_group('how to run'))
    _add_learning(parser.add_argument_group('models and learning'))
    ignored = parser.add_argument_group('accepted because scripts pass them')
    ignored.add_argument('--notrack', action='store_true', help=ACCEPTED['notrack'])
    ignored.add_argument('--low-mem', action='store_true', help=ACCEPTED['low_mem'])
    ignored.add_argument(
        '--bids-database-dir', type=Path, metavar='DIR', help=ACCEPTED['bids_database_dir']
    )
    ignored.add_argument(
        '--fs-license-file', type=Path, metavar='FILE', help=ACCEPTED['fs_license_file']
    )
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    many: dict[str, Any] = {'nargs': '+', 'metavar': 'LABEL'}
    add('--participant-label', '--participant_label', **many,
        help='with or without sub-, or a text file with one a line; default: all')  # fmt: skip
    add('--session-label', '--session-id', '--session_label', **many,
        help='the same for sessions')  # fmt: skip
    add(
        '--bids-filter-file',
        type=Path,
        metavar='FILE',
        help="fMRIPrep's JSON filter format; default: none",
    )
    add('--tasks', nargs='+', metavar='TASK', help='default: every task the dataset can serve')
    add('-d', '--derivatives', nargs='+', action='extend', default=[], metavar='NAME=PATH',
        help="another pipeline's preprocessed dMRI, used as it is: qsiprep=PATH; brain "
        'masks of your own, <scan>_desc-brain_mask: masks=PATH; of gradient echo also finished '
        'fields (fields), labels of regions (dseg), and susceptibility maps to learn from '
        '(chimap); default: none')  # fmt: skip
    add('--skip-bids-validation', action='store_true', help='do not look at the dataset as a whole')


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
    add(
        '--use-plugin',
        type=Path,
        metavar='FILE',
        help='Nipype plugin, YAML; default: processes of this machine',
    )
    add('--stop-on-first-crash', action='store_true', help='start nothing after a failure')
    add('--dry-run', action='store_true', help='say what was found and what would run')
    add('--reports-only', action='store_true', help='draw the pages from the files that are there')
    add(
        '--clean-workdir',
        action='store_true',
        help="remove what this call's participants left in the work folder, once they finished",
    )
    add('--force', action='store_true', help='participant: make everything again')
    add('--redo', nargs='+', action='extend', default=[], metavar='PART',
        help='participant: make again, with what depends on it: '
        f'{", ".join(PARTS)}, or a task')  # fmt: skip
    add('--random-seed', type=int, default=0, metavar='N', help='default 0')


def _add_learning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        '--model',
        default='auto',
        metavar='auto|bundled|PATH',
        help='which model to apply; default auto: the newest that `group` made, else the bundled',
    )
    add(
        '--device',
        default='auto',
        metavar='auto|cpu|cuda|cuda:N',
        help='default auto: CUDA where there is any',
    )
    add(
        '--init',
        default='auto',
        metavar='bundled|scratch|PATH',
        help='where to start from; default: group bundled where there is one, pretrain scratch',
    )
    add(
        '--freeze',
        default='none',
        choices=['none', 'encoder', 'body', 'published'],
        help='group: what to keep as it was; default none; published: the rates and the length of '
        'a paper, where a modality has such (susceptibility)',
    )
    add(
        '--steps',
        type=int,
        metavar='N',
        help='optimisation steps; default: 1000 (group), 3200 (pretrain)',
    )
    add(
        '--split-file',
        type=Path,
        metavar='TSV',
        help='columns participant_id, split (train, val, test); default: drawn by --random-seed',
    )
    add(
        '--compare',
        nargs='+',
        default=[],
        choices=['scratch', 'autoencoder'],
        help='group: other starts to compare with; default: none',
    )
    for option in modality_options().values():
        if option.type is bool:
            add(option.flag, action='store_true', default=None, help=option.help)
            continue
        add(
            option.flag, type=option.type, metavar=option.metavar, help=option.help,
            choices=option.choices,
        )  # fmt: skip
    add('--objective', choices=objectives(), help=f'pretrain to {words_of_objectives()}')
    add('--network', metavar='NAME', help="pretrain: another of the modality's networks, such as "
        'adaptive_unet; default: its own')  # fmt: skip
    add('--resume', action='store_true', help='pretrain: go on where a run was stopped')


def objectives() -> list[str]:
    """Every modality's objectives of pretraining."""
    return list(dict.fromkeys(o for m in registry.modalities() for o in registry.objectives(m)))


def words_of_objectives() -> str:
    """What each teaches, in one sentence."""
    every = {
        f'{name}, {registry.title(m)}': own.words
        for m in registry.modalities()
        for name, own in registry.objectives(m).items()
    }
    return '; '.join(f'{words} ({name})' for name, words in every.items())

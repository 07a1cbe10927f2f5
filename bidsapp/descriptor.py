"""The Boutiques descriptor of the command line, which platforms and the BIDS execution spec read.

It is made from the parser and the exit codes themselves, so what is added to them is in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bidsapp import __version__, registry
from bidsapp.arguments import DESCRIBE, LEVELS, build_parser, least, unfit
from bidsapp.bids.write import BIDS_VERSION
from bidsapp.problems import Problem

#: The image of this version; the one without a suffix runs with and without a GPU.
IMAGE = f'ghcr.io/transfermri/transfermri:{__version__}'
#: The draft of the BIDS execution specification that was followed.
SPECIFICATION = '0.1.0.dev'
#: Names that the specification gives to options; ours are in CamelCase.
IDS = {
    'bids_dir': 'InputDataset',
    'output_dir': 'OutputLocation',
    'level': 'AnalysisLevel',
    'participant_label': 'SubjectLabel',
    'version': 'ToolVersion',
}
#: id, name, path below the output folder; which of them there are depends on level and scans.
OUTPUTS = (
    ('DatasetDescription', 'The derivative dataset', 'dataset_description.json'),
    ('ParticipantPages', 'A page for each participant', 'sub-*.html'),
    ('Models', 'Fine-tuned weights', 'models/*/*/weights.safetensors'),
    ('PretrainedModels', 'Pretrained weights', 'models/pretrained/*/*/*/weights.safetensors'),
    ('GroupTables', 'Metrics of the fine-tuned models', 'group_*.tsv'),
    ('GroupPages', 'A page for each fine-tuned task', 'group_*.html'),
    ('Citation', 'Text for a methods section', 'logs/CITATION.md'),
    ('Logs', 'The log of each call', 'logs/*.log'),
)


def outputs() -> list[tuple[str, str, str]]:
    """What an output folder may hold: id, name, path; the folders of every modality too."""
    folders = dict.fromkeys(registry.files(m).prepared.datatype for m in registry.modalities())
    own = []
    for folder in folders:
        name = f'{folder.capitalize()}Derivatives'
        own += [
            (name, f'Images and metadata in {folder}', f'sub-*/{folder}/*'),
            (f'{name}OfSessions', f'The same of each session in {folder}',
             f'sub-*/ses-*/{folder}/*'),
        ]  # fmt: skip
    first, *others = OUTPUTS
    return [first, *own, *others]


def descriptor() -> dict[str, Any]:
    """A Boutiques descriptor (schema 0.5), ready for JSON."""
    parser = build_parser()
    # argparse has no public way to list what was added to it.
    inputs = [_input(a) for a in parser._actions if DESCRIBE not in a.option_strings]
    keys = ' '.join(i['value-key'] for i in inputs)
    return {
        'name': 'TransferMRI',
        'tool-version': __version__,
        'schema-version': '0.5',
        'description': parser.description,
        'author': 'TransferMRI developers',
        'url': 'https://github.com/transfermri/transfermri',
        'command-line': f'{parser.prog} {keys}',
        'container-image': {'type': 'docker', 'image': IMAGE, 'entrypoint': True},
        # Not the default /bin/sh: bosh makes a login shell of that, which forgets the image's PATH.
        'shell': '/bin/bash',
        'inputs': inputs,
        'output-files': [
            {
                'id': name,
                'name': title,
                'path-template': f'{_key("output_dir")}/{path}',
                'optional': True,
                'list': '*' in path,
            }
            for name, title, path in outputs()
        ],
        'error-codes': [{'code': c, 'description': d} for c, d in sorted(exit_codes().items())],
        'suggested-resources': {'cpu-cores': 4, 'ram': 8, 'nodes': 1},
        'tags': {'domain': ['neuroinformatics', 'mri', 'diffusion mri']},
        'custom': {
            # One draft names this key in two ways.
            'BIDSAppSpecVersion': SPECIFICATION,
            'BIDSApplicationVersion': SPECIFICATION,
            'OutputDataSpecification': [f'BIDS Derivatives {BIDS_VERSION}'],
        },
    }


def exit_codes() -> dict[int, str]:
    """What each exit code but 0 means."""
    meanings = {kind.exit_code: (kind.__doc__ or '').strip() for kind in Problem.__subclasses__()}
    return {1: 'Some runs failed and others did not, or an unexpected failure.', **meanings}


def _id(name: str) -> str:
    return IDS.get(name) or ''.join(word.capitalize() for word in name.split('_'))


def _key(name: str) -> str:
    return f'[{name.upper()}]'


def _input(action: argparse.Action) -> dict[str, Any]:
    """One option; its type, list and choices follow from how argparse reads it."""
    long = next((o for o in action.option_strings if o.startswith('--')), None)
    found: dict[str, Any] = {
        'id': _id(action.dest),
        'name': action.dest.replace('_', ' '),
        'description': action.help or 'accepted; has no effect',
        'type': 'String',
        'value-key': _key(action.dest),
        'optional': not action.required,
    }
    if isinstance(action, argparse._CountAction):  # the times that it is given are its value
        return {**found, 'value-choices': ['-v', '-vv']}
    if long:
        found['command-line-flag'] = long
    if action.nargs == 0:
        return {**found, 'type': 'Flag'}
    if action.type is Path:
        found['type'] = 'File'
    elif action.type is int:
        found |= {'type': 'Number', 'integer': True, 'minimum': least()[action.dest]}
    if choices := _choices(action):
        found['value-choices'] = choices
    if action.dest == 'level':
        found['value-disables'] = {level: [_id(n) for n in unfit(level)] for level in LEVELS}
    if action.nargs == '+':
        found |= {'list': True, 'min-list-entries': 1}
    if action.dest == 'bids_dir':  # the specification has a list; ours may have one entry
        found |= {'list': True, 'min-list-entries': 1, 'max-list-entries': 1}
    return found


def _choices(action: argparse.Action) -> list[str]:
    """Permitted values; argparse does not know those that have an exit code of their own."""
    own = {'level': LEVELS, 'tasks': tuple(registry.tasks())}
    return list(own.get(action.dest) or action.choices or ())

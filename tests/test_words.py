"""The words of one modality stay in its own rooms: what is shared knows nothing of them."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

import bidsapp

ROOT = Path(bidsapp.__file__).parent

#: What no name in a shared room may hold: words, or two in a row.
WORDS = {'dwi', 'bval', 'bvals', 'bvec', 'bvecs', 'b0', 'shell', 'shells', 'fibre', 'fibres',
         'gtab', 'chi', 'chimap', 'chimaps', 'megre', 'dipole', 'swi', 'r2star',
         't2star', 'kspace', 'ismrmrd', 'espirit', 'coil', 'coils', 'undersample'}  # fmt: skip
PAIRS = {('gradient', 'table'), ('gradient', 'tables')}
#: What no text without spaces (a suffix, an extension, an entity, a key) may hold.
IN_FILES = {
    'dwi',
    'dwimap',
    'bval',
    'bvals',
    'bvec',
    'bvecs',
    'chimap',
    'megre',
    't2starw',
    'kspace',
}
#: Such texts that may stand, by file, each with its reason.
EXCUSED = {
    ('registry.py', 'dwi'): 'cards of before there were modalities are of diffusion',
    ('interfaces/anat.py', 'BrainOfT1wInBrainOfDwi'): 'a field of sidecars that are out there',
}

SHARED = sorted(p for p in ROOT.rglob('*.py') if 'modalities' not in p.relative_to(ROOT).parts)


def words(name):
    """The words of a name in small letters, at underscores, dots and capitals."""
    parts = re.findall(r'[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+', name)
    return [part.lower() for part in parts]


def names_in(tree):
    """(line, name) of every identifier: whatever text a node holds that is no constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            continue
        for _, value in ast.iter_fields(node):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    yield getattr(node, 'lineno', 0), text


def texts_in(tree):
    """(line, text) of every string, and every piece of one, that is no prose."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and not re.search(r'\s', text):
            yield node.lineno, text


def violations(path, root):
    """What in a file a shared room must not know, in words."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    place = path.relative_to(root)
    found = []
    for line, name in [(0, part) for part in place.with_suffix('').parts] + list(names_in(tree)):
        own = words(name)
        # A number behind a word does not make it another: bval2.
        bare = {word.rstrip('0123456789') for word in own}
        if WORDS & {*own, *bare} or PAIRS & set(pairwise(own)):
            found.append(f'{place}:{line}: {name}')
    for line, text in texts_in(tree):
        if IN_FILES & set(words(text)) and (place.as_posix(), text) not in EXCUSED:
            found.append(f'{place}:{line}: {text!r}')
    return found


def test_shared_rooms_do_not_name_what_only_one_modality_has():
    assert len(SHARED) > 80
    assert not [found for path in SHARED for found in violations(path, ROOT)]


def test_every_excuse_is_still_needed():
    there = {
        (path.relative_to(ROOT).as_posix(), text)
        for path in SHARED
        for _, text in texts_in(ast.parse(path.read_text(encoding='utf-8')))
    }
    assert set(EXCUSED) <= there


@pytest.mark.parametrize(
    'planted',
    [
        'def masked(mean_b0): ...',
        'B0_THRESHOLD = 50',
        'class DwiRun: ...',
        'from rooms.physics import fibres',
        'import rooms.physics.gradient_table as tables',
        'kept = run.bvals[0]',
        'drawn(shells=3)',
        'table = GradientTable()',
        "said = f'{gtab.n}'",
        'def first(bval1, *, second): ...',
        "name = 'sub-01_dwi.nii.gz'",
        "named = {'suffix': 'dwimap'}",
        "beside = ('.bval', '.bvec')",
        "path = f'{stem}_dwi.json'",
    ],
)
def test_a_word_that_slips_in_is_found(planted, tmp_path):
    file = tmp_path / 'room.py'
    file.write_text(planted + '\n')
    assert len(violations(file, tmp_path)) >= 1


def test_prose_and_other_names_are_free(tmp_path):
    file = tmp_path / 'room.py'
    file.write_text(
        '"""Such as the dwi of a run, its bvals and the shells."""\n'
        "#: The b0 of a run.\nWORDS = 'no dwi was found'\n"
        'def epi(subshell, dwindled): ...\n'
    )
    assert not violations(file, tmp_path)
    file.rename(tmp_path / 'mean_b0.py')
    assert violations(tmp_path / 'mean_b0.py', tmp_path)

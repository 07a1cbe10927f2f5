"""Taking another pipeline's preprocessed dMRI instead of preprocessing again (-d qsiprep=PATH)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.dataset import choose_t1w
from bidsapp.bids.derivatives import linked_uri
from bidsapp.bids.filters import matches
from bidsapp.bids.images import open_image
from bidsapp.bids.masks import MASKS, with_masks
from bidsapp.bids.metadata import understood
from bidsapp.bids.names import parse, source_entities, stem
from bidsapp.bids.scans import read_object
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.combining import combined
from bidsapp.modalities.dwi.bids.runs import DwiRun, anatomies_asked, b0_asked, runs_of
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl, to_fsl
from bidsapp.physics.geometry import grid_axes
from bidsapp.problems import BadData, InvalidDataset, MissingInput, Problem, WrongUsage, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection
    from bidsapp.bids.runs import Run

#: Name of a pipeline on the command line → its own.
SUPPORTED = {'qsiprep': 'QSIPrep'}
#: Spaces in which QSIPrep leaves dMRI; the newer name first.
SPACES = ('ACPC', 'T1w')


def check_derivative(name: str, root: Path) -> str:
    """The pipeline that wrote the derivative dataset ``root``, with its version.

    Raises WrongUsage, MissingInput or InvalidDataset.
    """
    if not root.is_dir():
        raise MissingInput(
            f'-d {name}={root}: the folder does not exist. Is it mounted in the container?'
        )
    inner = root / name / 'dataset_description.json'
    hint = f' Did you mean {inner.parent}?' if inner.is_file() else ''
    path = root / 'dataset_description.json'
    if not path.is_file():
        raise InvalidDataset(f'-d {name}={root}: it has no dataset_description.json.{hint}')
    try:
        description = read_object(path)
    except BadData as problem:
        raise InvalidDataset(str(problem)) from problem
    makers = description.get('GeneratedBy') or description.get('PipelineDescription') or []
    makers = [m for m in (makers if isinstance(makers, list) else [makers]) if isinstance(m, dict)]
    if description.get('DatasetType') != 'derivative' and not makers:
        raise InvalidDataset(
            f'-d {name}={root}: its dataset_description.json says neither DatasetType "derivative" '
            f'nor GeneratedBy, so it is not the output of a pipeline.{hint}'
        )
    for maker in makers:
        if name in str(maker.get('Name', '')).lower():
            return f'{SUPPORTED[name]} {maker.get("Version") or "of an unknown version"}'
    if makers:
        raise WrongUsage(
            f'-d {name}={root}: it was written by {makers[0].get("Name")}, not {SUPPORTED[name]}.'
        )
    return f'{SUPPORTED[name]} of an unknown version'


def runs_with_preprocessed(raw: Selection, derivatives: Mapping[str, Path]) -> list[DwiRun]:
    """The selected runs; a session that a derivative dataset holds is taken from there whole.

    ``derivatives`` are the roots of such datasets by name; QSIPrep may have merged what are several
    raw runs; 'masks' are the user's own. Names that mean nothing here are passed by. Raises what
    `check_derivative` raises.
    """
    own = runs_of(raw)
    masks = derivatives.get(MASKS)
    derivatives = {name: root for name, root in derivatives.items() if name in SUPPORTED}
    taken: dict[tuple[str, str | None], list[DwiRun]] = {}
    for name, root in derivatives.items():
        for run in find_ingested(name, root, raw):
            taken.setdefault(_place(run), []).append(run)
    runs: list[DwiRun] = []
    for run in own:
        if _place(run) not in taken:
            without = [
                f'{SUPPORTED[name]} has left no result of this session' for name in derivatives
            ]
            runs.append(replace(run, notes=(*run.notes, *without)))
    for place, ingested in taken.items():
        before = [run for run in own if _place(run) == place]
        note = [f'takes the place of {", ".join(run.name for run in before)}'] * bool(before)
        if any(run.excluded for run in before):
            note.append('--exclude-volumes has no effect on what is preprocessed already')
        runs += [replace(run, notes=(*run.notes, *note)) for run in ingested]
    if masks is not None:
        runs = with_masks(runs, masks)
    if raw.options.get('combine_runs'):
        runs = combined(sorted(runs, key=lambda run: run.name))
    return sorted(runs, key=lambda run: run.name)


def _place(run: Run) -> tuple[str, str | None]:
    return run.case.subject, run.case.entities.get('session')


def find_ingested(name: str, root: Path, raw: Selection) -> list[DwiRun]:
    """Preprocessed runs below ``root`` of the participants and sessions that ``raw`` selects.

    Their T1w image is the raw dataset's, by the same rule as for a raw run. Other filters for dMRI
    do not apply: a merged run has lost those entities. Raises what `check_derivative` raises.
    """
    pipeline = check_derivative(name, root)
    filtered = {k: v for k, v in raw.filters.get('dwi', {}).items() if k == 'session'}
    anatomies = anatomies_asked(raw)
    runs = []
    for subject in raw.subjects:
        for path in _preprocessed(root / f'sub-{subject}'):
            entities = parse(path.name)
            labelled = not raw.sessions or entities.get('session') in raw.sessions
            if labelled and matches(filtered, entities):
                runs.append(_guarded(name, pipeline, root, path, anatomies, b0_asked(raw)))
    return runs


def _guarded(name: str, pipeline: str, root: Path, path: Path, *more: Any) -> DwiRun:
    """`_run`, or its problem."""
    try:
        return _run(name, pipeline, root, path, *more)
    except Exception as error:
        entities = {**source_entities(parse(path.name)), 'datatype': 'dwi'}
        problem = problem_of(error, path.name)
        return DwiRun('dwi', Case(entities, {'dwi': path}), problem=problem, taken_from=name)


def _preprocessed(folder: Path) -> list[Path]:
    """Preprocessed images of one participant, one for each recording."""
    pattern = '[!.]*_desc-preproc_dwi.nii.gz'
    best: dict[str, tuple[tuple[int, bool, str], Path]] = {}
    for path in [*folder.glob(f'dwi/{pattern}'), *folder.glob(f'ses-*/dwi/{pattern}')]:
        entities = parse(path.name)
        if entities.get('space') in SPACES:
            rank = SPACES.index(entities['space']), 'res' in entities, path.name
            known = best.setdefault(_recording(entities), (rank, path))
            best[_recording(entities)] = min(known, (rank, path))
    return sorted(path for _, path in best.values())


def _recording(entities: Mapping[str, str]) -> str:
    return stem({k: v for k, v in entities.items() if k != 'space'})


def _run(
    name: str,
    pipeline: str,
    root: Path,
    path: Path,
    anatomies: Sequence[Path],
    b0_threshold: float,
) -> DwiRun:
    entities = {**source_entities(parse(path.name)), 'datatype': 'dwi'}
    base = path.name.removesuffix('.nii.gz')
    files = {'dwi': path}
    anatomy, said = choose_t1w(entities, anatomies)
    notes = [f'preprocessed by {pipeline}: nothing is corrected again', *said]
    if anatomy is not None:
        files['t1w'] = anatomy
    problem: Problem | None = None
    for kind in ('bval', 'bvec'):
        files[kind] = path.with_name(f'{base}.{kind}')
        if problem is None and not files[kind].is_file():
            problem = MissingInput(f'{path.relative_to(root)} has no {kind} file beside it.')
    try:
        check_content(root, files.values())
    except MissingInput as absent:
        problem = absent
    world = path.with_name(f'{base}.b')
    if world.is_file():
        files['b'] = world
    else:
        notes.append('no .b file: the bvec file is taken in the axes of the image')
    mask = path.with_name(base.removesuffix('preproc_dwi') + 'brain_mask.nii.gz')
    if not (reason := _unlike(mask, path)):
        files['mask'] = mask
    else:
        notes.append(f'{mask.name} {reason}: a brain mask is made here')
    if table := _confounds(path, entities):
        files['confounds'] = table
    metadata: dict[str, Any] = {}
    doubts: list[str] = []
    try:
        if (sidecar := path.with_name(f'{base}.json')).is_file():
            metadata, doubts = understood(read_object(sidecar))
    except (BadData, MissingInput) as error:
        problem = problem or error
    metadata.setdefault('SpatialReference', _reference(name, root, path))
    return DwiRun(
        'dwi', Case(entities, files), metadata, tuple(notes), problem, taken_from=name,
        doubts=tuple(doubts), b0_threshold=b0_threshold,
    )  # fmt: skip


def _unlike(mask: Path, image: Path) -> str:
    """Why ``mask`` is not one of ``image``; empty if it is."""
    if not mask.is_file():
        return 'is not there'
    try:
        same = open_image(mask).shape[:3] == open_image(image).shape[:3]
    except (BadData, MissingInput):
        return 'cannot be read'
    return '' if same else 'has another shape than the dMRI'


def _confounds(path: Path, entities: Mapping[str, str]) -> Path | None:
    for start in (_recording(entities), stem(entities)):
        for end in ('desc-confounds_timeseries', 'confounds'):
            table = path.with_name(f'{start}_{end}.tsv')
            if table.is_file():
                return table
    return None


def _reference(name: str, root: Path, path: Path) -> str:
    """BIDS URI of the image that defines the space: the T1w in it, else the dMRI itself."""
    space = parse(path.name)['space']
    for folder in (path.parent.parent, root / f'sub-{parse(path.name)["subject"]}'):
        found = sorted(folder.glob(f'anat/*_space-{space}_desc-preproc_T1w.nii.gz'))
        found += sorted(folder.glob('anat/*_desc-preproc_T1w.nii.gz')) if space == 'T1w' else []
        if found:
            return linked_uri(found[0], name, root)
    return linked_uri(path, name, root)


def ingested_table(case: Case) -> GradientTable:
    """World-axes gradient table of a run that QSIPrep preprocessed. Raises BadData.

    QSIPrep's bvec files are in the axes of the image and lack the flip that FSL's convention has
    where the determinant of the affine is positive, as it is in QSIPrep's LPS+ images. Its .b file
    (x y z b in world axes, a row a volume) leaves no doubt and is preferred.
    """
    affine = open_image(case.files['dwi']).affine
    bvals = read_numbers(case.files['bval']).ravel()
    if 'b' in case.files:
        rows = read_numbers(case.files['b'])
        if rows.shape != (len(bvals), 4):
            raise BadData(
                f'{case.files["b"]} has {rows.shape[0]} rows of {rows.shape[1]} numbers; expected '
                f'{len(bvals)} rows (one for each b-value) of x, y, z and b.'
            )
        world = rows[:, :3]
    else:
        bvecs = read_numbers(case.files['bvec'])
        if bvecs.shape != (3, len(bvals)):
            raise BadData(
                f'{case.files["bvec"]} has shape {bvecs.shape}; expected (3, {len(bvals)}).'
            )
        world = bvecs.T @ grid_axes(affine).T
    return from_fsl(to_fsl(GradientTable(world, bvals), affine), bvals, affine)

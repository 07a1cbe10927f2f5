"""The page of one participant: every dMRI run of all its sessions."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bidsapp.bids.images import open_image
from bidsapp.bids.write import write_text
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.reports import figures, preprocessing, restored
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, Problem
from bidsapp.reports import html, maps
from bidsapp.reports.planes import open_view
from bidsapp.reports.written import WrittenRun, find_written, sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bidsapp.reports.page import Drawn

#: Fields of a preprocessed run's sidecar that say what was done to it, or not, in that order.
PROCESSING = (
    'CorrectedBy', 'Denoising', 'GibbsUnringing', 'MotionCorrection', 'DistortionCorrection',
    'BiasFieldCorrection', 'Registration', 'SkullStripped', 'Notes',
)  # fmt: skip
#: Fields that say how a prediction came about.
PREDICTION = (
    'ModelName', 'ModelVersion', 'ModelSHA256', 'Device', 'SeenInTraining', 'WithinTestedRange',
)  # fmt: skip
#: Units that BIDS gives to fields of the scan.
UNITS = {
    'MagneticFieldStrength': 'T', 'EchoTime': 's', 'RepetitionTime': 's', 'FlipAngle': '°',
    'TotalReadoutTime': 's', 'EffectiveEchoSpacing': 's',
}  # fmt: skip
#: Fields that have their own place on the page, or that only programs need.
ELSEWHERE = (
    'Description', 'Sources', 'Warnings', 'OrientationEncoding', 'EncodingAxis', 'Reference',
    'Units', 'LabelMap', 'SkullStripped', 'Type', 'ByVolume', *PREDICTION,
)  # fmt: skip

#: What there is to say of a table of confounds.
CONFOUNDS = 'Motion of the head and slices replaced, by volume.'


def participant_page(
    root: Path, subject: str, problems: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Draw ``sub-<subject>.html`` and its figures from what is written below ``root``.

    ``problems``: run that failed → why. A run whose files cannot be drawn is itself a problem on
    the page, not an error. Raises CannotCreate or InputOutputError where the page cannot be
    written.
    """
    runs = find_written(root, subject)
    failed = dict(problems)
    sections = []
    for run in runs:
        drawn, troubles = _draw(run)
        if troubles:
            failed[run.name] = ' · '.join(filter(None, [failed.get(run.name), *troubles]))
        sections.append(_section(run, drawn))
    contents = html.Html()
    if len(runs) > 1:
        links = [html.element('li', html.element('a', r.name, href=f'#{r.name}')) for r in runs]
        contents = html.element('nav', html.element('ul', *links))
    elif not runs:
        contents = html.element('p', 'No preprocessed diffusion MRI of this participant was found.')
    lines = [f'{name}: {message}' for name, message in sorted(failed.items())]
    title = f'Participant {subject}'
    trouble = html.box('problem', 'Not everything worked', lines)
    text = html.page(title, trouble, contents, *sections)
    return write_text(root / f'sub-{subject}.html', text)


def _draw(run: WrittenRun) -> tuple[list[Drawn], list[str]]:
    """Every figure of a run that can be drawn, and why the others cannot."""
    try:
        view = open_view(run.case)
    except Problem as problem:
        return [], [str(problem)]
    wanted: list[Callable[[], Drawn | None]] = [
        partial(maps.draw_mask, run, view),
        partial(preprocessing.draw_ingested, run),
        partial(preprocessing.draw_motion, run),
        partial(preprocessing.draw_distortion, run, view),
        partial(figures.draw_anisotropy, run, view),
        *(partial(maps.draw_labels, run, view, name) for name in maps.segmentations(run)),
        partial(figures.draw_directions, run, view),
        *(partial(maps.draw_parameter, run, view, name) for name in maps.parameters(run)),
        partial(restored.draw_restored, run, view),
        partial(restored.draw_residual, run, view),
        partial(restored.draw_residual_by_volume, run),
    ]
    drawn, troubles = [], []
    for draw in wanted:
        try:
            if (figure := draw()) is not None:
                drawn.append(figure)
        except BadData as problem:
            troubles.append(str(problem))
    return drawn, troubles


def _section(run: WrittenRun, drawn: list[Drawn]) -> html.Html:
    files = run.files()
    content = sidecar(run.dwi)
    warnings = _warnings(files)
    done = {k: content[k] for k in PROCESSING if k in content}
    known = {*PROCESSING, *ELSEWHERE}
    scan = {
        **scan_facts(run),
        **{k: f'{v} {UNITS[k]}' if k in UNITS else v for k, v in content.items() if k not in known},
    }
    pieces = [
        html.element('h2', run.name, id=run.name),
        html.box('warning', 'Warnings', warnings),
        html.element('p', content.get('Description', ''), class_='note'),
        _titled('Scan', html.facts(scan)),
        _titled('What was done, and what not', html.facts(done)),
        _titled('Predictions', _predictions(run, files)),
    ]
    for one in drawn:
        pieces.append(html.element('h3', one.heading))
        if one.path is None:
            pieces.append(html.element('p', one.caption))
            continue
        source = quote(one.path.relative_to(run.root).as_posix())
        pieces.append(html.figure(source, one.caption, f'{one.heading} of {run.name}'))
    pieces.append(_titled('Output files', _listing(run, files)))
    return html.element('section', *pieces)


def _titled(title: str, content: html.Html) -> html.Html:
    return html.joined(html.element('h3', title), content) if content else content


def scan_facts(run: WrittenRun) -> dict[str, Any]:
    """Grid and gradients in words; what cannot be read is left out, its problem stands above."""
    known: dict[str, Any] = {}
    try:
        image = open_image(run.dwi)
        sizes = ' × '.join(f'{x:.3g}' for x in voxel_sizes(image.affine))
        known |= {
            'Grid': ' × '.join(str(n) for n in image.shape[:3]) + f' voxels of {sizes} mm',
            'Volumes': image.shape[3] if len(image.shape) > 3 else 1,
        }
        table = load_table(run.case)
    except (Problem, OSError):
        return known
    facts = acquisition(table)
    known['Of these without diffusion weighting'] = int(table.b0.sum())
    known['Shells'] = [f'b = {b:.0f} s/mm²: {n} directions' for b, n in facts.shells]
    known['Condition number of the tensor'] = round(float(facts.condition), 2)
    return known


def _warnings(files: list[Path]) -> list[str]:
    """Each warning of any sidecar once."""
    found: dict[str, None] = {}
    for path in (p for p in files if p.name.endswith('.nii.gz')):
        said = sidecar(path).get('Warnings') or []
        for text in [said] if isinstance(said, str) else said:
            found.setdefault(str(text))
    return list(found)


def _predictions(run: WrittenRun, files: list[Path]) -> html.Html:
    """What a network made, with which model, on which device; whether it had seen this brain.

    A row for all that was made in the same way.
    """
    rows: dict[tuple[Any, ...], list[str]] = {}
    for path in (p for p in files if p.name.endswith('.nii.gz')):
        content = sidecar(path)
        if any(key in content for key in PREDICTION):
            name = path.name.removesuffix('.nii.gz').removeprefix(f'{run.name}_')
            made = tuple(html.readable(content.get(k)) for k in PREDICTION)
            rows.setdefault(made, []).append(name)
    table = [(', '.join(names), *made) for made, names in rows.items()]
    return html.table(('Outputs', *PREDICTION), table)


def _listing(run: WrittenRun, files: list[Path]) -> html.Html:
    """Every image with its description and whatever else its sidecar says; the confounds."""
    rows: list[tuple[Any, ...]] = []
    for path in (p for p in files if p.name.endswith('.nii.gz')):
        content = sidecar(path)
        more = {k: v for k, v in content.items() if k not in ELSEWHERE} if path != run.dwi else {}
        rows.append(
            (_link(run, path), content.get('Description'), content.get('Units'), more or None)
        )
    rows += [(_link(run, path), CONFOUNDS, 'mm, rad', None)
             for path in files if path.name.endswith('_timeseries.tsv')]  # fmt: skip
    return html.table(('File', 'Description', 'Units', 'Further'), rows)


def _link(run: WrittenRun, path: Path) -> html.Html:
    return html.element('a', path.name, href=quote(path.relative_to(run.root).as_posix()))

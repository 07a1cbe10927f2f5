"""The page of one participant: every run of all its sessions and modalities."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bidsapp import registry
from bidsapp.bids.derivatives import scans
from bidsapp.bids.images import open_image
from bidsapp.bids.write import write_text
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, Problem
from bidsapp.reports import html
from bidsapp.reports.planes import open_view
from bidsapp.reports.written import WrittenRun, find_written, sidecar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.reports.page import Drawn, Page

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
        anchors = [anchor(run) for run in runs]
        links = [html.element('li', html.element('a', a, href=f'#{a}')) for a in anchors]
        contents = html.element('nav', html.element('ul', *links))
    elif not runs:
        every = scans(registry.modalities())
        text = f'No preprocessed {every} of this participant was found.'
        contents = html.element('p', text)
    lines = [f'{name}: {message}' for name, message in sorted(failed.items())]
    title = f'Participant {subject}'
    trouble = html.box('problem', 'Not everything worked', lines)
    text = html.page(title, trouble, contents, *sections)
    return write_text(root / f'sub-{subject}.html', text)


def anchor(run: WrittenRun) -> str:
    """What a run is called on the page: two modalities may share the name of their files."""
    named = run.name
    return named if run.modality == registry.FIRST else f'{named} ({run.modality})'


def _draw(run: WrittenRun) -> tuple[list[Drawn], list[str]]:
    """Every figure of a run that can be drawn, and why the others cannot."""
    try:
        view = open_view(run)
        wanted = registry.page(run.modality).figures(run, view)
    except Problem as problem:
        return [], [str(problem)]
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
    page: Page = registry.page(run.modality)
    content = sidecar(run.main)
    warnings = _warnings(files)
    done = {k: content[k] for k in page.processing if k in content}
    known = {*page.processing, *ELSEWHERE}
    scan = {
        **scan_facts(run),
        **{k: f'{v} {UNITS[k]}' if k in UNITS else v for k, v in content.items() if k not in known},
    }
    pieces = [
        html.element('h2', anchor(run), id=anchor(run)),
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
    """Grid, volumes and protocol in words; what cannot be read is left out, its problem is said."""
    known: dict[str, Any] = {}
    try:
        image = open_image(run.main)
        sizes = ' × '.join(f'{x:.3g}' for x in voxel_sizes(image.affine))
        known |= {
            'Grid': ' × '.join(str(n) for n in image.shape[:3]) + f' voxels of {sizes} mm',
            'Volumes': image.shape[3] if len(image.shape) > 3 else 1,
        }
        return known | dict(registry.page(run.modality).facts(run))
    except (Problem, OSError):
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
    """Every image with its description and whatever else its sidecar says; tables after them."""
    rows: list[tuple[Any, ...]] = []
    for path in (p for p in files if p.name.endswith('.nii.gz')):
        content = sidecar(path)
        more = {k: v for k, v in content.items() if k not in ELSEWHERE} if path != run.main else {}
        rows.append(
            (_link(run, path), content.get('Description'), content.get('Units'), more or None)
        )
    rows += [
        (_link(run, path), *said, None)
        for suffix, said in registry.page(run.modality).tables.items()
        for path in files if path.name.endswith(f'_{suffix}.tsv')
    ]  # fmt: skip
    return html.table(('File', 'Description', 'Units', 'Further'), rows)


def _link(run: WrittenRun, path: Path) -> html.Html:
    return html.element('a', path.name, href=quote(path.relative_to(run.root).as_posix()))

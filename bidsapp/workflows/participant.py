"""The graph of one call: a workflow for each run, independent of each other."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nipype import Workflow

from bidsapp import __version__
from bidsapp.hidden import remove_old
from bidsapp.workflows.run import init_run_wf

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.bids.runs import Run, Survey
    from bidsapp.workflows.plan import Todo
    from bidsapp.workflows.preparation import Place

#: Nipype's name of the graph.
NAME = 'transfermri_wf'


def participant_folder(work: Path, subject: str) -> Path:
    """Where the steps of one participant work; everything in it is the app's own."""
    return work / f'transfermri-{__version__}' / f'sub-{subject}'


def run_folder(work: Path, run: Run) -> Path:
    """Where the steps of one run work."""
    return participant_folder(work, run.case.subject) / NAME / node_name(run)


def node_name(run: Run) -> str:
    """What Nipype calls the run's own workflow: letters, digits and underscores.

    Runs of two modalities may share the name that their outputs begin with.
    """
    return re.sub(r'\W', '_', f'{run.modality}_{run.name}') + '_wf'


def clear_participant(work: Path, subject: str) -> None:
    """Remove what the steps of a participant left.

    The folder around it stays: another call may be about to make its participant's folder there.
    """
    shutil.rmtree(participant_folder(work, subject), ignore_errors=True)


def clear_runs(work: Path, runs: Sequence[Run]) -> None:
    """Remove what the steps of these runs left; other runs of their participants may be at work."""
    for run in runs:
        folder = run_folder(work, run)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another run is there
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


def make_room(root: Path, run: Run, todo: Todo, promised: Sequence[Path]) -> None:
    """Remove what is made again and what rests on it: a call cut off leaves no old beside new.

    The page too, where all of a run is made again: it shows what is gone. And what calls that were
    killed long ago left where files are ``promised``, below ``root``.
    """
    gone = [root / path for path in todo.remove]
    if todo.preproc and gone:
        gone.append(root / f'sub-{run.case.subject}.html')
    for path in gone:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in (root / own for own in promised)}:
        remove_old(folder)


class ParticipantWorkflow(Workflow):
    """One graph for all runs, in which each participant's steps work in a folder of their own."""

    def __init__(self, work: Path) -> None:
        super().__init__(NAME, base_dir=str(work))
        self.work = work
        self.homes: dict[str, str] = {}  #: name of a run's workflow → its participant's folder

    def add(self, run: Run, todo: Todo, survey: Survey[Any], place: Place) -> None:
        """Add the workflow of one run."""
        name = node_name(run)
        self.homes[name] = str(participant_folder(self.work, run.case.subject))
        self.add_nodes([init_run_wf(name, run, todo, survey, place)])

    def _configure_exec_nodes(self, graph: Any) -> None:
        """Nipype has put all nodes into one folder, and notes here where they find their inputs."""
        for node in graph.nodes():
            node.base_dir = self.homes[node.fullname.split('.')[1]]
        super()._configure_exec_nodes(graph)

    def _write_report_info(self, *_: Any) -> None:
        """No page about the graph: it would be nobody's, and calls would overwrite each other's."""

    def largest_need(self) -> float:
        """Memory in GB that the hungriest step is estimated to need, from the images' shapes."""
        return max(self.get_node(name).mem_gb for name in self.list_node_names())


def init_participant_wf(
    runs: Sequence[tuple[Run, Todo, Survey[Any]]], work: Path, place: Place
) -> ParticipantWorkflow:
    """Each run's workflow, for (run, what is missing, what is known of it)."""
    workflow = ParticipantWorkflow(work)
    for run, todo, survey in runs:
        workflow.add(run, todo, survey, place)
    return workflow

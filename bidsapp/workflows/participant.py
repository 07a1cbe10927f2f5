"""The graph of one call: a workflow for each run, independent of each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nipype import Workflow

from bidsapp.workflows.run import init_run_wf

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.bids.runs import Run
    from bidsapp.workflows.plan import Todo
    from bidsapp.workflows.preparation import Place, Size


class ParticipantWorkflow(Workflow):
    """A workflow that knows how a run's own workflow is called."""

    @staticmethod
    def node_name(run_name: str) -> str:
        """A Nipype name: letters, digits and underscores."""
        return re.sub(r'\W', '_', run_name) + '_wf'

    def largest_need(self) -> float:
        """Memory in GB that the hungriest step is estimated to need, from the images' shapes."""
        return max(self.get_node(name).mem_gb for name in self.list_node_names())


def init_participant_wf(
    runs: Sequence[tuple[Run, Todo, Size]], base: Path, place: Place
) -> ParticipantWorkflow:
    """Each run's workflow, for (run, what is missing, how large it is)."""
    workflow = ParticipantWorkflow(name='transfermri_wf', base_dir=str(base))
    for run, todo, size in runs:
        name = workflow.node_name(run.name)
        workflow.add_nodes([init_run_wf(name, run, todo, size, place)])
    return workflow

from nipype import Node, Workflow

from bidsapp.interfaces.prepared import WritePrepared
from bidsapp.workflows.preparation import Preparation


def graph(run, survey, place):
    raw, said = str(run.path), {'image': {'Description': 'A toy.', 'SkullStripped': False}}
    step = WritePrepared(['image'], modality='toy', entities=dict(run.case.entities), image=raw,
        like=raw, sources=[], out_root=str(place.out_root), sidecars=said)  # fmt: skip
    (workflow := Workflow('toy_wf')).add_nodes([Node(step, 'outputnode', overwrite=True)])
    return workflow


preparation = Preparation(graph, lambda run: [WritePrepared])

from types import SimpleNamespace

from bidsapp.bids.names import parse, source_entities
from bidsapp.bids.runs import Files, Prepared, Run, Size, Survey
from bidsapp.core import Case

TOY = SimpleNamespace(words='a toy', quantities=lambda sample=None: ())


def find(raw, derivatives):
    found = {p: source_entities(parse(p.name)) for p in raw.files('toy', suffix='PDw')}
    return [Run('toy', Case({**e, 'datatype': 'anat'}, {'image': p})) for p, e in found.items()]


MAIN = {'image': {'desc': 'preproc', 'suffix': 'PDw', 'extension': '.nii.gz'}}
files = Files('toy', find, lambda run: Survey(TOY, Size(512, 1)), lambda case: TOY,
              Prepared('anat', 'image', MAIN), 'anat/*_PDw.nii.gz')  # fmt: skip

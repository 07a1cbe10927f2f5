import torch.nn.functional as F

from bidsapp.bids.images import load_volume, with_label
from bidsapp.core import Head, Label, Output, Task

LEVELS = ((1, 'Bright', 'B'),)
BRIGHT = Output('bright', {'suffix': 'dseg', 'seg': 'bright'}, 'uint8', labels=LEVELS)


def share(output, sample):
    return [('accuracy', 'all', float(((output > 0) == (sample.target > 0)).float().mean()))]


task = Task(
    Head(1, 1, lambda p, t, m: F.binary_cross_entropy_with_logits(p, t), share, 'accuracy', True),
    (BRIGHT,),
    load=lambda sample, case: with_label(sample, case.files.get('bright')),
    finish=lambda out, sample, case: {'bright': (out['brightness'][0] > 0).numpy().astype('u1')},
    label=Label(lambda acquisition: 'reference',
                lambda case: {'bright': (load_volume(case.files['image']) > 0.5).astype('u1')}),
    truth=lambda known: known['bright'],
)  # fmt: skip

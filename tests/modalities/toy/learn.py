import torch

from bidsapp.bids.images import load_volume, open_image
from bidsapp.core import Sample
from bidsapp.learn.inputs import Input, Shape


def sample(case, part):
    path = case.files['image']
    image = torch.from_numpy(load_volume(path))[None]
    return Sample(image, image > -9, open_image(path).affine)


input = Input('toy', sample, Shape('unet', options={'widths': [4, 8]}, patch=(8, 8, 8)))

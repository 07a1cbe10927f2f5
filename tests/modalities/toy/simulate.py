import torch

from bidsapp import registry
from bidsapp.simulate.material import Material, Pretraining, Scan


class Toys:
    def scan(self, number):
        image = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(number))
        return Scan(image, image > -9, {'bright': (image > 0.5).float()}, (1.0, 1.0, 1.0))


def material(request):
    scanners = dict.fromkeys(('train', 'val', 'test'), Toys())
    return Material((registry.task('brightness'),), scanners, {}, {})


pretraining = Pretraining(material)

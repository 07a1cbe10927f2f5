"""How near the classical susceptibility maps come to the truth of a simulated head.

    python benchmarks/susceptibility.py [--voxel 2] [--tilt 0] [--echoes 5] [--unexplained 0]
                                        [--seed 1] [--search] [--pictures FOLDER]

Simulates a head with bone, air, nuclei, veins and lesions on a grid twice as fine and scans it.
Printed are NRMSE (%), XSIM and the slope, in the brain less 3 mm, of each method from the true
local field with the scan's own noise, and from raw phase: the chain's field, a brain mask from the
magnitude, V-SHARP or RESHARP before the inversion or the single step. ``--search`` also tries
λ times 1/4, 1/2, 2 and 4 of the usual one: the best that could have been chosen afterwards.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from bidsapp.modalities.gre.physics import echoes, maps, quality, relaxation
from bidsapp.modalities.gre.physics.agreement import nrmse, slope, xsim
from bidsapp.modalities.gre.physics.background import SINGLE, reach
from bidsapp.modalities.gre.simulate.scan import GradientEchoScan, Protocol, simulate_scan
from bidsapp.physics import brain
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.template import template_maps
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.anatomy import draw_head, head_template
from bidsapp.simulate.t1w import field_of_view

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def scanned(options: argparse.Namespace) -> GradientEchoScan:
    """The scan of one head."""
    _, *tissue, affine = template_maps(1.5)
    template = head_template(*(torch.from_numpy(array) for array in (*tissue, affine)))
    generator = torch.Generator().manual_seed(options.seed)
    head = draw_head(template, generator)
    axes = oblique(torch.tensor([options.tilt, 0.0, 0.0]), 'RAS')
    grid = field_of_view(head, axes, options.voxel, below=15.0)
    times = Protocol().echo_times if options.echoes > 1 else (0.018,)
    protocol = Protocol(echo_times=times[: options.echoes], unexplained=options.unexplained)
    return simulate_scan(head, grid, protocol, generator)


class Bench:
    """Scores maps of one scan, each with λ as usual and, if asked, as would have been best."""

    def __init__(self, scan: GradientEchoScan, search: bool) -> None:
        self.scan, self.search = scan, search
        self.affine = scan.grid.affine.double().numpy()
        self.chi, self.inside = scan.chi.numpy(), scan.brain.numpy()
        self.core = brain.eroded(self.inside, self.affine, 3.0)
        self.found: dict[str, np.ndarray] = {}

    def scores(self, chi: np.ndarray, where: np.ndarray) -> str:
        """NRMSE, XSIM, slope in ``where``."""
        pair = (chi, self.chi, where)
        return f'{nrmse(*pair):6.1f} % {xsim(*pair):.3f} {slope(*pair):.2f}'

    def row(
        self, name: str, field: np.ndarray, noise: np.ndarray, mask: np.ndarray, method: str
    ) -> None:
        """One method: the usual λ, then the best of several."""
        start = time.process_time()
        found = maps.inverted(field, noise, mask, self.affine, method)
        chi = found.chi
        took = time.process_time() - start
        known = reach(mask, voxel_sizes(self.affine), SINGLE) if method == 'single-step' else mask
        line = f'{name:22s} {self.scores(chi, self.core)} | where known '
        line += f'{self.scores(chi, self.core & known)} {took:5.0f} s'
        self.found[name] = chi
        if self.search:
            tried = {
                q: maps.susceptibility(field, noise, mask, self.affine, method, q * found.strength)
                for q in FACTORS
            }
            best = max(tried, key=lambda q: xsim(tried[q], self.chi, self.core))
            line += f' | best λ × {best:g}: {self.scores(tried[best], self.core)}'
        print(line, flush=True)


def main(options: argparse.Namespace) -> None:
    """Simulate, invert, print."""
    start = time.process_time()
    scan = scanned(options)
    bench = Bench(scan, options.search)
    times, mhz = scan.protocol.echo_times, scan.protocol.imaging_mhz
    print(f'grid {tuple(scan.grid.shape)}, simulated in {time.process_time() - start:.0f} s')
    magnitude, phase = scan.signal.abs().numpy(), scan.signal.angle().numpy()
    mask = brain.brain_mask(magnitude[0], magnitude[-1], bench.affine)
    start = time.process_time()
    field = echoes.total_field(phase, magnitude, times, mask, bench.affine)
    both = mask & bench.inside
    total, noise = field.hertz / mhz, field.noise / mhz
    error = (total - scan.total.numpy())[both]
    error -= np.median(error)
    print(
        f'field in {time.process_time() - start:.0f} s: noise {1000 * np.median(noise[mask]):.2f} '
        f'ppb, median error {1000 * np.median(np.abs(error)):.2f} ppb, wrong by more than half a '
        f'turn in {int((np.abs(error) > 0.5 / times[0] / mhz).sum())} of {both.sum()} voxels'
    )
    reliable = quality.reliable_mask(field, mask, bench.affine)
    print(
        f'mask: {2 * both.sum() / (mask.sum() + bench.inside.sum()):.3f} Dice, '
        f'{(reliable & both).sum() / both.sum():.1%} reliable'
    )

    generator = torch.Generator().manual_seed(options.seed)
    white = torch.randn(scan.local.shape, generator=generator).numpy()
    local = np.where(bench.inside, scan.local.numpy() + noise * white, 0)
    usual_noise = np.where(noise > 0, noise, 10 * np.median(noise[mask]))
    for method in ('tkd', 'tikhonov', 'tv'):
        bench.row(f'true local, {method}', local, usual_noise, bench.inside, method)
    for removal in ('vsharp', 'resharp'):
        found, known = maps.local_field(total, reliable, bench.affine, removal)
        core = known & bench.core
        print(f'{removal}: field {nrmse(found, scan.local.numpy(), core):.1f} % off')
        for method in ('tkd', 'tikhonov', 'tv') if removal == 'vsharp' else ('tv',):
            bench.row(f'{removal}, {method}', found, usual_noise, known, method)
    bench.row('single-step', total, usual_noise, reliable, 'single-step')
    if len(times) > 1:
        rate = relaxation.r2star(magnitude, times, mask, field.sigma)
        ratio = rate[bench.core] / np.maximum(scan.r2star.numpy()[bench.core], 1)
        sign = quality.phase_sign(bench.found['single-step'], rate, reliable, bench.affine)
        print(f'R2*: median of found over true {np.median(ratio):.3f}; sign: {sign.verdict}')
    if options.pictures:
        draw(bench, options.pictures)


def draw(bench: Bench, folder: Path) -> None:
    """Three planes of the truth and of every map, ± 0.1 ppm."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {'truth': np.where(bench.inside, bench.chi, 0), **bench.found}
    figure, axes = plt.subplots(3, len(pictures), figsize=(3 * len(pictures), 9))
    middle = [n // 2 for n in bench.chi.shape]
    for column, (name, chi) in zip(axes.T, pictures.items(), strict=True):
        for axis, panel in enumerate(column):
            plane = chi.take(middle[2 - axis], 2 - axis).T
            panel.imshow(plane, origin='lower', cmap='gray', vmin=-0.1, vmax=0.1)
            panel.set_axis_off()
        column[0].set_title(name)
    figure.tight_layout()
    figure.savefig(folder / 'susceptibility.png', dpi=60)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--voxel', type=float, default=2.0, metavar='MM')
    parser.add_argument('--tilt', type=float, default=0.0, metavar='DEGREES')
    parser.add_argument('--echoes', type=int, default=5, metavar='N')
    parser.add_argument('--unexplained', type=float, default=0.0, metavar='SHARE')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--search', action='store_true', help='also look for the best λ')
    parser.add_argument('--pictures', type=Path, metavar='FOLDER')
    main(parser.parse_args())

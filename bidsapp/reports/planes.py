"""From volumes to planes: a run turned to the nearest RAS, cut, cropped and coloured.

Pictures are (H, W, 3), 0 to 1, their first row at the bottom. The patient's left is on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import registry
from bidsapp.bids.images import crop_to, load_volume, open_image, to_ras
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.core import FloatArray
    from bidsapp.reports.written import WrittenRun

#: mm of surroundings that a picture shows.
MARGIN = 8.0
#: Share of the brightest signal above which a voxel counts as head, for the frame of a picture.
HEAD_SIGNAL = 0.1
#: At both ends of a horizontal axis, by the axis that a cut is perpendicular to.
LETTERS = (('P', 'A'), ('L', 'R'), ('L', 'R'))


Box = tuple[slice, slice, slice]
At = Callable[[np.ndarray], np.ndarray]  #: (X, Y, Z, …) → (H, W, …), the plane of one cut


@dataclass(frozen=True, slots=True)
class Cut:
    """A plane perpendicular to ``axis`` (0 right, 1 front, 2 up) at voxel ``index``."""

    axis: int
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A plane ready to be drawn; ``size`` (width, height) in mm."""

    picture: FloatArray
    size: tuple[float, float]
    letters: tuple[str, str]
    place: str
    outline: np.ndarray | None = None  #: (H, W) bool


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One run on its grid turned to the nearest RAS."""

    run_affine: FloatArray  #: (4, 4) of the files
    run_shape: tuple[int, ...]
    affine: FloatArray  #: (4, 4) after turning
    background: np.ndarray  #: (X, Y, Z) what labels are laid over
    brain: np.ndarray  #: (X, Y, Z) bool
    background_name: str = ''
    background_words: str = ''

    def load(self, path: Path) -> np.ndarray:
        """A map (X, Y, Z[, K]) turned to RAS. Raises BadData if it is on another grid."""
        image = open_image(path)
        if image.shape[:3] != self.run_shape or not np.allclose(
            image.affine, self.run_affine, atol=1e-3
        ):
            raise BadData(f'{path.name} is not on the voxel grid of its run')
        return self.turned(load_volume(path))

    def turned(self, array: np.ndarray) -> np.ndarray:
        """``array`` (X, Y, Z[, K]) on the grid of the files turned to RAS."""
        return to_ras(array, self.run_affine)[0]

    @property
    def brain_box(self) -> Box:
        """The brain and a margin."""
        return self._framed(self.brain)

    @property
    def head_box(self) -> Box:
        """All that is bright, so that a mask which misses brain is seen to."""
        bright = self.background > HEAD_SIGNAL * np.percentile(self.background[self.brain], 95)
        return self._framed(self.brain | bright)

    def _framed(self, what: np.ndarray) -> Box:
        extra = np.ceil(MARGIN / voxel_sizes(self.affine)).astype(int)
        i, j, k = (
            slice(max(s.start - int(e), 0), min(s.stop + int(e), n))
            for s, e, n in zip(crop_to(what), extra, what.shape, strict=True)
        )
        return i, j, k

    def cuts(self, axis: int, n: int, low: float = 0.15, high: float = 0.85) -> list[Cut]:
        """``n`` planes evenly between two shares of the brain's extent along ``axis``."""
        span = crop_to(self.brain)[axis]
        shares = np.linspace(low, high, n) if n > 1 else np.array([(low + high) / 2])
        return [Cut(axis, int(span.start + s * (span.stop - 1 - span.start))) for s in shares]

    def panels(
        self,
        cuts: Sequence[Cut],
        paint: Callable[[At], np.ndarray],
        box: Box | None = None,
        outline: np.ndarray | None = None,
    ) -> list[Panel]:
        """A panel for each cut; ``paint`` makes its picture from planes of any volume."""
        return [self._panel(cut, paint, box or self.brain_box, outline) for cut in cuts]

    def _panel(
        self, cut: Cut, paint: Callable[[At], np.ndarray], box: Box, outline: np.ndarray | None
    ) -> Panel:
        across, up = (axis for axis in range(3) if axis != cut.axis)

        def at(volume: np.ndarray) -> np.ndarray:
            plane = np.take(volume, cut.index, cut.axis)[box[across], box[up]]
            return np.swapaxes(plane, 0, 1)

        sizes = voxel_sizes(self.affine)
        extent = [(box[a].stop - box[a].start) * float(sizes[a]) for a in (across, up)]
        centre = np.array([(s.start + s.stop - 1) / 2 for s in box])
        centre[cut.axis] = cut.index
        world = (self.affine @ [*centre, 1])[cut.axis]
        return Panel(
            np.clip(paint(at), 0, 1),
            (extent[0], extent[1]),
            LETTERS[cut.axis],
            f'{"xyz"[cut.axis]} = {world:.0f} mm',
            None if outline is None else at(outline),
        )


def open_view(run: WrittenRun) -> View:
    """Background and mask of a prepared run. Raises MissingInput or BadData.

    A modality that prepares no mask shows all of the background that is not zero.
    """
    case, page = run.case, registry.page(run.modality)
    for path in case.files.values():
        if not path.is_file():
            raise MissingInput(f'{path.name} is missing; the other files of its run are there.')
    image = open_image(run.main)
    background, affine = to_ras(page.background(case), image.affine)
    words = page.background_name, page.background_words
    view = View(image.affine, image.shape[:3], affine, background, background != 0, *words)
    if 'mask' not in case.files:
        return view
    brain = view.load(case.files['mask']) > 0
    if not brain.any():
        raise BadData(f'{case.files["mask"].name} is empty: there is no brain to look at')
    return replace(view, brain=brain)


def mean_of(path: Path, volumes: np.ndarray) -> np.ndarray:
    """(X, Y, Z) mean of some volumes, read in one pass without the others in memory."""
    import nibabel as nib

    image: Any = nib.load(path, keep_file_open=True)
    total = np.zeros(image.shape[:3])
    try:
        for index in volumes:
            total += image.dataobj[..., int(index)]
    except (EOFError, OSError, ValueError) as error:
        raise BadData(f'{path.name} could not be read to its end: {error}') from error
    return np.asarray(total / len(volumes), np.float32)


def window(volume: np.ndarray, where: np.ndarray, percent: float = 99.0) -> float:
    """The value that is drawn white: a percentile of the voxels ``where``."""
    values = volume[where]
    return float(np.percentile(values, percent)) if values.size else 1.0


def grey(plane: np.ndarray, high: float, low: float = 0.0) -> np.ndarray:
    """(H, W) → picture, black at ``low`` and white at ``high``."""
    scaled = np.clip((np.nan_to_num(plane) - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(scaled[..., None], 3, axis=-1)


def overlaid(
    base: np.ndarray, labels: np.ndarray, colours: dict[int, str], strength: float = 0.45
) -> np.ndarray:
    """A picture with the colour of each label laid over it."""
    from matplotlib.colors import to_rgb

    picture = base.copy()
    for index, colour in colours.items():
        where = labels == index
        picture[where] = (1 - strength) * picture[where] + strength * np.array(to_rgb(colour))
    return picture


def mapped(
    base: np.ndarray, plane: np.ndarray, where: np.ndarray, high: float, cmap: str
) -> np.ndarray:
    """A picture with a colour map of ``plane``, 0 to ``high``, in place of it ``where``."""
    from matplotlib import colormaps

    colours = colormaps[cmap](np.clip(np.nan_to_num(plane) / high, 0, 1))[..., :3]
    return np.where(where[..., None], colours, base)

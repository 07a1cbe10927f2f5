"""Step: the prepared files of a run, written below OUTPUT_DIR as its modality promises them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import DynamicTraitedSpec, File, traits

from bidsapp import registry
from bidsapp.bids.images import load_volume
from bidsapp.bids.prepared import prepared_files
from bidsapp.bids.scans import sidecar_of
from bidsapp.bids.write import whole, write_image, write_json
from bidsapp.interfaces.base import CaseInput, CaseStep, RecordingInput

if TYPE_CHECKING:
    from collections.abc import Sequence


class _PreparedInput(CaseInput, RecordingInput):
    out_root = traits.Str(mandatory=True)
    like = File(exists=True, mandatory=True, desc='the image whose grid and header are kept')
    sidecars = traits.Dict(desc='kind → fields beside Sources')
    sources = traits.List(traits.Str, mandatory=True, desc='BIDS URIs')


class WritePrepared(CaseStep):
    """Images with a sidecar each, other files as they are; each whole, the main one last.

    ``kinds`` are those of `bids.runs.Prepared.names`, as inputs and as outputs.
    """

    input_spec = _PreparedInput
    output_spec = DynamicTraitedSpec

    def __init__(self, kinds: Sequence[str] = (), **inputs: Any) -> None:
        super().__init__(kinds, **inputs)

    def _outputs(self) -> Any:
        found = super()._outputs()
        for kind in self._kinds:
            found.add_trait(kind, File())
        return found

    def step(self, folder: Path) -> dict[str, Any]:
        """Where an image is, its sidecar is; where the main file is, all are."""
        prepared = registry.files(self.inputs.modality).prepared
        case, root = self.case(), Path(self.inputs.out_root)
        found, made_from = prepared_files(prepared, case.entities), self.inputs.made_from()
        for kind in sorted(case.files, key=lambda kind: kind == prepared.main):
            given, target = case.files[kind], root / found[kind]
            if not target.name.endswith('.nii.gz'):
                with whole(target) as hidden:
                    shutil.copyfile(given, hidden)
                continue
            own = self.inputs.sidecars.get(kind, {})
            sidecar = {'Sources': list(self.inputs.sources), **own, **made_from}
            write_json(sidecar_of(target), sidecar)
            array = load_volume(given)
            dtype = 'uint8' if target.name.endswith('_mask.nii.gz') else 'float32'
            write_image(target, array, Path(self.inputs.like), dtype)
        return {kind: str(root / path) for kind, path in found.items()}
